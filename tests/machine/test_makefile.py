"""What `make install` checks before it compiles. No test here gets as far as installing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = """#define VK_MAKE_API_VERSION(variant, major, minor, patch) \\
    ((((unsigned)(variant)) << 29U) | (((unsigned)(major)) << 22U) | (((unsigned)(minor)) << 12U) | ((unsigned)(patch)))
#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, {}, 239)
"""


def make(backend: str, folder: Path, **variables: str) -> str:
    """The output of `make install` for a backend, with a place for the installation that cannot be made."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "install", f"BACKEND={backend}", "VENV=/dev/null/venv"],
        cwd=ROOT,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def vulkan(folder: Path, minor: int, variable: str) -> dict[str, str]:
    """Headers of Vulkan 1.``minor`` and a glslc in ``folder``, and the variable that shows where they are."""
    for name, text in {
        "bin/glslc": "#!/bin/sh",
        "include/vulkan/vulkan_core.h": HEADER.format(minor),
        "include/spirv/unified1/spirv.h": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin/glslc").chmod(0o755)
    return {variable: str(folder if variable == "VULKAN_SDK" else folder / "include")}


@pytest.mark.parametrize("variable", ["CPATH", "VULKAN_SDK"])
@pytest.mark.parametrize("minor", [2, 3, 4, 5])
def test_vulkan_headers_are_of_1_4_or_later(minor: int, variable: str, tmp_path: Path) -> None:
    said = make("vulkan", tmp_path, **vulkan(tmp_path, minor, variable))
    refused = [line for line in said.splitlines() if "Vulkan headers of version 1.4 or later" in line]
    assert len(refused) == (1 if minor < 4 else 0)
    assert ("Error 3" in said) == (minor < 4)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("vulkan", "install glslc"),
        ("metal", "Metal needs macOS"),
        ("Cuda", "choose one of cpu, cuda, hip"),
    ],
)
def test_what_is_missing_is_named_before_compiling(backend: str, words: str, tmp_path: Path) -> None:
    said = make(backend, tmp_path, CC="false")
    assert f"cannot build llama.cpp with BACKEND={backend}: {words}" in said
    assert "Error 3" in said


def test_the_cpu_build_needs_nothing_more(tmp_path: Path) -> None:
    assert "cannot build" not in make("cpu", tmp_path)
