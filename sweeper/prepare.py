"""Prepares a sweep from a composed configuration: its rig, its name, its record and its plan."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

from sweeper import __version__, locks
from sweeper.config import Composed, Settings
from sweeper.errors import ConfigError, SweepBusyError
from sweeper.guess.run import first_answer
from sweeper.measure.disturbance import Watch
from sweeper.metrics import describe
from sweeper.records import TYPED, Configuration, Objective, SweepRecord, Workload, to_plain
from sweeper.report.files import write_report
from sweeper.report.progress import Progress
from sweeper.results.picks import DEFAULT_PICK, line_of, parse_pick
from sweeper.rig.base import Rig
from sweeper.rig.open import idle_power, open_rig
from sweeper.rig.quantisations import with_quality
from sweeper.search.finals import FINAL_VISITS
from sweeper.search.samplers import make_sampler, stopping_of
from sweeper.search.study import SweepStudy, sweep_names
from sweeper.search.time_budget import LONGEST_WAIT_SHARE, TimeBudget
from sweeper.search.transfer import Earlier, from_earlier
from sweeper.search.warm_start import context_ladder, initial_design, known_first
from sweeper.space.space import SearchSpace
from sweeper.sweep import SearchPlan, StopFlag, Sweep
from sweeper.tracking import Tracker

# The default and the corners that lie near the Pareto front on most machines; see search/warm_start.py.
CORNERS = 6
# The display counts a grid up to this size; counting a space of millions would take longer than a trial.
MOST_COUNTED = 20_000
# Reports and MLflow took 1.4 s after one trial and 2.3 s after three, on two cores with other work.
CLOSING_SECONDS = 3.0
MIXED_QUALITY = "the KL divergence of trials up to"
OpenProgress = Callable[[SweepRecord, SearchPlan], Progress]


class AlreadyComplete(Exception):
    """The sweep of this command has ended; ``name`` is its name, and ``anew`` one that is free."""

    def __init__(self, name: str, anew: str) -> None:
        super().__init__(name)
        self.name = name
        self.anew = anew


@contextmanager
def prepared(composed: Composed, open_progress: OpenProgress, say: Callable[[str], None]) -> Iterator[Sweep]:
    """A sweep that is ready to run. On exit, the context releases everything that the sweep holds.

    Args:
        composed: the configuration.
        open_progress: creates the display; the caller enters it before it runs the sweep.
        say: shows one line during the preparation.

    Raises:
        UsageError, MissingError: the configuration cannot run; the message says how to fix it.
        AlreadyComplete: the same command has run to its end.
    """
    settings = composed.settings
    root = Path(settings.root)
    began = time.monotonic()
    parse_pick(settings.search.pick)  # reports an invalid pick now, not after the last trial
    with ExitStack() as held:
        rig, space, notes = open_rig(composed, held, say)
        workload = rig.workload or settings.workload_record()
        name = sweep_name(settings, space, workload, rig, root, composed.plain)
        held.enter_context(alone(root, name))
        # The tracker opens before the first trial, so that a sweep without a store fails at once.
        tracker = Tracker.open(settings.tracking.uri, root, settings.tracking.experiment)
        first_answer(rig, space.base, composed, say)
        rig = with_quality(rig, space, settings, root, held, say)
        objectives, lost = measurable(settings, rig)
        first, earlier, learned = _design(name, settings, rig, space, root, objectives)
        ladder = context_ladder(space, space.base) if _wants_context(objectives) else ()
        first = tuple(dict.fromkeys((*ladder[:1], *first)))  # the shortest context is the baseline's
        said = (*rig.notes, *notes, *lost, *learned)
        header = _header(name, settings, workload, composed, rig, space, said, first[0], objectives, ladder)
        sampler = make_sampler(
            settings.search.sampler,
            space,
            settings.search.seed,
            lambda c: rig.forecast(c) is None,
            line_of(header.objectives, header.pick),
            earlier.measured if earlier else (),
            [o.metric for o in header.objectives],
            [c.metric for c in header.constraints],
        )
        study = SweepStudy.create(root, header, sampler)
        kept = _refreshed(study, header)
        rig.measure_as(kept.engine)
        if kept.engine.sampling != header.engine.sampling:
            say(f"sweep {name} began without sampling tokens, and goes on so; a new name=… measures with it")
        plan = _plan(settings, space, first, ladder, stopping_of(sampler))
        if rig.space is not None:  # a recorded table knows no other depth
            plan = replace(plan, full_depth=False)
        stop, budget = StopFlag(), _budget(rig, settings, began)
        yield Sweep(
            study=study,
            space=space,
            engine=rig.engine,
            meter=rig.meter,
            limits=rig.limits,
            tracker=tracker,
            progress=open_progress(kept, plan),
            plan=plan,
            report_folder=root / "reports" / name,
            write_report=write_report,
            quality=rig.quality,
            forecast=rig.forecast,
            standing_caveats=rig.standing_caveats,
            stop=stop,
            clock=rig.clock,
            sleep=rig.sleep,
            watch=_watch(rig, settings, stop, budget),
            budget=budget,
        )


def _budget(rig: Rig, settings: Settings, began: float) -> TimeBudget | None:
    """The limit of the whole job, which began at ``began``. Virtual time starts with the sweep."""
    if settings.minutes is None:
        return None
    seconds = 60 * settings.minutes
    if rig.clock is not time.monotonic:
        return TimeBudget(seconds, rig.clock, rig.clock())
    return TimeBudget(seconds, rig.clock, began, CLOSING_SECONDS)


def _watch(rig: Rig, settings: Settings, stop: StopFlag, budget: TimeBudget | None) -> Watch | None:
    """Looks at the load of this machine; None on simulated and replayed machines, which nothing can disturb."""
    if rig.load is None:
        return None
    search, machine = settings.search, rig.machine
    limit_seconds = search.quiet_seconds()
    if budget is not None:  # twice the longest wait is then a sixth of the whole time
        limit_seconds = min(limit_seconds, LONGEST_WAIT_SHARE * budget.seconds)
    return Watch(
        rig.load,
        # Under a quota, the record counts fewer cores than others leave idle.
        machine.physical_cores if machine.cpu_quota is None else None,
        limit_seconds,
        min((m for m in (search.minutes, settings.minutes) if m is not None), default=None),
        rig.clock,
        rig.sleep,
        lambda: stop.set_by_hand or (budget is not None and budget.left() <= 0),
        rig.load.elsewhere,
    )


def _design(
    name: str,
    settings: Settings,
    rig: Rig,
    space: SearchSpace,
    root: Path,
    objectives: tuple[Objective, ...],
) -> tuple[tuple[Configuration, ...], Earlier | None, tuple[str, ...]]:
    """The first configurations, the earlier sweep that warm-starts this one, and a note about it.

    Those whose quality is known come first, so that the first trials need not wait for a comparison.
    """
    corners = CORNERS if settings.search.corners else 1
    first = initial_design(space, space.base, corners, settings.search.seed)
    earlier = None
    if settings.search.transfer and space.parameters:
        simulated = rig.engine_record.simulated
        earlier = from_earlier(root, rig.machine, simulated, objectives, space, name)
    if earlier is None:
        return known_first(first, rig.quality_is_known), None, ()
    note = (
        f"the search starts with the best trials of your earlier sweep {earlier.sweep}; "
        "set search.transfer=false to start without them"
    )
    first = tuple(dict.fromkeys((first[0], *earlier.configurations, *first[1:])))
    return known_first(first, rig.quality_is_known), earlier, (note,)


def measurable(settings: Settings, rig: Rig) -> tuple[tuple[Objective, ...], tuple[str, ...]]:
    """The objectives without those that need a sensor, where the rig has none; and a note on those.

    Raises:
        ConfigError: no objective is left.
    """
    wanted = settings.objective_records()
    if rig.meter.source.kind != "none":
        return wanted, ()
    kept = tuple(o for o in wanted if not describe(o.metric).power)
    lost = ", ".join(o.metric for o in wanted if o not in kept)
    if not kept:
        raise ConfigError(f"objectives.targets: {lost} cannot be measured: {rig.meter.source.note}")
    return kept, (f"{lost} left the objectives, because no sensor measures it",) if lost else ()


def _wants_context(objectives: tuple[Objective, ...]) -> bool:
    """Whether the sweep looks for the longest context."""
    return Objective("n_ctx", "maximize") in objectives


def _pick(settings: Settings, rig: Rig, objectives: tuple[Objective, ...]) -> str:
    """The user's pick, or what takes the place of the default rule.

    That is the longest context where it is an objective, and the fastest trial where no sensor measures that rule's
    watts.
    """
    if settings.search.pick != DEFAULT_PICK:
        return settings.search.pick
    if _wants_context(objectives):
        return "longest"
    return "fastest" if rig.meter.source.kind == "none" and len(objectives) == 1 else DEFAULT_PICK


def _header(
    name: str,
    settings: Settings,
    workload: Workload,
    composed: Composed,
    rig: Rig,
    space: SearchSpace,
    notes: tuple[str, ...],
    baseline: Configuration,
    objectives: tuple[Objective, ...],
    ladder: tuple[Configuration, ...],
) -> SweepRecord:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return SweepRecord(
        sweep=name,
        state="running",
        machine=rig.machine,
        engine=rig.engine_record,
        model=rig.model,
        workload=workload,
        objectives=objectives,
        constraints=settings.constraint_records(),
        power=rig.meter.source,
        space=space.describe(),
        trials=(),
        front=(),
        baseline=None,
        recommended=None,
        pick=_pick(settings, rig, objectives),
        prices=settings.prices_record(),
        notes=notes,
        caveats=rig.standing_caveats,
        idle_watts=idle_power(rig),
        started_utc=now,
        updated_utc=now,
        sweeper_version=__version__,
        config=json.loads(json.dumps({**composed.plain, TYPED: list(composed.typed)}, default=str)),
        baseline_configuration=baseline,
        quality=rig.quality_record,
        ladder=ladder,
    )


def _refreshed(study: SweepStudy, header: SweepRecord) -> SweepRecord:
    """The header of the first start, with the fields that a resumed sweep may change: prices, pick, notes."""
    kept = study.header()
    fresh = replace(
        kept,
        state="running",
        model=header.model,  # the same files, perhaps at another path
        prices=header.prices,
        pick=header.pick,
        notes=(*header.notes, *_mixed_quality(study, kept, header)),
        config=header.config,
        quality=header.quality or kept.quality,
        ladder=header.ladder,
    )
    if to_plain(fresh) != to_plain(kept):
        study.save_header(fresh)
    return fresh


def _mixed_quality(study: SweepStudy, kept: SweepRecord, header: SweepRecord) -> tuple[str, ...]:
    """Notes that the quality of a resumed sweep's trials was not measured alike; this one and earlier ones."""
    earlier = tuple(note for note in kept.notes if note.startswith(MIXED_QUALITY))
    # The loss of the reference itself is 0, however quality is measured.
    losses = ((t.number, t.metrics.get("kl_divergence")) for t in study.trials())
    measured = [number for number, loss in losses if loss is not None and loss.median > 0]
    if not measured or header.quality in ("", kept.quality):
        return earlier
    how = kept.quality or "over 256 tokens of another text, by an older version"
    return (
        *earlier,
        f"{MIXED_QUALITY} #{max(measured)} was measured {how}; that of later ones {header.quality}",
    )


