"""The house: imports run one way, heavy libraries are imported where used, every command has help."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from longest_files import LONGEST

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
    "aiohttp",
}

# The rooms in the order in which imports run: each may import what stands on earlier lines, and itself.
ORDER = (
    {"errors", "metrics", "system", "control_groups"},
    {"parameters"},
    {"spelling"},
    {"records", "http", "overrides"},
    {"stats", "power_settings", "nvml", "files", "locks", "processes", "servers", "serving"},
    {"machine"},
    {"model"},
    {"client"},
    {"engine", "meter", "limits"},
    {"measure", "space"},
    {"results"},
    {"search"},
    {"report"},
    {"doctor", "tracking", "apply"},
    {"config"},
    {"rig", "sweep"},
    {"guess"},
    {"prepare"},
    {"commands"},
    {"start"},
    {"cli"},
    {"__main__", "__init__"},
    {"lab"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


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
    room = _part(path)
    for name in _imports(path, everywhere=True):
        if name.startswith("sweeper."):
            other = name.split(".")[1]
            if other in LEVEL:  # else a name of the package itself, such as __version__
                assert other == room or LEVEL[other] < LEVEL[room], f"{room}/{path.name} imports {name}"


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
    [
        "sweep",
        "guess",
        "report",
        "apply",
        "rollback",
        "verify",
        "restore",
        "doctor",
        "compare",
        "ui",
        "record",
    ],
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
    from sweeper.apply.targets.registry import target_names

    assert target_names() == TARGETS


def test_benchmarks_import_names_that_exist() -> None:
    missing = []
    benchmarks = {
        path.stem: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((PACKAGE.parent / "benchmarks").rglob("*.py"))
    }
    for stem, tree in benchmarks.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            names = [alias.name for alias in node.names]
            if node.module.partition(".")[0] == "sweeper":
                module = importlib.import_module(node.module)
                names = [name for name in names if not _has(module, name)]
            elif node.module in benchmarks:
                names = sorted({*names} - _names_at_top(benchmarks[node.module]))
            else:
                continue
            missing += [f"{stem}.py: {node.module}.{name}" for name in names]
    assert missing == []


def _names_at_top(tree: ast.Module) -> set[str]:
    """The names that a module defines or imports at its top."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        else:
            every = (name for name in ast.walk(node) if isinstance(name, ast.Name))
            found |= {name.id for name in every if isinstance(name.ctx, ast.Store)}
    return found


def _has(module: ModuleType, name: str) -> bool:
    in_package = hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{name}")
    return hasattr(module, name) or bool(in_package)


def test_the_files_that_start_first_are_there() -> None:
    assert set(LONGEST) <= {path.name for path in Path(__file__).parent.rglob("test_*.py")}
