"""Whether a sweep's results still hold: compares machine, driver, engine and model with the record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from sweeper.errors import ModelMissingError, StaleRecordError, StoreError
from sweeper.records import EngineRecord, MachineRecord, ModelFile, SweepRecord, TrialRecord

# The parts of a fingerprint that people recognise. Drivers of GPUs are compared separately.
_MACHINE_WORDS = ("cpu", "physical_cores", "logical_cores", "memory_mib", "kernel")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, about 1 s a GB.

    Raises:
        StoreError: where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"cannot read the model {path}: {error.strerror}") from error


def model_file(record: SweepRecord, trial: TrialRecord) -> ModelFile:
    """The model file that the trial ran.

    Raises:
        StaleRecordError: where the record holds no file of the trial's quantisation.
    """
    try:
        return record.model.file(trial.configuration.quant)
    except KeyError:
        raise StaleRecordError(
            f"sweep {record.sweep!r} holds no model file of {trial.configuration.quant}: run the sweep again"
        ) from None


def require_fresh(
    record: SweepRecord,
    trial: TrialRecord,
    machine: MachineRecord,
    engine: EngineRecord,
    *,
    force: bool = False,
    digest: Callable[[Path], str] = sha256_of,
) -> tuple[str, ...]:
    """What changed since the sweep, in words; empty if its results still hold.

    The model's SHA-256 is computed only where its size is right, since that takes seconds.

    Raises:
        StaleRecordError: names everything that changed, unless ``force`` lets it pass.
        ModelMissingError: the model file is gone, whatever ``force`` says.
    """
    found = [*_machine(record.machine, machine), *_engine(record.engine, engine)]
    if not record.engine.simulated:
        found += _model(model_file(record, trial), digest)
    if found and not force:
        raise StaleRecordError(
            f"sweep {record.sweep!r} no longer describes this machine: {'; '.join(found)}. "
            "Run the sweep again, or pass --force to use it anyway"
        )
    return tuple(found)


def _machine(then: MachineRecord, now: MachineRecord) -> list[str]:
    found = []
    drivers = {gpu.uuid: gpu.driver for gpu in now.gpus}
    for gpu in then.gpus:
        if gpu.uuid not in drivers:
            found.append(f"{gpu.name} ({gpu.uuid}) is not in this machine")
        elif drivers[gpu.uuid] != gpu.driver:
            found.append(f"the driver of {gpu.name} was {gpu.driver} and is {drivers[gpu.uuid]}")
    known = {gpu.uuid for gpu in then.gpus}
    found += [f"{gpu.name} ({gpu.uuid}) is new" for gpu in now.gpus if gpu.uuid not in known]
    if then.fingerprint == now.fingerprint:
        return found
    words = [
        f"{word} was {getattr(then, word)} and is {getattr(now, word)}"
        for word in _MACHINE_WORDS
        if getattr(then, word) != getattr(now, word)
    ]
    if not found and not words:
        words = [f"the machine's fingerprint was {then.fingerprint} and is {now.fingerprint}"]
    return found + words


def _engine(then: EngineRecord, now: EngineRecord) -> list[str]:
    return [
        f"the engine's {field.name} was {getattr(then, field.name)!r} and is {getattr(now, field.name)!r}"
        for field in fields(EngineRecord)
        if getattr(then, field.name) != getattr(now, field.name)
    ]


def _model(then: ModelFile, digest: Callable[[Path], str]) -> list[str]:
    path = Path(then.path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelMissingError(
            f"the model {path} cannot be read ({error.strerror}): put it back, or run the sweep again"
        ) from error
    if size != then.size_bytes:
        return [f"the model {path} had {then.size_bytes} bytes and has {size}"]
    now = digest(path)
    if now != then.sha256:
        return [f"the model {path} has another content (SHA-256 {then.sha256[:12]}…, now {now[:12]}…)"]
    return []
