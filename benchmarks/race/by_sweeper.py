"""sweeper itself: the sweep, and the apply that prints the command."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contest import Claim, Contestant, Early, NoAnswer, Outcome, Pick, Question, Rules
from picks import options_of_configuration, options_of_words
from programs import HERE, REPOSITORY, Ran, last_line, starts_in, timed

from sweeper.errors import NoResultError
from sweeper.model.header import read_header
from sweeper.overrides import literal
from sweeper.records import SweepRecord
from sweeper.results.assemble import assemble
from sweeper.results.picks import choose
from sweeper.search.study import SweepStudy

SWEEP = "race"
QUANTS = "space.quant=[Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K]"  # the levels that fituna tries
_NEAREST = re.compile(r"use --pick (\d+)")


def root_of(folder: Path) -> Path:
    """Where a run keeps its sweep."""
    return folder / "mlruns"


def play(rules: Rules, folder: Path, run: int, name: str, words: list[str], model: Path) -> Outcome:
    """Sweep into an empty folder, so that nothing was learned before, and preview the apply."""
    root, began = root_of(folder), datetime.now(UTC)
    environment = {**rules.environment(folder), "PYTHONPATH": str(REPOSITORY)}
    program = [sys.executable, str(HERE / "counted_sweeper.py")]
    sweep = [f"model.path={literal(str(model))}", f"root={literal(str(root))}", f"name={SWEEP}", *words]
    # As shipped, every run has the same seed. A changed one shows whether the answer depends on it.
    sweep.append(f"search.seed={run - 1}")
    ran = timed([*program, "sweep", *sweep], folder / "output.log", environment, rules.cap_seconds)
    apply = [*program, "apply", SWEEP, "--root", str(root), "--folder", str(folder), "--json"]
    applied = timed(apply, folder / "apply.json", environment, rules.cap_seconds)
    seconds, nearest = ran.seconds + applied.seconds, _NEAREST.search(applied.output)
    if nearest is not None:  # as apply advises if no trial reaches the target
        applied = timed([*apply, "--pick", nearest[1]], folder / "apply.json", environment, rules.cap_seconds)
        seconds += applied.seconds
    launches, asks = starts_in(folder)
    shared: dict[str, Any] = {"launches": launches, "asks": asks, "exit_code": ran.exit_code}
    is_cut = ran.exit_code is None
    reason = f"cut after {rules.cap_seconds / 60:g} minutes" if is_cut else ""
    if (answer := printed(applied)) is None:
        said = last_line(ran.output if ran.exit_code else applied.output)
        return Outcome(name, run, "failed", seconds, reason=reason or f"no answer: {said}", **shared)
    command, number = answer
    study = SweepStudy.load(root, SWEEP)
    record = assemble(study)
    trial = record.trial(number)
    speed = trial.metrics["tokens_per_second"].median
    quant = trial.configuration.quant or record.model.base_quant
    return Outcome(
        contestant=name,
        run=run,
        state="cut" if is_cut else "answered",
        seconds=seconds,
        pick=Pick(record.model.file(quant).path, options_of_words(shlex.split(command))),
        command=command,
        claim=Claim(speed, "client", f"measured, {record.workload.generated_tokens} tokens with sampling"),
        first=first_usable(replace(record, trials=study.trials()), began),
        reason=reason,
        notes=(f"quant {quant}", *(("its best effort, below the target",) if nearest else ())),
        **shared,
    )


def printed(applied: Ran) -> tuple[str, int] | None:
    """The command that apply prints for this model alone, and the trial's number; None if apply refuses."""
    start = applied.output.find("{")
    if applied.exit_code != 0 or start < 0:
        return None
    found, _ = json.JSONDecoder().raw_decode(applied.output[start:])
    command = found["commands"][-1]
    variables = [f"{name}={shlex.quote(value)}" for name, value in command["environment"].items()]
    return " ".join([*variables, shlex.join(command["argv"])]), int(found["trial"])


def first_usable(screened: SweepRecord, began: datetime) -> Early | None:
    """The pick when a second valid trial beside the baseline's was complete; None if the sweep has only one.

    ``screened`` holds the figures as each trial ended, and not those of the final stage.
    """
    for count in range(2, len(screened.trials) + 1):
        so_far = replace(screened, trials=screened.trials[:count])
        if sum(t.feasible for t in so_far.trials) < 2:
            continue
        try:
            trial = choose(so_far, screened.pick, allow_screening=True).trial
        except NoResultError:
            continue
        last = so_far.trials[-1]
        ended = (datetime.fromisoformat(last.started_utc) - began).total_seconds() + last.seconds
        model = screened.model.file(trial.configuration.quant).path
        return Early(ended, Pick(model, options_of_configuration(trial.configuration.to_dict())))
    return None


def _contestant(
    name: str, words: list[str], question: Question = "speed", optional: bool = False
) -> Contestant:
    def speed(rules: Rules, folder: Path, run: int) -> Outcome:
        # The race is for speed on one file; the default pick is the fewest watts within 5 % of the best speed, and of
        # a precise file the default space holds smaller quantisations.
        own = ["search.pick=fastest", f"space.quant={read_header(rules.model).file_type}"]
        return play(rules, folder, run, name, [*words, *_program(rules, words), *own], rules.model)

    def quality(rules: Rules, folder: Path, run: int) -> Outcome:
        if rules.target is None or rules.precise_model is None:
            raise NoAnswer("the question of quality needs a target speed and an F16 file")
        own = [
            QUANTS,
            "objectives.targets={tokens_per_second: maximize, kl_divergence: minimize}",
            f"search.pick='at-least:{rules.target:.2f}tok/s'",
            f"workload.depth={rules.depth}",
            f"workload.n_ctx={rules.depth + 640}",
        ]
        return play(rules, folder, run, name, [*words, *_program(rules, words), *own], rules.precise_model)

    return Contestant(name, quality if question == "quality" else speed, question, optional=optional)


def _program(rules: Rules, words: list[str]) -> list[str]:
    server = literal(str(rules.wrappers / "llama-server"))
    return [f"engine.binary={server}"] if "engine=llama_server" in words else []


CONTESTANTS = (
    _contestant("sweeper", ["engine=llama_server", "experiment=quick"]),
    _contestant("sweeper-llama-cpp", ["engine=llama_cpp", "experiment=quick"]),
    _contestant("sweeper-full", ["engine=llama_server"], optional=True),
    _contestant("sweeper-quality", ["engine=llama_server", "experiment=quick"], "quality"),
)
