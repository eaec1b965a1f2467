"""The house: imports run one way, heavy libraries are imported where used, every command has help."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweeper
from sweeper.cli import TARGETS, main

PACKAGE = Path(sweeper.__file__).parent
HEAVY = {
    "mlflow",
    "hydra",
    "omegaconf",
    "pynvml",
    "llama_cpp",
    "matplotlib",
    "scipy",
    "optuna",
    "gguf",
}

# What each part may import of sweeper's own, beside errors, records and itself (docs/design.md draws it).
LEAVES = {"stats", "pareto", "ceiling", "space", "virtual_time", "worker_process", "serving"}
MAY_IMPORT = {
    "errors": set(),
    "records": set(),
    "stats": set(),
    "pareto": {"stats"},
    "ceiling": set(),
    "space": set(),
    "virtual_time": set(),
    "worker_process": set(),
    "serving": set(),
    "machine": set(),
    "gguf": {"worker_process", "serving"},
    "engine": {*LEAVES, "gguf", "power", "record_table", "measure"},
    "power": {"stats", "virtual_time", "pareto"},
    "measure": {"stats", "engine", "power"},
    "record_table": {*LEAVES, "engine", "power", "measure"},
    "search": {*LEAVES, "gguf", "engine", "measure", "power"},
    "report": {*LEAVES},
    "tracking": {*LEAVES, "report"},
    "apply": {*LEAVES, "power", "gguf", "engine", "measure"},
    "auto_space": {"space", "power"},
    "sweep": {*LEAVES, "engine", "measure", "power", "search", "report", "tracking"},
}
FREE = {"wiring", "cli", "commands", "config", "testing", "ui", "__main__", "__init__"}


def _modules() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Modules imported at the top of a file, or anywhere in it; not those for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "sweeper":
                yield from (f"sweeper.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", list(_modules()), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = _part(path)
    if part in FREE:
        return
    allowed = MAY_IMPORT[part] | {"errors", "records", part, "__init__"}
    for name in _imports(path, everywhere=True):
        if name.startswith("sweeper."):
            assert name.split(".")[1] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", list(_modules()), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_used(path: Path) -> None:
    if path.name in (
        "gp_front.py",
    ):  # a sampler must be a subclass of Optuna's, and is imported where chosen
        return
    for name in _imports(path, everywhere=False):
        assert name.split(".")[0] not in HEAVY, f"{path.name} imports {name} at its top"


def test_only_config_imports_hydra() -> None:
    for path in _modules():
        if path.name != "config.py":
            assert not {"hydra", "omegaconf"} & {n.split(".")[0] for n in _imports(path, everywhere=True)}, (
                path
            )


def test_help_loads_none_of_the_heavy_libraries() -> None:
    code = f"""
import sys
from sweeper.cli import main
try: main(['--help'])
except SystemExit: pass
print({HEAVY!r} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    "command",
    ["sweep", "report", "apply", "rollback", "verify", "restore", "doctor", "compare", "ui", "record"],
)
def test_every_command_has_help_and_is_documented(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0
    assert command in capsys.readouterr().out
    docs = (
        (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
        if (PACKAGE.parent / "README.md").exists()
        else ""
    )
    assert f"sweeper {command}" in docs


def test_targets_of_the_help_are_those_of_the_registry() -> None:
    from sweeper.apply.registry import target_names

    assert target_names() == TARGETS
