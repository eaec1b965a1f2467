"""Whether a sweep's results still hold: compares machine, driver, engine and model with the record."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

from sweeper.errors import ModelMissingError, StaleRecordError
from sweeper.model.digest import combined
from sweeper.model.header import split_names
from sweeper.records import EngineRecord, MachineRecord, ModelFile, SweepRecord, TrialRecord

# The parts of a fingerprint that people recognise. Drivers of GPUs are compared separately.
_MACHINE_WORDS = ("cpu", "physical_cores", "logical_cores", "cpu_quota", "memory_mib", "kernel")


def model_file(record: SweepRecord, trial: TrialRecord) -> ModelFile:
    """The model file that the trial ran. Raises StaleRecordError if the record holds no such file."""
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
) -> tuple[str, ...]:
    """What changed since the sweep, in words; empty if its results still hold.

    The model's SHA-256 is computed only where its size is right, since that takes seconds.

    Raises:
        StaleRecordError: names everything that changed, unless ``force`` lets it pass.
        ModelMissingError: the model file is gone, whatever ``force`` says.
    """
    found = _machine(record.machine, machine)
    for name in (field.name for field in fields(EngineRecord)):
        then, now = getattr(record.engine, name), getattr(engine, name)
        if then != now:
            found.append(f"the engine's {name} was {then!r} and is {now!r}")
    if not record.engine.simulated:
        found += _model(model_file(record, trial))
        draft = record.model.draft_file(trial.configuration)
        found += [] if draft is None else _model(draft, "the draft model")
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
    values = [(word, getattr(then, word), getattr(now, word)) for word in _MACHINE_WORDS]
    found += [f"{word} was {old} and is {new}" for word, old, new in values if old != new]
    return found or [f"the machine's fingerprint was {then.fingerprint} and is {now.fingerprint}"]


def _model(then: ModelFile, what: str = "the model") -> list[str]:
    path = Path(then.path)
    try:
        whole = path.stat().st_size == then.size_bytes
        parts = [path] if whole else [path.with_name(name) for name in split_names(path.name) or [path.name]]
        size = sum(part.stat().st_size for part in parts)
        if size != then.size_bytes:
            return [f"{what} {path} had {then.size_bytes} bytes and has {size}"]
        now = combined([_sha256_of(part) for part in parts])
    except OSError as error:
        raise ModelMissingError(
            f"{what} {error.filename or path} cannot be read ({error.strerror}): put it back, or run the sweep again"
        ) from error
    if now != then.sha256:
        return [f"{what} {path} has another content (SHA-256 {then.sha256[:12]}…, now {now[:12]}…)"]
    return []


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
