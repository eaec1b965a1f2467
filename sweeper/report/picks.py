"""The picks that a report names, each with its price in words."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sweeper.errors import ConfigError, NoResultError
from sweeper.metrics import describe
from sweeper.records import TYPED, SweepRecord, TrialRecord
from sweeper.report.words import clean, disturbed, figure, own_settings, when_full
from sweeper.results.contexts import CONTEXT, default_at
from sweeper.results.front import overlap, tied
from sweeper.results.objectives import cost_metric, speed_metric
from sweeper.results.picks import (
    LEAST_TOLD_APART,
    LONGEST_WITHIN,
    PROMPTS,
    Recommendation,
    choose,
    parse_pick,
    reads_prompts_faster,
    why_default,
)
from sweeper.results.price import percent_of_change, request_in_words
from sweeper.results.provisional import comparable, provisional, visits_behind

NAMED = ("longest", "fastest", "knee", "greenest")
_FOR_NOISE = f" (up to {100 * LEAST_TOLD_APART:g} % more where noise may explain it)"
# The words of a simulated sweep's command that a sweep of a real model keeps; these experiments choose an engine.
_OF_ANY_ENGINE = ("experiment=", "objectives", "workload", "search", "minutes=", "prices")
_WITH_AN_ENGINE = ("experiment=demo", "experiment=cpu_table")


@dataclass(frozen=True, slots=True)
class Picked:
    """One pick: the trial that it chose, its price in words, and the command that applies it."""

    pick: str
    trial: TrialRecord
    words: str
    recommended: bool
    apply_command: str
    nearest: bool = False  # no trial does what the pick asks, and this is the nearest
    provisional: str | None = None  # which visits of the final stage are missing; None: none

    @property
    def label(self) -> str:
        """The pick's name beside its trial: a trial that does not do what the pick asks is only the nearest."""
        if self.pick == "longest":
            return "longest context"
        return f"nearest to {self.pick}" if self.nearest else self.pick

    @property
    def sign(self) -> str:
        """The sign beside its trial: full where sweeper recommends the trial, hollow where it may not yet."""
        return "★" if self.recommended else "☆"


def picks(record: SweepRecord) -> tuple[Picked, ...]:
    """The sweep's own pick first, then the named ones; empty where nothing may be recommended.

    Where the objectives cannot answer the sweep's own pick, the first that they can answer is recommended.
    """
    return tuple(_found(record))


def recommended(record: SweepRecord) -> Picked | None:
    """The recommended pick, or None where sweeper may not recommend a trial yet."""
    return next(_found(record), None)


def current(record: SweepRecord) -> Picked | None:
    """The recommended pick; before any trial was measured twice, what the screening alone would pick.

    The second is never called recommended. None where no trial counts.
    """
    return recommended(record) or next(_found(record, of_screening=True), None)


def sureness(record: SweepRecord, best: Picked) -> str:
    """How sure a pick is: the visits that it lacks, and its near-ties."""
    visits = visits_behind(record, best.trial)
    made = "all visits are made" if visits is None else f"{visits} visits are made"  # more may follow
    said = [best.provisional or made, *_tied(record, best.trial)]
    return "; ".join([*said, why_default(record)] if best.trial.number == record.baseline else said)


def current_words(record: SweepRecord) -> str:
    """The current pick and how sure it is, where nothing may be recommended yet; else empty."""
    best = current(record)
    if best is None or best.recommended:
        return ""
    own = own_settings(record, best.trial)
    return f"Current pick ({best.label}): #{best.trial.number}, {own}. {clean(best.words)}"


def _found(record: SweepRecord, *, of_screening: bool = False) -> Iterator[Picked]:
    recommends = not of_screening
    sweep = shlex.quote(clean(record.sweep))
    for name in dict.fromkeys((record.pick, *NAMED)):
        if name == "fastest" and speed_metric(record) == CONTEXT:
            continue  # it would be the longest context
        try:
            choice = choose(record, name, allow_screening=of_screening)
        except (NoResultError, ConfigError):
            # Nothing measured twice yet, or objectives (say, two speeds) that this pick cannot be asked of.
            continue
        doubt = provisional(record, choice.trial)
        full = when_full(record, choice.trial) if record.ladder else None
        words = _sentences(
            [choice.nearest, doubt, full, *_price(record, choice), *_tied(record, choice.trial)]
        )
        # `apply` takes no pick that nothing keeps: it is given the trial.
        pick = str(choice.trial.number) if choice.nearest else shlex.quote(name)
        command = f"sweeper apply {sweep} --pick {pick} --to llama-server{_root_option(record)}"
        yield Picked(name, choice.trial, words, recommends, command, choice.nearest is not None, doubt)
        recommends = False


def _sentences(parts: Iterable[str | None]) -> str:
    """Short sentences, without the parts that are empty."""
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)


