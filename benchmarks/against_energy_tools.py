"""sweeper, CodeCarbon and Zeus on the same fake sensors at the same time: what truly flowed, what each says.

Each case plants a powercap tree whose counters run, and a fake NVIDIA driver; the tools are started side by
side and open and close a window on the same word. The tree is mounted over /sys/class in a mount namespace of
each tool's own, so that none of them is changed or pointed anywhere. Needs Linux, `unshare` with user namespaces, a
C compiler, and a Python that has both tools:

    python -m venv /tmp/tools && /tmp/tools/bin/pip install codecarbon zeus
    python benchmarks/against_energy_tools.py --tools-python /tmp/tools/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests/power"), str(HERE.parent / "tests/fake_nvml")]

from fake_nvml import RTX_4090, FakeNvml  # noqa: E402 (a helper of the tests, found just now)

CHILDREN = HERE / "energy_tool_children.py"
TOOLS = ("sweeper", "codecarbon", "zeus")
INTEL_RANGE, AMD_RANGE = 262_143_328_850, 65_532_610_987


@dataclass
class Zone:
    """One powercap zone: its place, its power in W over time, and where its counter stands at the start."""

    place: str
    name: str
    watts: Callable[[float], float] | float
    range_uj: int = INTEL_RANGE
    start_uj: int = 1_000_000_000
    mirrors: str | None = None


@dataclass
class Case:
    """A machine and what happens in the window."""

    title: str
    zones: list[Zone] = field(default_factory=list)
    counts: tuple[str, ...] = ()  # places whose energy is the truth
    gpu: str | None = None  # None, "plain", or "still": its counter stands still
    reset_after: float | None = None  # a counter starts again at 0 this long after the start
    seconds: float = 10.0
    knowable: bool = True


def cases() -> list[Case]:
    def varying(t: float) -> float:
        return 60.0 if int(t) % 3 else 25.0

    package = Zone("intel-rapl:0", "package-0", varying)
    return [
        Case("desktop package", [package], ("intel-rapl:0",)),
        Case(
            "package wraps in the window",
            [Zone("intel-rapl:0", "package-0", 50.0, start_uj=INTEL_RANGE - 300_000_000)],
            ("intel-rapl:0",),
        ),
        Case(
            "two sockets, both wrap",
            [
                Zone("intel-rapl:0", "package-0", 110.0, AMD_RANGE, AMD_RANGE - 700_000_000),
                Zone("intel-rapl:1", "package-1", 90.0, AMD_RANGE, AMD_RANGE - 200_000_000),
            ],
            ("intel-rapl:0", "intel-rapl:1"),
        ),
        Case(
            "laptop: package and psys",
            [
                Zone("intel-rapl:0", "package-0", 20.0),
                Zone("intel-rapl:1", "psys", 45.0, start_uj=5_000_000_000),
            ],
            ("intel-rapl:0",),
        ),
        Case(
            "package twice, MSR and MMIO",
            [package, Zone("intel-rapl-mmio:0", "package-0", 0.0, mirrors="intel-rapl:0")],
            ("intel-rapl:0",),
        ),
        Case(
            "two dies mirror one counter",
            [
                Zone("intel-rapl:0", "package-0-die-0", 80.0),
                Zone("intel-rapl:1", "package-0-die-1", 0.0, mirrors="intel-rapl:0"),
            ],
            ("intel-rapl:0",),
        ),
        Case(
            "counter reset in the window",
            [Zone("intel-rapl:0", "package-0", 50.0, start_uj=9_000_000_000)],
            ("intel-rapl:0",),
            reset_after=5.0,
            knowable=False,
        ),
        Case("GPU under a changing load", [package], gpu="plain"),
        Case("GPU, short window (1 s)", [package], gpu="plain", seconds=1.0),
        Case("GPU whose counter stands still", [package], gpu="still"),
    ]


class Tree:
    """A powercap tree as the kernel lays it out, whose counters run while ``step`` is called."""

    def __init__(self, root: Path, case: Case) -> None:
        self.case = case
        self.power = root / "powercap"
        for zone in case.zones:
            control = self.power / zone.place.split(":")[0]
            home = control / zone.place
            home.mkdir(parents=True)
            (home / "name").write_text(zone.name + "\n")
            (home / "max_energy_range_uj").write_text(f"{zone.range_uj}\n")
            (home / "energy_uj").write_text(f"{zone.start_uj:<20}\n")
            (home / "enabled").write_text("1\n")
            (self.power / zone.place).symlink_to(home.relative_to(self.power))
            if not (control / "subsystem").exists():
                (control / "subsystem").symlink_to("..")
        self.files = {z.place: os.open(self.power / z.place / "energy_uj", os.O_RDWR) for z in case.zones}
        self.began = self.then = time.monotonic()
        self.joules = {z.place: 0.0 for z in case.zones}
        self.offset = {z.place: z.start_uj for z in case.zones}
        self.history = {z.place: [(self.began, 0.0)] for z in case.zones}
        self.window_began: float | None = None
        self.was_reset = False

    def step(self) -> None:
        """Bring the counters to now."""
        now = time.monotonic()
        for zone in self.case.zones:
            watts = zone.watts(now - self.began) if callable(zone.watts) else zone.watts
            self.joules[zone.place] += watts * (now - self.then)
            self.history[zone.place].append((now, self.joules[zone.place]))
        self.then = now
        after = self.case.reset_after
        if after is not None and self.window_began and now - self.window_began > after and not self.was_reset:
            self.was_reset = True
            self.offset = {place: -round(joules * 1e6) for place, joules in self.joules.items()}
        for zone in self.case.zones:
            place = zone.mirrors or zone.place
            value = (self.offset[place] + round(self.joules[place] * 1e6)) % zone.range_uj
            os.pwrite(self.files[zone.place], f"{value:<20}\n".encode(), 0)

    def truth(self, started: float, ended: float) -> float:
        """What truly flowed between two moments, in J."""
        return sum(self._at(place, ended) - self._at(place, started) for place in self.case.counts)

    def _at(self, place: str, moment: float) -> float:
        points = self.history[place]
        for (t0, j0), (t1, j1) in pairwise(points):
            if t0 <= moment <= t1:
                return j0 + (j1 - j0) * (moment - t0) / max(t1 - t0, 1e-9)
        raise ValueError("moment outside the run")

    def close(self) -> None:
        """Let the counters go."""
        for descriptor in self.files.values():
            os.close(descriptor)


def start(
    tool: str, python: str, tree: Path, environment: dict[str, str], gpu: bool
) -> subprocess.Popen[str]:
    """The tool in a mount namespace of its own, in which /sys/class holds our tree."""
    place = "/sys/class/powercap"
    mount = f"mount -t tmpfs none /sys/class && mkdir {place} && mount --bind {tree}/powercap {place}"
    inner = f'{mount} && exec "$@"'
    words = ["unshare", "-rm", "sh", "-c", inner, "sh", python, str(CHILDREN), tool, "gpu" if gpu else "cpu"]
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def run(case: Case, tools: dict[str, str]) -> Answers:
    """For each tool: the truth over its window in J, its answer in J, and what it said."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tree = Tree(scratch, case)
        stack.callback(tree.close)
        environment = dict(os.environ)
        nvml = None
        if case.gpu:
            nvml = stack.enter_context(FakeNvml.create(scratch, [RTX_4090]))
            environment |= nvml.environment()
            # CodeCarbon asks for no NVIDIA GPU unless `nvidia-smi --help` runs, as it does beside a real driver.
            smi = scratch / "bin" / "nvidia-smi"
            smi.parent.mkdir()
            smi.write_text("#!/bin/sh\nexit 0\n")
            smi.chmod(0o755)
            environment["PATH"] = f"{smi.parent}:{environment['PATH']}"
            nvml.gpus[0].load(compute=0.2, memory=0.3)
            if case.gpu == "still":
                time.sleep(0.2)
                nvml.gpus[0].freeze_energy()
        children = {t: start(t, python, scratch, environment, bool(case.gpu)) for t, python in tools.items()}
        return _conduct(case, tree, nvml, children)