def sweep_name(
    settings: Settings, space: SearchSpace, workload: Workload, rig: Rig, root: Path, plain: Mapping[str, Any]
) -> str:
    """The sweep's name: the user's, or a name made from model and settings.

    With a made name, the same command resumes an unfinished sweep of the same settings. If that sweep is complete
    and the rest of the configuration ``plain`` differs, such as the number of trials, the name gets a number.

    Raises:
        AlreadyComplete: that sweep is complete, and had the same configuration.
    """
    if settings.name:
        return settings.name
    model = rig.model
    decides = {
        "space": space.describe(),
        "fixed": space.fixed,
        "objectives": [to_plain(o) for o in settings.objective_records()],
        "constraints": [to_plain(c) for c in settings.constraint_records()],
        "workload": _as_first_released(workload),
        "engine": [rig.engine_record.name, settings.engine.environment, *_address(settings)],
        "model": model.files[model.base_quant].sha256,
        **({"draft": model.draft.file.sha256} if model.draft else {}),
        "sampler": settings.search.sampler,
        "power": settings.power.source,
        "machine": rig.machine.fingerprint,
    }
    text = json.dumps(decides, sort_keys=True, default=str)
    base = f"{model.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    names = sweep_names(root)
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in names:
        study = SweepStudy.load(root, name)
        kept = study.header()
        if kept.state != "complete":
            return name
        if _question(kept.config) == _question(plain):
            prices, pick = settings.prices_record(), _pick(settings, rig, kept.objectives)
            if (kept.prices, kept.pick) != (prices, pick):
                study.save_header(replace(kept, prices=prices, pick=pick))
            anew = next(free for n in count(2) if (free := f"{base}-{n}") not in names)
            raise AlreadyComplete(name, anew)
        number += 1
    return name


