"""Step (d): a real sweep on the card, prepared as by `sweeper sweep`, and its report.

It needs mlflow, optuna and hydra; the other steps do not, and this module imports them where they are used.
"""

from __future__ import annotations

import importlib.util
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from gpu_bench import Bench, shortened
from gpu_record import Deadline, OutOfTime, StepFile

from sweeper.errors import NoResultError
from sweeper.records import SweepRecord

NEEDED = ("mlflow", "optuna", "hydra", "omegaconf", "matplotlib", "scipy")
NAME = "gpu"
_TEXTS = (".html", ".md", ".json", ".csv", ".yaml")
_LEAST_SECONDS = 20.0  # importing mlflow, and a first trial


def missing_packages() -> tuple[str, ...]:
    """What this step needs and this Python does not have."""
    return tuple(name for name in NEEDED if importlib.util.find_spec(name) is None)


def run(bench: Bench, step: StepFile, deadline: Deadline) -> None:
    """Sweep, or go on with the sweep; conclude when time is up. The report is copied at each conclusion.

    Raises:
        OutOfTime: the sweep was concluded early; the next run of the command goes on with it.
    """
    deadline.demand(_LEAST_SECONDS if bench.plan.name == "whole" else 0.0)
    name = bench.plan.table_model
    path = bench.models.wait(name, bench.plan.models[name][1][0], deadline.left_seconds)
    record = _swept(bench, path, deadline)
    report = bench.work / "mlruns" / "reports" / NAME
    _copy(report, bench.out / "report", _private(bench))
    states = [trial.state for trial in record.trials]
    step.data |= {
        "sweep_state": record.state,
        "stopped_because": record.stopped_because,
        "trials": len(states),
        "by_state": {state: states.count(state) for state in sorted(set(states))},
        "space": record.space,
        "front": [_of_trial(record, number) for number in record.front],
        "baseline": None if record.baseline is None else _of_trial(record, record.baseline),
        "recommended": record.recommended,
        "report": sorted(file.name for file in (bench.out / "report").iterdir()),
    }
    if record.state != "complete":
        raise OutOfTime(f"{len(states)} trials are done: {record.stopped_because}")


def _swept(bench: Bench, path: Path, deadline: Deadline) -> SweepRecord:
    from sweeper.config import compose
    from sweeper.lab.simulated_power import SimulatedLimits
    from sweeper.prepare import prepared
    from sweeper.report.progress import Progress

    overrides = [
        f"name={NAME}",
        f"root='{bench.work / 'mlruns'}'",
        f"model.path='{path}'",
        "power=nvml",
        f"power.device={bench.uuid}",
        "search=quick",
        "search.minutes=null",
        "workload=quick",
        "space.type_k=f16",  # what changes quality would have to be judged first, which takes its time
        "space.type_v=f16",
        "space.power_limit_watts=null",
        "space.clock_limit_mhz=null",
        *bench.plan.sweep_overrides,
    ]
    # What finds and sets limits is replaced by what has none: no path through the code can reach the card's
    # settings, whatever the configuration says.
    nothing = SimulatedLimits({})
    with (
        mock.patch("sweeper.limits.control.find_limits", return_value=nothing),
        mock.patch("sweeper.sweep.Sweep._confirm"),  # when time is up, no visits follow: the next run goes on
        prepared(compose(overrides), lambda *_: Progress(), lambda line: print(f"sweep: {line}")) as sweep,
    ):
        conclude = threading.Timer(deadline.left_seconds, lambda: setattr(sweep.stop, "set_by_hand", True))
        conclude.daemon = True
        conclude.start()
        try:
            return sweep.run()
        except NoResultError as error:
            if sweep.stop.set_by_hand:
                raise OutOfTime(f"the sweep was concluded before a trial counted ({error})") from None
            raise
        finally:
            conclude.cancel()


def _of_trial(record: SweepRecord, number: int) -> dict[str, Any]:
    trial = record.trial(number)
    figures = {
        name: trial.metrics[name].median for name in ("tokens_per_second", "watts") if name in trial.metrics
    }
    changed = {key: getattr(trial.configuration, key) for key in record.space}
    return {"trial": number, "remeasured": trial.remeasured, **figures, "configuration": changed}


def _private(bench: Bench) -> Mapping[str, str]:
    """What a report says that is nobody's business, and what stands for it."""
    return {str(bench.work.resolve()): "WORK", str(bench.work): "WORK", bench.uuid: shortened(bench.uuid)}


def _copy(source: Path, target: Path, words: Mapping[str, str]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.suffix in _TEXTS:
            text = file.read_text(encoding="utf-8")
            for word, instead in words.items():
                text = text.replace(word, instead)
            (target / file.name).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(file, target / file.name)