Answers = dict[str, tuple[float | None, float | None, str]]


def _conduct(
    case: Case, tree: Tree, nvml: FakeNvml | None, children: dict[str, subprocess.Popen[str]]
) -> Answers:
    """Run the counters; let every tool open and close its window; gather what they say."""
    chooser = selectors.DefaultSelector()
    for tool, child in children.items():
        chooser.register(child.stdout, selectors.EVENT_READ, tool)
    said: dict[str, list[dict]] = {tool: [] for tool in children}
    gpu_history: list[tuple[float, float]] = []
    told = opened = closed = None
    deadline = time.monotonic() + 90 + case.seconds
    while any(child.poll() is None for child in children.values()) and time.monotonic() < deadline:
        tree.step()
        now = time.monotonic()
        if nvml is not None:
            gpu_history.append((now, nvml.gpus[0].truth().energy_joules))
            if opened and not closed:
                prefill = int((now - opened) / 2) % 2 == 1
                nvml.gpus[0].load(compute=0.9 if prefill else 0.4, memory=0.4 if prefill else 1.0)
        for key, _ in chooser.select(timeout=0.005):
            line = key.fileobj.readline()
            if line:
                said[key.data].append(json.loads(line))
            else:
                chooser.unregister(key.fileobj)
        if told is None and _all_said(said, children, 1):
            told = now
            _tell(children, "open")
        elif opened is None and _all_said(
            said, children, 2
        ):  # the window counts from the slowest tool's start
            opened = tree.window_began = now
        elif opened is not None and closed is None and now - opened >= case.seconds:
            closed = now
            _tell(children, "close")
    result = {}
    for tool, child in children.items():
        child.kill()
        child.wait()
        final = said[tool][-1] if said[tool] else {"error": "did not start"}
        if "started" not in final:
            result[tool] = (None, None, final.get("error", "no answer"))
            continue
        started, ended = final["started"], final["ended"]
        truth = _between(gpu_history, started, ended) if nvml is not None else tree.truth(started, ended)
        result[tool] = (truth, final["joules"], final.get("said") or "")
    return result