def may_apply(record: SweepRecord) -> bool:
    """Whether a report may offer the command that applies a trial: not where its heading says "Not yet".

    Nor where it could write nothing: on a simulated machine, and of a server that is someone else's.
    """
    best = recommended(record)
    doubtful = best is None or best.provisional or disturbed(record)
    return not doubtful and not record.engine.simulated and record.engine.name != "endpoint"


def heading(record: SweepRecord, best: Picked) -> str:
    """The heading above the recommendation: an order only where nothing speaks against the trial."""
    if disturbed(record):
        return "Not yet: repeat the sweep before you apply its best trial so far"
    if best.nearest:
        return "No trial does what the pick asks; this is the nearest"
    if best.provisional:
        return f"Not yet: {_how_to_finish(record)} the sweep before you apply its best trial so far"
    return "Best on the simulated machine" if record.engine.simulated else "Run this"


def _how_to_finish(record: SweepRecord) -> str:
    return "repeat" if record.state == "complete" else "finish"


def meaning(record: SweepRecord, pick: str) -> str:
    """The rule of a pick in words that need no manual; empty where ``pick`` is no pick."""
    try:
        rule = parse_pick(pick)
    except ConfigError:
        return ""
    speed, expense = speed_metric(record), cost_metric(record)
    gain, cost = describe(speed or "speed").title, describe(expense or "power").title
    amount = str(rule).partition(":")[2].replace("%", " %").replace("tok/s", " tok/s").replace("W", " W")
    return {
        "longest": "the longest context that keeps every constraint; "
        f"there, the least {cost} within {LONGEST_WITHIN:g} % of the best decode speed{_FOR_NOISE}",
        "fastest": f"the best {gain}",
        "greenest": "the least energy for each prompt token"
        if speed == PROMPTS
        else "the least energy for each generated token (reading the prompt is not counted)",
        "knee": "where giving up more speed begins to save little",
        "within": f"the least {cost} within {amount} of the best {gain}{_FOR_NOISE}",
        "at-least": f"the least {cost} that reaches {amount}",
        "at-most": f"the best {gain} that stays under {amount}",
    }[rule.kind]


def picks_by_trial(record: SweepRecord) -> list[list[Picked]]:
    """The picks in their order, in one list for each trial that they chose."""
    found: dict[int, list[Picked]] = {}
    for picked in picks(record):
        found.setdefault(picked.trial.number, []).append(picked)
    return list(found.values())


def title(record: SweepRecord, found: list[Picked]) -> str:
    """The trial and the names of its picks: ``#6 (recommended): fastest, knee``."""
    names, number = ", ".join(picked.label for picked in found), found[0].trial.number
    if found[0].recommended and disturbed(record):
        return f"best so far: #{number} ({names}); repeat the sweep before you apply it"
    marks = ["recommended"] if found[0].recommended and not found[0].nearest else []
    marks += ["provisional"] if found[0].provisional else []
    mark = f" ({', '.join(marks)})" if marks else ""
    if 1 < len(found) == len(picks(record)):
        return f"#{number} is the best by every measure{mark}: {names}"
    return f"#{number}{mark}: {names}"


def meanings(record: SweepRecord, found: list[Picked]) -> str:
    """The rule of each pick in ``found``, in words."""
    return "; ".join(f"{p.pick}: {meaning(record, p.pick)}" for p in found if not p.nearest)


def marks(record: SweepRecord) -> dict[int, tuple[str, ...]]:
    """For each trial that was picked, the names of its picks, for programs."""
    return {found[0].trial.number: tuple(picked.pick for picked in found) for found in picks_by_trial(record)}


def labels(record: SweepRecord) -> dict[int, tuple[str, ...]]:
    """The same for people: a trial that does not do what a pick asks is called the nearest."""
    return {
        found[0].trial.number: tuple(picked.label for picked in found) for found in picks_by_trial(record)
    }


DEFAULT_ROOT = "mlruns"


def _root_option(record: SweepRecord) -> str:
    """`` --root FOLDER`` where the sweep does not lie in the default folder."""
    root = str(record.config.get("root") or DEFAULT_ROOT)
    return "" if root == DEFAULT_ROOT else f" --root {shlex.quote(clean(root))}"


def sweep_command(record: SweepRecord, name: str) -> tuple[str, str]:
    """``sweeper sweep …`` with the settings of ``record`` under another name, and a word on its settings.

    Records of earlier versions do not have the words of their command line.
    """
    typed = record.config.get(TYPED)
    root = str(record.config.get("root") or DEFAULT_ROOT)
    place = [] if root == DEFAULT_ROOT else [f"root={root}"]
    if not isinstance(typed, list):
        return shlex.join(
            ["sweeper", "sweep", *place, f"name={name}"]
        ), "with the same settings (report.html lists them): "
    words = [clean(word) for word in typed if not str(word).startswith(("name=", "root="))]
    return shlex.join(["sweeper", "sweep", *words, *place, f"name={name}"]), ""


