"""Plants the machines of tests/fixtures/sysfs into a folder, and lets their counters run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "sysfs"
MACHINES = tuple(sorted(path.stem for path in FIXTURES.glob("*.txt")))


def plant(machine: str, root: Path) -> Path:
    """The sysfs of a machine under ``root``; returns it."""
    for line in (FIXTURES / f"{machine}.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if " -> " in line:
            name, target = line.split(" -> ")
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        else:
            name, value = line.split(" = ")
            write(root / name, value)
    return root


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n", encoding="utf-8")


def as_plain_user(module: str, sensor: str, root: Path) -> str:
    """The error of opening a sensor on ``root`` as a user without rights, since the tests may run as root."""
    program = (
        f"import os, sys; from pathlib import Path; from {module} import {sensor}\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try: {sensor}(Path(sys.argv[1])).open()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = [sys.executable, "-B", "-c", program, str(root)]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


class RunningCounters:
    """Counters in µJ under given powers in W, with what they truly counted. They wrap as the kernel's do."""

    def __init__(
        self,
        watts: Mapping[Path, Callable[[float], float] | float],
        ranges_uj: Mapping[Path, int] | None = None,
    ) -> None:
        self._ranges = ranges_uj or {}
        self._watts = dict(watts)
        self._files = {path: os.open(path, os.O_RDWR) for path in watts}
        self._start = {path: int(path.read_text()) for path in watts}
        self.joules = dict.fromkeys(watts, 0.0)
        self._lock = threading.Lock()
        self._then = time.monotonic()
        self._began = self._then
        self.history: dict[Path, list[tuple[float, float]]] = {path: [(self._then, 0.0)] for path in watts}

    def step(self) -> None:
        """Bring the counters to now."""
        with self._lock:
            now = time.monotonic()
            for path, watts in self._watts.items():
                power = watts(now - self._began) if callable(watts) else watts
                self.joules[path] += power * (now - self._then)
                self.history[path].append((now, self.joules[path]))
                value = self._start[path] + round(self.joules[path] * 1e6)
                if path in self._ranges:
                    value %= self._ranges[path]
                # A fixed width, so that a reader never meets half a number.
                os.pwrite(self._files[path], f"{value:<20}\n".encode(), 0)
            self._then = now

    def truth(self, path: Path, started: float, ended: float) -> float:
        """Joules that truly flowed between two moments."""
        return _at(self.history[path], ended) - _at(self.history[path], started)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


def _at(history: list[tuple[float, float]], moment: float) -> float:
    for (t0, j0), (t1, j1) in pairwise(history):
        if t0 <= moment <= t1:
            return j0 + (j1 - j0) * (moment - t0) / (t1 - t0) if t1 > t0 else j0
    raise ValueError("moment outside the history")


@contextmanager
def running(
    watts: Mapping[Path, Callable[[float], float] | float],
    ranges_uj: Mapping[Path, int] | None = None,
    every_seconds: float = 0.005,
) -> Iterator[RunningCounters]:
    """Counters that run in a thread while the block runs."""
    counters = RunningCounters(watts, ranges_uj)
    counters.step()
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_seconds):
            counters.step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counters
    finally:
        stop.set()
        thread.join()
        counters.close()
