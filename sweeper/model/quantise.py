"""Makes a model's quantisation levels with llama.cpp's own quantiser, each level once, and keeps them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from sweeper import files, machine
from sweeper.errors import ConfigError, EngineRefused, StoreError, UsageError
from sweeper.locks import held
from sweeper.model.digest import demand_space, sha256_of, sha256_of_model
from sweeper.model.ggml_types import FILE_TYPE_BY_NAME, TYPE_BY_NAME
from sweeper.model.header import read_header
from sweeper.processes import WorkerProcess
from sweeper.records import ModelFile

# Levels that llama.cpp makes from the weights alone.
LEVELS = (
    *("F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1"),
    *("Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K", "TQ1_0", "TQ2_0"),
)
# Levels that llama.cpp makes only with an importance matrix; sweeper computes none.
LEVELS_NEEDING_IMPORTANCE = (
    *("IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S"),
)
SOURCES = ("F32", "F16", "BF16")  # sweeper refuses quantised sources, because both errors would add up

_SIZE_TIMEOUT_SECONDS = 300.0
_TIMEOUT_SECONDS = 6 * 3600.0  # a 70B model on two slow cores takes about two hours


@dataclass(frozen=True, slots=True)
class Quantised:
    """A level of a model. ``warnings`` are llama.cpp's, for example about tensors that fell back to another type."""

    file: ModelFile
    warnings: tuple[str, ...]
    seconds: float  # the time to make it
    made: bool  # True: made now; False: it existed


def quantised(source: Path, level: str, root: Path, threads: int | None = None) -> Quantised:
    """The model at ``source`` in quantisation ``level``, made now or found under ``root/quantised/``.

    If the source already has this level, the result is the source itself. If two processes ask for the same level at
    the same time, one of them makes it.

    Args:
        source: an F32, F16 or BF16 GGUF.
        level: one of :data:`LEVELS`.
        root: the folder of all stored files (``mlruns``).
        threads: the number of threads; None is the number that this process may use.

    Raises:
        ConfigError: the level does not exist, or needs an importance matrix.
        UsageError: the source itself is quantised.
        StoreError: the result cannot be written, or does not fit on the disk.
        EngineRefused: llama.cpp could not make the level; the message contains its reason.
        EngineCrashed, EngineTimeout, OutOfMemory: the process failed.
    """
    source = Path(source)
    header = read_header(source)
    check_level(level)
    digest = sha256_of_model(header.parts, root)
    if level == header.file_type:
        return Quantised(ModelFile(level, str(source), digest, header.size_bytes), (), 0.0, made=False)
    if header.file_type not in SOURCES:
        raise UsageError(
            f"{source.name} is {header.file_type}: {level} can be made only from {', '.join(SOURCES)}; "
            f"give such a file, or set space.quant={header.file_type}"
        )
    quantised_types = {
        tensor.type for tensor in header.tensors if TYPE_BY_NAME[tensor.type].block_elements > 1
    }
    if quantised_types:
        raise EngineRefused(
            f"{source.name} holds {', '.join(sorted(quantised_types))} tensors, which cannot be quantised again"
        )
    target = _target(digest, level, root)
    notes = target.with_suffix(".json")
    with held(target.with_suffix(".lock")):
        made = not (target.is_file() and notes.is_file())
        if made:
            _make(source, target, level, threads or machine.usable_threads())
        kept = json.loads(notes.read_text(encoding="utf-8"))
        result = read_header(target)
    file = ModelFile(level, str(target), sha256_of(target, root), result.size_bytes)
    return Quantised(file, tuple(kept["warnings"]), float(kept["seconds"]), made)


def is_made(source: Path, level: str, root: Path) -> bool:
    """Whether `quantised` finds the level instead of making it. Raises ModelFileError, ModelMissingError."""
    header = read_header(source)
    digest = sha256_of_model(header.parts, root)
    return level == header.file_type or _target(digest, level, root).is_file()


def _target(digest: str, level: str, root: Path) -> Path:
    return root / "quantised" / digest[:16] / f"{level}.gguf"


def check_level(level: str) -> None:
    """Raise ConfigError if ``level`` cannot be made. The message names alternatives."""
    if level in LEVELS_NEEDING_IMPORTANCE:
        raise _needs_importance(level)
    if level not in LEVELS:
        raise ConfigError(f"space.quant={level}: no such level; choose from {', '.join(LEVELS)}")


def _needs_importance(level: str) -> ConfigError:
    return ConfigError(
        f"space.quant={level}: llama.cpp makes this level only with an importance matrix; "
        "use IQ4_XS or Q3_K_M, or give a file of that level with model.path"
    )


def _make(source: Path, target: Path, level: str, threads: int) -> None:
    # The name is fixed, because the lock keeps others away. It overwrites the file of a killed run.
    partial = target.with_name(f".{level}.part")
    ftype = FILE_TYPE_BY_NAME[level]
    try:
        with WorkerProcess("sweeper.model.quantise_worker") as worker:
            job = {"source": str(source), "target": str(partial), "ftype": ftype, "threads": threads}
            size = worker.ask("size", _SIZE_TIMEOUT_SECONDS, **job)
            if size["needs_importance"]:  # of this model's tensors, though not of most models'
                raise _needs_importance(level)
            needed = int(size["mib"] * (1 << 20))
            demand_space(target.parent, needed, level, "leave the level out of space.quant")
            began = time.monotonic()
            answer = worker.ask("quantise", _TIMEOUT_SECONDS, **job)
        read_header(partial)  # check that the file is complete and a model
        notes = {"warnings": answer["warnings"], "seconds": time.monotonic() - began, "source": source.name}
        os.replace(partial, target)
        files.replace(target.with_suffix(".json"), json.dumps(notes, indent=1))
    except EngineRefused as refused:
        raise EngineRefused(f"cannot make {level} of {source.name}: {refused}", refused.log_tail) from None
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