def _address(settings: Settings) -> tuple[str, ...]:
    """The address of a running server; nothing for other engines, so that their sweeps keep their names."""
    return (settings.engine.url,) if settings.engine.url else ()


def _as_first_released(workload: Workload) -> dict[str, Any]:
    """The workload without later fields at their defaults, so that the same command still resumes an old sweep."""
    later = {"users": 1, "prompts": None}
    return {k: v for k, v in to_plain(workload).items() if k not in later or v != later[k]}


def _question(plain: Mapping[str, Any]) -> Any:
    """The configuration without what changes no measurement: names, places, prices and the pick."""
    kept: dict[str, Any] = json.loads(json.dumps(dict(plain), default=str))
    for key in ("name", "root", "prices", "tracking", TYPED):
        kept.pop(key, None)
    if isinstance(kept.get("search"), dict):
        kept["search"].pop("pick", None)
    return kept


def _plan(
    settings: Settings,
    space: SearchSpace,
    first: tuple[Configuration, ...],
    ladder: tuple[Configuration, ...],
    stop_reason: Callable[[], str | None] | None,
) -> SearchPlan:
    search = settings.search
    # More points than trials need no count, and a large space takes long to enumerate.
    points = sum(1 for _ in islice(space.grid(), min(search.trials or MOST_COUNTED, MOST_COUNTED)))
    return SearchPlan(
        trials=search.trials,
        minutes=search.minutes,
        patience=search.patience,
        finalists=search.finalists,
        control_every=search.control_every,
        first=first,
        total=min(search.trials or points, points),
        exhaustive=search.sampler == "grid",
        seed=search.seed,
        stop_reason=stop_reason,
        early_stop=search.early_stop,
        full_depth=search.full_depth,
        ladder=ladder,
    )


def finalist_measurements(plan: SearchPlan) -> int:
    """The expected number of measurements in the final stage."""
    return (plan.finalists + 1) * FINAL_VISITS


def alone(root: Path, name: str) -> AbstractContextManager[None]:
    """Hold the sweep's lock. Raises SweepBusyError if another process is writing the same sweep."""

    def busy(owner: str) -> SweepBusyError:
        return SweepBusyError(
            f"process {owner} is writing the sweep {name!r}: wait until it ends, or choose name=…"
        )

    return locks.held(locks.of_sweep(root, name), busy)