def next_commands(record: SweepRecord) -> tuple[tuple[str, str], ...]:
    """The next commands, each with its purpose."""
    own_name = clean(record.sweep)
    name, root = shlex.quote(own_name), _root_option(record)
    best = recommended(record)
    if best is None:
        command, how = sweep_command(record, own_name)
        again = (command, f"{how}resumes the sweep")
        if record.state == "complete":
            command, _ = sweep_command(record, f"{own_name}-2")
            again = (command, "with other settings: measures everything again")
        doctor = ("sweeper doctor", "shows what is missing on this machine")
        return (again,) if any(trial.metrics for trial in record.trials) else (again, doctor)
    if record.engine.simulated:
        typed = record.config.get(TYPED)
        words = [clean(word) for word in typed] if isinstance(typed, list) else []
        kept = [w for w in words if w.startswith(_OF_ANY_ENGINE) and w not in _WITH_AN_ENGINE]
        command = shlex.join(["sweeper", "sweep", *kept, "model.path=FILE"])
        return ((command, "measures a real model: this sweep is simulated"),)
    if record.engine.name == "endpoint":
        command, how = sweep_command(record, f"{own_name}-2")
        return ((command, f"{how}measures the server again"),)
    own = f" --pick {best.trial.number}" if best.nearest else ""
    if disturbed(record) or best.provisional:
        unfinished = record.state != "complete" and not disturbed(record)
        command, how = sweep_command(record, own_name if unfinished else f"{own_name}-2")
        return ((command, f"{how}{'finishes' if unfinished else 'repeats'} the sweep"),)
    check = (f"sweeper verify {name}{own}{root}", "checks that the running server reaches these figures")
    return (
        (best.apply_command, "shows what would change"),
        (f"{best.apply_command} --write", "writes this configuration"),
        *((check,) if record.workload.users == 1 else ()),  # verify measures one user
    )


def _tied(record: SweepRecord, trial: TrialRecord) -> list[str]:
    """The near-ties of ``trial``, and the one that reads prompts clearly fastest if prompts are no objective."""
    on_front = [t for t in record.on_front() if t.number != trial.number]
    others = [t.number for t in on_front if tied(trial, t, record.objectives)]
    if not others:
        return []
    said = f"a near-tie with {', '.join(f'#{number}' for number in others)}"
    faster = [t for number in others if reads_prompts_faster(t := record.trial(number), trial)]
    if faster and PROMPTS not in {o.metric for o in record.objectives}:
        best = max(faster, key=lambda t: t.metrics[PROMPTS].median)
        times = best.metrics[PROMPTS].median / trial.metrics[PROMPTS].median
        said += f", of which #{best.number} reads prompts {times:.1f} times as fast"
    return [said]


def _price(record: SweepRecord, choice: Recommendation) -> list[str]:
    """What a pick gains and costs, compared with its baseline: first where a whole request is worse.

    A saving while generating is none for a user whose requests take longer and more energy.
    """
    trial, base = choice.trial, default_at(record, choice.trial)
    if base is None or base.number == trial.number or not comparable(base, trial):
        return [choice.words]
    request = request_in_words(record, base, trial)
    beside = _beside(record, base, trial)
    said = [request, f"while generating alone, {choice.words}" if request else choice.words]
    return [*said, f"beside that: {', '.join(beside)}" if beside else ""]


def _beside(record: SweepRecord, base: TrialRecord, trial: TrialRecord) -> list[str]:
    """The pick's effect on prompts, on quality and on objectives that it does not weigh.

    A pick weighs one speed against one cost; a third objective may pay for both.
    """
    said = []
    told = (speed_metric(record), cost_metric(record), "kl_divergence", CONTEXT if record.ladder else None)
    for name in dict.fromkeys([PROMPTS, *(o.metric for o in record.objectives)]):
        here, there = trial.metrics.get(name), base.metrics.get(name)
        if name in told or not here or not there or not there.median:
            continue
        if not overlap(here, there):
            said.append(f"{percent_of_change(there.median, here.median)} {describe(name).title}")
    loss, before = trial.metrics.get("kl_divergence"), base.metrics.get("kl_divergence")
    if loss and before and trial.configuration.quant != base.configuration.quant:
        how = "more" if loss.median > before.median else "less"
        bounds = [
            f"; constraint: at most {c.bound:g}" for c in record.constraints if c.metric == "kl_divergence"
        ]
        same = trial.metrics.get("top_token_agreement_percent")
        agreement = [f"; the most likely token is the same in {figure(same.median)} %"] if same else []
        figures = (
            f"KL divergence {figure(loss.median)} against {figure(before.median)} nats/token"
            f"{''.join([*bounds, *agreement])}"
        )
        said.append(f"{how} quality lost ({figures})")
    return said
