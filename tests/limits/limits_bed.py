"""A fake driver under this process, with folders of its own; sweeps on it that die; and what they leave."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_nvml import FakeNvml

from sweeper.limits.base import Action
from sweeper.limits.control import DeviceLimits, find_limits
from sweeper.limits.restore import Settle, restore
from sweeper.limits.rights import MeansSettings
from sweeper.power_settings import PowerSettings

DIRECT = MeansSettings(means="direct")


class Bed:
    """A fake driver under this process, a root, and folders of its own for locks and sysfs."""

    def __init__(self, nvml: FakeNvml, folder: Path) -> None:
        self.nvml = nvml
        self.root = folder / "mlruns"
        self.locks = folder / "locks"
        self.sysfs = folder / "sys"
        self.locks.mkdir()
        self.sysfs.mkdir()

    def find(self, root: Path | None = None, **changes: object) -> DeviceLimits:
        settings = PowerSettings(sysfs_root=str(self.sysfs), **changes)  # type: ignore[arg-type]
        return find_limits(root or self.root, settings, DIRECT, self.locks, environ={})

    def journals(self, root: Path | None = None) -> list[Path]:
        return list(((root or self.root) / "journal").glob("*.jsonl"))


@pytest.fixture
def bed(make_fake_nvml: Callable[..., FakeNvml], tmp_path: Path) -> Iterator[Callable[..., Bed]]:
    contexts = []

    def make(*models: object) -> Bed:
        nvml = make_fake_nvml(*models)
        context = nvml.in_process()
        context.__enter__()
        contexts.append(context)
        return Bed(nvml, tmp_path)

    yield make
    for context in contexts:
        context.__exit__(None, None, None)


def settled(here: Bed, settle: Settle | None = None) -> set[Action]:
    """What `sweeper restore --settle …` does with the limits."""
    return {outcome.action for outcome in restore(here.root, DIRECT, here.sysfs, here.locks, settle)}


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def die(limits: DeviceLimits, with_guardian: bool = True) -> int:
    """End a sweep in this process as kill -9 ends one: nothing is restored, and its files are closed.

    Returns the guardian's process id.
    """
    guardian, journal = limits._guardian, limits._journal
    assert guardian is not None
    assert journal is not None
    if with_guardian:
        os.kill(guardian.process.pid, signal.SIGKILL)
        guardian.process.wait()
    limits._locks.release()
    journal.close()
    guardian.abandon()
    limits._guardian = limits._journal = None  # so that leaving its block restores nothing
    return guardian.process.pid


def left_behind(here: Bed, root: Path) -> None:
    """A sweep that sets 200 W and 1500 MHz, and dies together with its guardian."""
    limits = here.find(root)
    limits.__enter__()
    limits.set("power_limit_watts", 200)
    limits.set("clock_limit_mhz", 1500)
    die(limits)
    assert here.nvml.gpus[0].power_limit_watts == 200
