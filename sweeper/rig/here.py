"""What the rigs of real engines share: this machine with its load, meter and limits, and the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sweeper import machine
from sweeper.config import Settings
from sweeper.limits.control import DeviceLimits
from sweeper.measure.disturbance import MachineLoad, Watch
from sweeper.meter.base import PowerMeter
from sweeper.model.hub import stated_digest
from sweeper.model.obtain import obtain, synthetic_path
from sweeper.nvml import cuda_variables
from sweeper.records import MachineRecord, ModelRecord
from sweeper.search.study import SweepStudy, demand_same_model, other_model, sweep_names

NOT_QUIET = "the machine is not quiet: {}"


def look_around(
    settings: Settings, held: ExitStack, say: Callable[[str], None]
) -> tuple[MachineLoad, str | None]:
    """The load of this machine, and a note if it is busy.

    Call it first of all, because a download or a quality check may take minutes.
    """
    held.enter_context(cuda_variables(settings.engine.environment))
    load = MachineLoad()
    busy = Watch(load, elsewhere=load.elsewhere).look()
    if busy:
        say(busy := NOT_QUIET.format(busy))
    return load, busy


def obtained(settings: Settings, root: Path, say: Callable[[str], None]) -> ModelRecord:
    """The model, downloaded or written if need be.

    Raises:
        ConfigError: the sweep ``settings.name`` was started with another model, or as `obtain`.
        ModelMissingError, ModelFileError, StoreError: as `obtain`.
    """
    name, kept = settings.name, None
    if name and (root / "optuna.db").exists() and name in sweep_names(root):
        kept = SweepStudy.load(root, name).header().model
        _demand_same_source(name, kept, settings, root)
    fetches = settings.model.repo and not settings.model.path
    if fetches:
        say(f"downloading {settings.model.file} of {settings.model.repo} …")
    model = obtain(settings.model, root, say)
    if fetches:
        say(f"{model.name} is here")
    if name and kept is not None:
        demand_same_model(name, kept, model)
    return model


def _demand_same_source(sweep: str, kept: ModelRecord, settings: Settings, root: Path) -> None:
    """Raise ConfigError if the model is another one, as far as that is known before it is made or downloaded.

    The name of a synthetic model's file contains a digest of what is in it, and a hub states the digests of its files.
    """
    wanted, file = settings.model, kept.file(None)
    had = Path(file.path).name or kept.name
    if wanted.path:
        return  # its content decides
    if wanted.repo:
        known_to_differ = kept.source == "synthetic" or stated_digest(
            wanted.repo, wanted.file, wanted.revision
        ) not in (None, file.sha256)
        if known_to_differ:
            new = f"{wanted.file or 'the model'} of {wanted.repo}"
            if kept.repo == wanted.repo and had == Path(wanted.file or had).name:
                new += f" at another commit (model.revision={kept.revision} is the one that it began with)"
            raise other_model(sweep, had, new)
    elif wanted.shape and had != (new := synthetic_path(wanted, root).name):
        raise other_model(sweep, had, new)


def meter_and_limits(
    settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None], gpu_offload: bool
) -> tuple[PowerMeter, tuple[str, ...], DeviceLimits]:
    """The open meter with its notes, and the limits, which are restored when ``held`` closes."""
    from sweeper.meter.choose import find_meter

    meter, notes = find_meter(settings.power, root, gpu_offload)
    held.enter_context(meter)
    limits = enter_limits(settings, root, held, say)
    return meter, notes, limits


def enter_limits(settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None]) -> DeviceLimits:
    """The limits. It tells what was restored of an earlier run's, and at the end what was restored of this one's."""
    from sweeper.limits.control import find_limits

    limits = find_limits(root, settings.power)
    for outcome in limits.replayed:
        say(f"from an earlier run: {outcome}")

    @held.callback  # after the limits were restored
    def say_outcomes() -> None:
        for outcome in limits.outcomes:
            say(str(outcome))

    return held.enter_context(limits)


def this_machine() -> MachineRecord:
    """The record of this machine with its memory bandwidth, which takes a second to measure."""
    bandwidth = machine.measure_bandwidth_gb_per_second()
    return replace(machine.examine(), memory_bandwidth_gb_per_second=bandwidth)
