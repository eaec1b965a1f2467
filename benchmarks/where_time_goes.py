"""Where the seconds of a real sweep go, from the start of the process to the end of the report.

    python benchmarks/where_time_goes.py --root /tmp/time [WORDS OF `sweeper sweep`; default: experiment=quick]

A display that shows nothing notes each phase, and the calls that measure, choose and write are timed. The last lines
say how much of the time is neither load, warm-up, filling nor window: that is what sweeper itself costs. Preparation
is named apart, since models and their quality are kept for the next sweep.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from sweeper.config import compose
from sweeper.prepare import prepared
from sweeper.records import Configuration, TrialRecord
from sweeper.report.heartbeat import GOES_ON
from sweeper.report.progress import Progress
from sweeper.sweep import Sweep

PREPARING = "preparation: "
MEASURING = ("load", "warm-up", "filling", "at rest", "prefill", "decode")
WAITING = "waiting"
BETWEEN = "between trials: the rest"
# Calls that have a name of their own, by the object that has them.
OF_STUDY = {
    "ask": "choosing a trial (sampler and study)",
    "tell": "keeping a trial in the study",
    "save_visit": "keeping a visit in the study",
}
OF_TRACKER = ("sweep_started", "trial_finished", "sync", "sweep_finished")


class Ledger(Progress):
    """Adds each second to the name of what goes on. The display's events and timed calls change the name."""

    def __init__(self) -> None:
        began = psutil.Process().create_time() - time.time()  # a difference of two readings of one clock
        self._since = time.monotonic() + began
        self._name = "starting Python and importing"
        self._inside = False
        self.seconds: Counter[str] = Counter()
        self.first_trial_seconds: float | None = None

    def on(self, name: str) -> str:
        """From now on ``name`` goes on; returns what went on before."""
        now, before = time.monotonic(), self._name
        self.seconds[before] += now - self._since
        self._since, self._name = now, name
        return before

    def say(self, line: str) -> None:
        """A line of the preparation."""
        name, goes_on, _ = line.partition(GOES_ON)
        self.on(PREPARING + (name if goes_on else f"after “{name[:50]}”"))

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """``name`` goes on in this block, and then again what went on before."""
        before, self._inside = self.on(name), True
        try:
            yield
        finally:
            self._inside = False
            self.on(before)

    def timed(self, call: Callable[..., Any], name: Callable[[], str]) -> Callable[..., Any]:
        """``call``, whose time goes to the name that ``name`` gives when it begins."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.during(name()):
                return call(*args, **kwargs)

        return timed

    def window(self, phase: str) -> str:
        """The name of an engine's call: a warm-up prefills and decodes, too."""
        return "warm-up" if self._name == "around warm-up" else phase

    def phase(self, name: str, speed: float | None = None, watts: float | None = None) -> None:
        """A phase begins; the calls of the engine within it have names of their own."""
        if self._inside:  # a call that tells how far it is
            return
        kind = re.split(r" \d|[:,]", name)[0]
        is_call = kind in MEASURING and kind != "at rest"
        self.on(WAITING if kind.startswith("waiting") else f"around {kind}" if is_call else kind)

    def trial_started(self, number: int, total: int, configuration: Configuration) -> None:
        """Nothing has a name yet."""
        self.on(BETWEEN)

    def trial_finished(self, trial: TrialRecord) -> None:
        """The first trial is the first answer that was measured."""
        if self.first_trial_seconds is None:
            self.first_trial_seconds = self.seconds.total() + time.monotonic() - self._since
        self.on(BETWEEN)


def watched(sweep: Sweep, ledger: Ledger) -> None:
    """Give the calls of a sweep that take time a name in the ledger."""
    for phase, call in (("load", "load"), ("prefill", "prefill"), ("decode", "decode"), ("filling", "fill")):
        if hasattr(sweep.engine, call):
            name = (lambda p=phase: p) if call in ("load", "fill") else (lambda p=phase: ledger.window(p))
            setattr(sweep.engine, call, ledger.timed(getattr(sweep.engine, call), name))
    for call, name in OF_STUDY.items():
        setattr(sweep.study, call, ledger.timed(getattr(sweep.study, call), lambda n=name: n))
    for call in OF_TRACKER:
        setattr(sweep.tracker, call, ledger.timed(getattr(sweep.tracker, call), lambda: "writing to MLflow"))
    sweep.quality = ledger.timed(sweep.quality, lambda: "measuring quality")
    sweep.forecast = ledger.timed(sweep.forecast, lambda: "forecasting memory")
    sweep.write_report = ledger.timed(sweep.write_report, lambda: "writing the report")


def main() -> None:
    ledger = Ledger()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("words", nargs="*", default=["experiment=quick"])
    arguments = parser.parse_args()
    ledger.on(PREPARING + "composing the configuration")
    composed = compose([*arguments.words, f"root='{arguments.root}'"])
    with prepared(composed, lambda *_: ledger, ledger.say) as sweep:
        watched(sweep, ledger)
        ledger.on(BETWEEN)
        record = sweep.run()
        ledger.on("closing")
    ledger.on("")
    show(ledger)
    print(f"{len(record.trials)} trials; pick: #{record.recommended}")


def show(ledger: Ledger) -> None:
    whole = ledger.seconds.total()
    print("| what goes on | s | share |\n|---|---|---|")
    for name, seconds in ledger.seconds.most_common():
        print(f"| {name} | {seconds:.2f} | {seconds / whole:.1%} |")
    prepared_seconds = sum(
        s for name, s in ledger.seconds.items() if name.startswith((PREPARING, "starting"))
    )
    measured = sum(ledger.seconds[name] for name in MEASURING)
    waited = ledger.seconds[WAITING]
    own = whole - prepared_seconds - measured - waited
    print(f"\n{whole:.1f} s in all; the first trial ended after {ledger.first_trial_seconds or 0:.1f} s")
    print(f"preparation {prepared_seconds:.1f} s, waiting for quiet {waited:.1f} s")
    print(f"load, warm-up, filling and windows {measured:.1f} s")
    print(
        f"sweeper's own {own:.1f} s: {own / (whole - prepared_seconds - waited):.1%} of the time after preparation"
    )


if __name__ == "__main__":
    main()
