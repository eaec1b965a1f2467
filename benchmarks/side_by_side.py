"""What the benchmarks of engines and servers share: the model, the builds, and the end of the program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from gpu_record import StepFile

from sweeper.config import compose
from sweeper.engine.base import Engine
from sweeper.errors import SweeperError
from sweeper.model.obtain import obtain
from sweeper.system import usable_cpus

ROOT = Path("mlruns")  # synthetic models lie here, as those of `sweeper sweep` do
OUT = ROOT / "benchmarks"  # all figures of a run; a file that is there goes on


def model_file(name: str, root: Path) -> Path:
    """The file of a model of conf/model, written to ``root`` if it is not there yet, or the user's own GGUF file."""
    word = f"model.path='{Path(name).absolute()}'" if Path(name).is_file() else f"model={name}"
    return Path(obtain(compose([word]).settings.model, root).file(None).path)


def builds_of(engines: Mapping[str, Engine]) -> dict[str, str]:
    """The version of each engine, by the engine's name. Raises EngineMissingError."""
    records = [engine.record for engine in engines.values()]
    return {record.name: record.version for record in records}


def finished(file: StepFile) -> bool:
    """Whether every row was measured; a row that failed is said, with its reason."""
    file.finish("complete")
    for row in file.rows:
        if "error" in row:
            print(f"{row['key']} failed, and the same command tries it again: {row['error']}")
    return file.complete


def thread_counts() -> list[int]:
    """One thread, and as many as there are CPUs."""
    return sorted({1, len(usable_cpus())})


def run(main: Callable[[], int]) -> NoReturn:
    """Run a benchmark's ``main`` and exit with its code. An error of sweeper's is one line, with its own exit code."""
    try:
        sys.exit(main())
    except SweeperError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
