"""However a sweep dies: are limits and clocks as found? Random moments of each way of dying, on a fake GPU.

    python benchmarks/limits_survive_kill.py            # the table of 100 moments each
    python benchmarks/limits_survive_kill.py -n 5 --seed 1

A small stand-in for a sweep enters ``LimitControl`` and sets caps and clocks without a pause, against the
fake NVML (or a folder that stands for RAPL's sysfs), with a driver that takes up to 5 ms for a set. It is
ended at a random moment. Nothing here touches a real device.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tests" / "fake_nvml")]

import psutil  # noqa: E402
from fake_nvml import RTX_4090, FakeNvml, build  # noqa: E402

from sweeper.limits.base import Action  # noqa: E402
from sweeper.limits.control import DeviceLimits, find_limits  # noqa: E402
from sweeper.limits.guardian import read_log  # noqa: E402
from sweeper.limits.journal import find_journals  # noqa: E402
from sweeper.limits.restore import restore  # noqa: E402
from sweeper.limits.rights import MeansSettings  # noqa: E402
from sweeper.power_settings import PowerSettings  # noqa: E402

# Sweeps are forked from a server that has imported everything: real processes, without half a second each.
FORKS = multiprocessing.get_context("forkserver")
DIRECT = MeansSettings(means="direct")
# Half of the moments fall from entering on, where journal and guardian are made; half among the sets.
LATEST_MOMENT_SECONDS = 0.5
PROMISE_SECONDS = 2.0
LATEST_SET_SECONDS = 1.5
PATIENCE_SECONDS = 30.0
FOREIGN_WATTS = 199.5  # sweeps set whole watts: this is never one of theirs
PACKAGE_FOUND_UW = {"constraint_0": 28_000_000, "constraint_1": 64_000_000}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one fake machine is."""

    root: Path
    locks: Path
    sysfs: Path
    environment: dict[str, str]


def standin(place: Place, source: str, die_at_write: int, said: Connection) -> None:
    """The sweep: what `sweeper sweep` does with limits, and nothing else. Says where it is."""
    _in_its_own_session(place)
    limits = find_limits(
        place.root, PowerSettings(source=source, sysfs_root=str(place.sysfs)), DIRECT, place.locks, environ={}
    )
    assert isinstance(limits, DeviceLimits)
    signal.signal(signal.SIGUSR1, _raise)
    if die_at_write:
        _die_between_journal_and_set(limits, die_at_write)
    worker = subprocess.Popen(["sleep", "60"])
    try:
        with limits:
            said.send(worker.pid)
            told = False
            while True:
                if worker.poll() is not None:
                    return  # the sweep goes on without it; here it ends, as it would after its last trial
                for name, bounds in limits.ranges().items():
                    free = random.random() < 0.1
                    limits.set(name, None if free else random.randint(bounds.low, bounds.high))
                    time.sleep(0.001)  # the machine has other work too
                if not told and limits._guardian is not None:
                    told = True
                    said.send("setting")
    finally:
        worker.kill()
        worker.wait()


def give_back(place: Place, said: Connection) -> None:
    """What `sweeper restore` does; sends the outcomes' actions."""
    _in_its_own_session(place)
    said.send([outcome.action for outcome in restore(place.root, DIRECT, place.sysfs, place.locks)])