def _all_said(said: dict[str, list[dict]], children: dict[str, subprocess.Popen[str]], lines: int) -> bool:
    return all(len(said[tool]) >= lines or child.poll() is not None for tool, child in children.items())


def _tell(children: dict[str, subprocess.Popen[str]], word: str) -> None:
    for child in children.values():
        if child.poll() is None:
            child.stdin.write(word + "\n")
            child.stdin.flush()


def _between(history: list[tuple[float, float]], started: float, ended: float) -> float:
    def at(moment: float) -> float:
        for (t0, j0), (t1, j1) in pairwise(history):
            if t0 <= moment <= t1:
                return j0 + (j1 - j0) * (moment - t0) / max(t1 - t0, 1e-9)
        raise ValueError("moment outside the run")

    return at(ended) - at(started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tools-python", help="a Python with codecarbon and zeus; without it only sweeper runs"
    )
    parser.add_argument("--only", help="run the cases whose title has this in it")
    chosen = parser.parse_args()
    tools = {"sweeper": sys.executable}
    if chosen.tools_python:
        tools |= {"codecarbon": chosen.tools_python, "zeus": chosen.tools_python}
    print("| case | truth | " + " | ".join(tools) + " |")
    print("|---|---|" + "---|" * len(tools))
    for case in cases():
        if chosen.only and chosen.only not in case.title:
            continue
        result = run(case, tools)
        truths = [truth for truth, _, _ in result.values() if truth is not None]
        middle = sorted(truths)[len(truths) // 2] if truths else None
        cells = [_cell(*result[tool]) for tool in tools]
        known = "not knowable" if not case.knowable else f"{middle:.0f} J" if middle else "?"
        if not case.knowable and middle:
            known += f" ({middle:.0f} J flowed)"
        print(f"| {case.title} | {known} | " + " | ".join(cells) + " |", flush=True)


def _cell(truth: float | None, answer: float | None, said: str) -> str:
    if answer is None:
        return f"none: {said}" if said else "none"
    off = f" ({(answer / truth - 1):+.1%})" if truth else ""
    return f"{answer:.0f} J{off}" + (f", {said}" if said else "")


if __name__ == "__main__":
    main()
