"""Plain Optuna: its default sampler over sweeper's space with llama-bench as the objective, for sweeper's seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from by_sweeper import SWEEP, root_of
from contest import Claim, Contestant, NoAnswer, Outcome, Pick, Rules
from picks import judged
from programs import bench, starts_in

from sweeper.search.study import SweepStudy

NAME, BESIDE = "plain-tpe", "sweeper"
_REPEATS = 3


def play(rules: Rules, folder: Path, run: int) -> Outcome:
    beside = rules.outcome(BESIDE, run)
    if beside is None or beside.state != "answered":
        raise NoAnswer(
            f"run {run} of {BESIDE} gives this contestant its time and its space, and has no answer"
        )
    space = SweepStudy.load(root_of(rules.folder(BESIDE, run)), SWEEP).header().space
    distributions = {name: distribution(values) for name, values in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=run - 1))
    environment, began = rules.environment(folder), time.monotonic()
    failures = []
    while time.monotonic() - began < beside.seconds:
        trial = study.ask(distributions)
        try:
            speed = bench(
                rules.wrappers / "llama-bench",
                str(rules.model),
                judged(trial.params),
                generated=rules.generated_tokens,
                repeats=_REPEATS,
                environment=environment,
            )
        except NoAnswer as failed:  # a combination that llama.cpp refuses
            failures.append(str(failed))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        study.tell(trial, speed)
    seconds = time.monotonic() - began
    launches, asks = starts_in(folder)
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise NoAnswer(f"no trial of {NAME} ran: {failures[-1] if failures else 'there was no time'}")
    return Outcome(
        contestant=NAME,
        run=run,
        state="answered",
        seconds=seconds,
        pick=Pick(str(rules.model), judged(study.best_params)),
        claim=Claim(
            study.best_value, "llama-bench", f"measured, tg{rules.generated_tokens}, {_REPEATS} repeats"
        ),
        launches=launches,
        asks=asks,
        notes=(f"{len(complete)} trials", f"{len(failures)} refused"),
    )


def distribution(values: Any) -> optuna.distributions.BaseDistribution:
    """Optuna's distribution of a parameter as a sweep's record describes it."""
    if isinstance(values, Mapping):
        return optuna.distributions.IntDistribution(values["low"], values["high"], step=values["step"])
    return optuna.distributions.CategoricalDistribution(tuple(values))


CONTESTANTS = (Contestant(NAME, play, needs=(BESIDE,)),)