def _in_its_own_session(place: Place) -> None:
    os.setsid()
    os.environ.update(place.environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # tracebacks of what dies on purpose
    random.seed()


def _raise(*_: object) -> None:
    raise RuntimeError("the sweep failed")


def _die_between_journal_and_set(limits: DeviceLimits, at: int) -> None:
    """The power goes: nothing that runs survives, and the last journal line was not followed by its set."""
    from sweeper.limits.nvml import ClockKnob, PowerKnob

    left = [at]
    for kind in (PowerKnob, ClockKnob):
        whole: Callable[..., None] = kind.write

        def write(knob: object, raw: int | None, whole: Callable[..., None] = whole) -> None:
            left[0] -= 1
            if left[0] == 0:
                assert limits._guardian is not None
                os.kill(limits._guardian.process.pid, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            whole(knob, raw)

        kind.write = write  # type: ignore[method-assign,assignment]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of dying. ``guarded``: a guardian lives, and gives back within ``promise_seconds``.

    ``removed``: someone removes the folder of runs first. ``late``: the last set takes effect after the death.
    """

    name: str
    guarded: bool
    source: str = "auto"
    foreign: bool = False
    at_write: bool = False
    removed: bool = False
    late: bool = False

    @property
    def promise_seconds(self) -> float:
        """A late set is found by the second look of the guardian."""
        return PROMISE_SECONDS + LATEST_SET_SECONDS + 1.0 if self.late else PROMISE_SECONDS


WAYS = (
    Way("kill -9 of the sweep", True),
    Way("kill -9 of the worker", True),
    Way("kill -9 of sweep and guardian", False),
    Way("Ctrl-C (SIGINT to sweep, worker, guardian)", True),
    Way("SIGTERM to sweep, worker, guardian", True),
    Way("SIGHUP (the terminal goes)", True),
    Way("an exception in the sweep", True),
    Way("power lost between journal and set", False, at_write=True),
    Way("kill -9 of the sweep, RAPL", True, source="rapl"),
    Way("kill -9 of sweep and guardian, RAPL", False, source="rapl"),
    Way("another tool sets a cap, then kill -9 of the sweep", True, foreign=True),
    Way("kill -9 of both, then another tool sets a cap", False, foreign=True),
    Way("journal removed, then kill -9 of the sweep", True, removed=True),
    Way("kill -9 of the sweep, its last limit shows late", True, late=True),
    Way("kill -9 of sweep and guardian, the last limit shows late", False, late=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One moment: what was in force when it died, and afterwards."""

    limited: bool  # a limit was in force at the death
    good: bool  # as found; or, where another tool set one, that one
    seconds: float  # from the death to good; only where a guardian lives
    problem: str = ""


class Scene:
    """One fake machine and one sweep on it."""

    def __init__(self, folder: Path, way: Way, seed: int) -> None:
        self.way = way
        self.random = random.Random(seed)
        self.root, self.locks, self.sysfs = folder / "mlruns", folder / "locks", folder / "sys"
        self.locks.mkdir()
        self.zone = self.sysfs / "class/powercap/intel-rapl:0"
        self.zone.mkdir(parents=True)
        for name, text in {"name": "package-0", "enabled": "1"}.items():
            (self.zone / name).write_text(text)
        for constraint, value in PACKAGE_FOUND_UW.items():
            (self.zone / f"{constraint}_power_limit_uw").write_text(str(value))
        self.nvml = FakeNvml.create(folder, [RTX_4090])
        self.gpu = self.nvml.gpus[0]
        self.found_watts = self.random.randint(250, 450)
        self.gpu.power_limit_watts = self.found_watts
        self.gpu.put(set_delay_us=self.random.randint(0, 5000))
        self.place = Place(self.root, self.locks, self.sysfs, self.nvml.environment())
        self.said, self._says = FORKS.Pipe(duplex=False)
        at = self.random.randint(1, 30) if way.at_write else 0
        self.process = FORKS.Process(target=standin, args=(self.place, way.source, at, self._says))

    def start(self) -> int:
        """Start the sweep, wait until it has entered; the worker's pid."""
        self.process.start()
        self._says.close()
        return int(self.said.recv())

    @property
    def pid(self) -> int:
        """The sweep's process."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self) -> None:
        """Until the sweep is gone."""
        self.process.join(PATIENCE_SECONDS)

    def guardians(self) -> list[int]:
        """The guardian's pid, where it runs: a child of the sweep whose command line names it."""
        found = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("sweeper.limits.guardian" in word for word in child.cmdline()):
                    found.append(child.pid)
        return found

    def as_found(self) -> bool:
        """Whether everything is as it was before the sweep."""
        package = {
            c: int((self.zone / f"{c}_power_limit_uw").read_text().split()[0]) for c in PACKAGE_FOUND_UW
        }
        watts = self.gpu.power_limit_watts
        return (watts, self.gpu.locked_clocks_mhz, package) == (self.found_watts, None, PACKAGE_FOUND_UW)

    def as_it_should_be(self) -> bool:
        """As found; where another tool set a cap, that cap and free clocks."""
        if self.way.foreign:
            return (self.gpu.power_limit_watts, self.gpu.locked_clocks_mhz) == (FOREIGN_WATTS, None)
        return self.as_found()

    def limited(self) -> bool:
        """Whether something is below what was found."""
        return not self.as_found()

    def restore(self) -> list[Action]:
        """What `sweeper restore` does, in a process of its own."""
        said, says = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=give_back, args=(self.place, says))
        process.start()
        says.close()
        actions: list[Action] = said.recv()
        process.join(PATIENCE_SECONDS)
        return actions

    def close(self) -> None:
        """End what still runs."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.wait()
        self.said.close()
        self.nvml.close()


def die(scene: Scene, worker: int) -> None:
    """End the sweep in its way, now."""
    sweep, name = scene.pid, scene.way.name
    if name == "kill -9 of the worker":
        os.kill(worker, signal.SIGKILL)
    elif name == "an exception in the sweep":
        os.kill(sweep, signal.SIGUSR1)
    elif "guardian" in name or "both" in name:
        number = next((n for word, n in SIGNALS.items() if word in name), signal.SIGKILL)
        if number is signal.SIGKILL:
            os.kill(sweep, signal.SIGSTOP)  # no guardian is born between looking and killing
        for pid in (*scene.guardians(), sweep, worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    elif "SIGHUP" in name:
        for pid in (*scene.guardians(), sweep, worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
    else:
        os.kill(sweep, signal.SIGKILL)


SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}


def one_moment(way: Way, seed: int) -> Outcome:
    """Start a sweep, end it at a random moment, and look."""
    with tempfile.TemporaryDirectory(prefix="sweeper-kill-", ignore_cleanup_errors=True) as folder:
        scene = Scene(Path(folder), way, seed)
        try:
            return _watch(scene)
        finally:
            scene.close()


def _watch(scene: Scene) -> Outcome:
    worker, way = scene.start(), scene.way
    if way.at_write:
        scene.wait()
        limited, capped = scene.limited(), False
    else:
        if scene.random.random() < 0.5:
            with contextlib.suppress(EOFError):
                scene.said.recv()  # it has begun to set
        time.sleep(scene.random.uniform(0, LATEST_MOMENT_SECONDS))
        if way.foreign:
            os.kill(scene.pid, signal.SIGSTOP)  # or it would notice, and set nothing more
        limited, capped = scene.limited(), scene.gpu.power_limit_watts != scene.found_watts
        if way.foreign and way.guarded:
            scene.gpu.power_limit_watts = FOREIGN_WATTS
        if way.removed:
            shutil.rmtree(scene.root, ignore_errors=True)
        if way.late:
            scene.gpu.come_late(scene.random.uniform(0.01, LATEST_SET_SECONDS))
            time.sleep(scene.random.uniform(0, 0.02))
        die(scene, worker)
    died = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    if way.guarded:
        return _watch_guardian(scene, died, limited, capped)
    scene.wait()
    if way.foreign:
        scene.gpu.power_limit_watts = FOREIGN_WATTS
    actions = scene.restore()
    while scene.gpu.get("late_due_ns"):
        time.sleep(0.01)
    told = Action.LEFT_ALONE in actions if way.foreign else Action.LEFT_ALONE not in actions
    good = scene.as_it_should_be() and Action.FAILED not in actions and (told or (way.foreign and not capped))
    return Outcome(limited, good, 0.0, "" if good else f"{_state(scene)} {actions}")


def _watch_guardian(scene: Scene, died: float, limited: bool, capped: bool) -> Outcome:
    """Wait until sweep or guardian have given back, and another tool's cap is reported.

    The time counts until the limits are back for good. Sweep and guardian look again later before they end.
    """
    back: float | None = None
    while not (over := _given_back(scene, capped)):
        if time.monotonic() - died > PATIENCE_SECONDS:
            break
        back = (back or time.monotonic()) if scene.as_it_should_be() else None
        time.sleep(0.002)
    return Outcome(limited, over, (back or time.monotonic()) - died, "" if over else _state(scene))


def _given_back(scene: Scene, capped: bool) -> bool:
    if scene.process.is_alive() or not scene.as_it_should_be():
        return False
    if scene.way.late and (scene.gpu.get("late_due_ns") or find_journals(scene.root)):
        return False  # as found only until the limit appears
    # Without a set before the death there is nothing to report.
    return not (scene.way.foreign and capped) or any("left alone" in line for line in read_log(scene.root))


def _state(scene: Scene) -> str:
    return f"{scene.gpu.power_limit_watts} W (found {scene.found_watts}), {scene.gpu.locked_clocks_mhz}"


def table(
    moments: int, seed: int, jobs: int, ways: tuple[Way, ...] = WAYS
) -> list[tuple[Way, list[Outcome]]]:
    """All ways, ``moments`` each, in threads that wait for processes."""
    rows = []
    start_server()
    with ThreadPoolExecutor(jobs) as pool:
        for number, way in enumerate(ways):
            seeds = [seed + 1000 * number + moment for moment in range(moments)]
            rows.append((way, list(pool.map(one_moment, [way] * moments, seeds))))
            print(row(way, rows[-1][1]), flush=True)
    return rows


def start_server() -> None:
    """The loader reads LD_LIBRARY_PATH when a program starts: the server must have the fake driver's."""
    from multiprocessing import forkserver

    library = str(build())
    paths = {"LD_LIBRARY_PATH": library, "PYTHONPATH": os.pathsep.join(sys.path)}
    before = {name: os.environ.get(name) for name in paths}
    os.environ.update(paths)
    FORKS.set_forkserver_preload(["limits_survive_kill"])
    forkserver.ensure_running()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def row(way: Way, outcomes: list[Outcome]) -> str:
    """One line of the table."""
    good = sum(outcome.good for outcome in outcomes)
    limited = sum(outcome.limited for outcome in outcomes)
    times = [outcome.seconds for outcome in outcomes]
    late = sum(seconds > way.promise_seconds for seconds in times)
    by = (
        f"guardian or sweep, {max(times):.2f} s at most" if way.guarded else "next start or `sweeper restore`"
    )
    wrong = "; ".join(sorted({outcome.problem for outcome in outcomes if outcome.problem})[:3])
    expected = "other tool's kept" if way.foreign else "as found"
    late_text = f", {late} later than {way.promise_seconds:g} s" if late else ""
    return f"| {way.name} | {len(outcomes)} | {limited} | {good} {expected} | {by}{late_text} |" + (
        f" WRONG: {wrong}" if wrong else ""
    )


def main() -> int:
    """Print the table; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", "--moments", type=int, default=100, help="random moments of each way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="sweeps that run at the same time")
    options = parser.parse_args()
    print("| how it dies | moments | limited at that moment | afterwards | given back by |")
    print("|---|---|---|---|---|")
    rows = table(options.moments, options.seed, options.jobs)
    kept = [one.good and one.seconds <= way.promise_seconds for way, many in rows for one in many]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
