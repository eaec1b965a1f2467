"""The benchmark's synthetic models, each written by a process of its own while others are measured already."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_plan import Plan

from sweeper.errors import ModelMissingError, SweeperError
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic

_LOOK_SECONDS = 0.1


class Models:
    """Files by model and quantisation. Enter it with :func:`writing`."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._writers: dict[tuple[str, str], Any] = {}

    def path(self, name: str, quant: str) -> Path:
        """Where the model is, or will be."""
        return self._folder / f"{name}-{quant}.gguf"

    def start(self) -> None:
        """Begin to write what is not there yet."""
        spawn = multiprocessing.get_context("spawn")
        for name, (shape, quants) in self._plan.models.items():
            for quant in quants:
                path = self.path(name, quant)
                path.with_suffix(".error").unlink(missing_ok=True)
                if not path.exists():
                    writer = spawn.Process(target=_write, args=(shape, path, quant), daemon=True)
                    writer.start()
                    self._writers[name, quant] = writer

    def stop(self) -> None:
        """End writers that are still at it; they leave no half of a model behind."""
        for writer in self._writers.values():
            writer.terminate()
            writer.join()

    @property
    def being_written(self) -> int:
        """How many writers keep a core busy now."""
        return sum(writer.is_alive() for writer in self._writers.values())

    def wait(self, name: str, quant: str, seconds: float) -> Path:
        """The model's file, once it is whole.

        Raises:
            ModelMissingError: it could not be written, or not in ``seconds``.
        """
        path, until = self.path(name, quant), time.monotonic() + seconds
        while not path.exists():
            writer = self._writers[name, quant]
            if not writer.is_alive() and not path.exists():
                note = path.with_suffix(".error")
                why = note.read_text() if note.exists() else f"its writer ended with {writer.exitcode}"
                raise ModelMissingError(f"{path.name} was not written: {why}")
            if time.monotonic() >= until:
                raise ModelMissingError(f"{path.name} was not written within {seconds:.0f} s")
            time.sleep(_LOOK_SECONDS)
        return path


@contextmanager
def writing(plan: Plan, folder: Path) -> Iterator[Models]:
    """Models whose writers end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    models = Models(plan, folder)
    models.start()
    try:
        yield models
    finally:
        models.stop()


def _write(shape: ModelShape, path: Path, quant: str) -> None:
    try:
        write_synthetic(shape, path, quant, seed=0)
    except SweeperError as error:
        path.with_suffix(".error").write_text(str(error))
        sys.exit(1)
