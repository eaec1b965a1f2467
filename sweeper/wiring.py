"""From a composed configuration to a sweep ready to run: the only place where concrete classes are chosen."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import __version__, locks, machine
from sweeper.config import Composed, Settings
from sweeper.errors import (
    EngineCrashed,
    EngineRefused,
    EngineTimeout,
    StoreError,
    SweepBusyError,
)
from sweeper.measure.trial import speeds_now
from sweeper.model.obtain import Model, Wanted, obtain
from sweeper.nvml import cuda_variables
from sweeper.records import (
    Caveat,
    Configuration,
    Reading,
    SweepRecord,
    TrialRecord,
    Workload,
    to_plain,
)
from sweeper.report.files import write_report
from sweeper.report.progress import Progress
from sweeper.results.picks import line_of, parse_pick
from sweeper.rig import Rig
from sweeper.search.finals import FINAL_VISITS
from sweeper.search.samplers import make_sampler, stopping_of
from sweeper.search.study import SweepStudy, sweep_names
from sweeper.search.transfer import Earlier, from_earlier
from sweeper.search.warm_start import initial_design
from sweeper.space.auto import Facts, default_configuration, fill_auto, unsettable
from sweeper.space.space import SearchSpace, Traits, build_space
from sweeper.sweep import SearchPlan, StopFlag, Sweep
from sweeper.tracking import Tracker

if TYPE_CHECKING:
    from sweeper.engine.llama_cpp import LlamaCppEngine
    from sweeper.model.forecast import Forecaster
    from sweeper.model.quality import QualityMeter

# Long enough for a mean of the power at rest, on sensors that refresh once a second too.
IDLE_SECONDS = 2.0
# What a grid is counted up to for the display; counting a space of millions would take longer than a trial.
MOST_COUNTED = 20_000

# The default and the corners that lie near the front on most machines; see search/warm_start.py.
CORNERS = 6

# Where the rig of each engine is opened: called with the settings, the root, an ExitStack and `say`. The lab's
# engines are named and not imported, so that nothing in the product depends on the lab.
RIGS = {
    "llama_cpp": "sweeper.wiring:llama_rig",
    "simulated": "sweeper.lab.rigs:simulated_rig",
    "replay": "sweeper.lab.rigs:replay_rig",
}

OpenProgress = Callable[[SweepRecord, SearchPlan], Progress]


@contextmanager
def prepared(composed: Composed, open_progress: OpenProgress, say: Callable[[str], None]) -> Iterator[Sweep]:
    """A sweep ready to run, with everything it holds given back afterwards.

    Args:
        composed: the configuration.
        open_progress: makes the display, which is entered by whoever made it.
        say: shows one line while things are made ready.

    Raises:
        UsageError, MissingError: what was asked for cannot be, each with the line that mends it.
    """
    settings = composed.settings
    root = Path(settings.root)
    parse_pick(settings.search.pick)  # a wrong word is said now, not after the last trial
    with ExitStack() as held:
        rig, space, notes = open_rig(composed, held, say)
        workload = rig.workload or settings.workload_record()
        name = sweep_name(settings, space, workload, rig, root)
        held.enter_context(alone(root, name))
        tracker = Tracker.open(settings.tracking.uri, root)  # before the first trial: no store, no sweep
        rig = with_quality(rig, space, settings, root, held, say)
        first = initial_design(
            space, space.base, CORNERS if settings.search.corners else 1, settings.search.seed
        )
        earlier = _earlier(name, settings, rig, space, root)
        first, learned = _with_earlier(first, earlier)
        said = (*rig.notes, *notes, *learned)
        header = _header(name, settings, workload, composed, rig, space, said, first[0])
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
        plan = _plan(settings, space, first, stopping_of(sampler))
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
            stop=StopFlag(),
            clock=rig.clock,
            sleep=rig.sleep,
        )


def open_rig(
    composed: Composed, held: ExitStack, say: Callable[[str], None]
) -> tuple[Rig, SearchSpace, tuple[str, ...]]:
    """The rig with every quantisation at hand, the space, and what to say about the space."""
    root = Path(composed.settings.root)
    _make_folder(root)
    rig = _rig(composed.settings, root, held, say)
    if rig.space is not None:
        return rig, rig.space, ()
    facts = Facts(
        rig.machine,
        rig.model,
        composed.settings.workload_record(),
        rig.engine_record.gpu_offload,
        rig.limits.ranges(),
        {name: str(error) for name, error in rig.limits.refusals().items()},
    )
    space, notes = _space(composed, facts)
    return _with_quantisations(rig, space, root, say), space, notes


# -- the rig ----------------------------------------------------------------------------------------------


def _rig(settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None]) -> Rig:
    module, name = RIGS[settings.engine.name].split(":")
    opened: Rig = getattr(importlib.import_module(module), name)(settings, root, held, say)
    return opened


def llama_rig(settings: Settings, root: Path, held: ExitStack, say: Callable[[str], None]) -> Rig:
    """llama.cpp in a worker process, with this machine's meter and limits."""
    from sweeper.engine.llama_cpp import LlamaCppEngine
    from sweeper.limits.control import find_limits
    from sweeper.meter.choose import find_meter
    from sweeper.model.forecast import Forecaster

    held.enter_context(cuda_variables(settings.engine.environment))
    model = obtain_model(settings, root, say)
    files: dict[str | None, Path] = {None: model.path}
    files |= {quant: Path(file.path) for quant, file in model.record.files.items()}
    engine = held.enter_context(
        LlamaCppEngine(
            files,
            settings.engine.environment,
            settings.engine.window_grace_seconds,
            settings.engine.load_timeout_seconds,
            keep_in=root,
        )
    )
    engine_record = engine.record
    meter, notes = find_meter(settings.power, root, engine_record.gpu_offload)
    held.enter_context(meter)
    limits = find_limits(root, settings.power)
    for outcome in limits.replayed:
        say(f"left by an earlier run: {outcome}")
    held.callback(
        lambda: say("\n".join(str(outcome) for outcome in limits.outcomes)) if limits.outcomes else None
    )
    held.enter_context(limits)
    forecaster = held.enter_context(Forecaster())
    synthetic = model.record.source == "synthetic"
    return Rig(
        engine=engine,
        engine_record=engine_record,
        machine=replace(
            machine.examine(), memory_bandwidth_gb_per_second=machine.measure_bandwidth_gb_per_second()
        ),
        model=model.record,
        meter=meter,
        limits=limits,
        notes=notes,
        quality=lambda _: None,
        forecast=lambda c: _why_it_does_not_fit(forecaster, engine, c),
        standing_caveats=(Caveat.SYNTHETIC_QUALITY,) if synthetic else (),
        use_files=engine.use_files,
    )


def _why_it_does_not_fit(
    forecaster: Forecaster, engine: LlamaCppEngine, configuration: Configuration
) -> str | None:
    """Why llama.cpp's own plan says that a configuration cannot run here, or None.

    Where the plan itself fails the trial is left to find out: it names the failure.
    """
    from sweeper.model.forecast import HOST

    try:
        plan = forecaster.forecast(engine.path_of(configuration), configuration)
    except EngineRefused as refused:
        return str(refused)
    except (EngineCrashed, EngineTimeout):
        return None
    host_mib, device_mib = engine.held_mib()
    devices = [device for device in plan.devices if device != HOST]
    # Of several devices nobody says which holds how much of the loaded model: an even share.
    share = {device: device_mib / len(devices) for device in devices}
    return plan.fits({HOST: host_mib} | share)


def obtain_model(settings: Settings, root: Path, say: Callable[[str], None]) -> Model:
    """The model that the configuration asks for, made or fetched where it is not there yet."""
    wanted = settings.model
    if wanted.repo and not wanted.path:
        say(f"fetching {wanted.file} of {wanted.repo}")
    return obtain(
        Wanted(
            name=wanted.name,
            path=wanted.path,
            repo=wanted.repo,
            file=wanted.file,
            revision=wanted.revision,
            seed=wanted.seed,
            quant=wanted.quant,
            shape=wanted.shape,
            files=wanted.files,
        ),
        root,
    )


# -- the space ----------------------------------------------------------------------------------------------


def _space(composed: Composed, facts: Facts) -> tuple[SearchSpace, tuple[str, ...]]:
    spec, notes = fill_auto(composed.space(facts.words(), skip=tuple(unsettable(facts))), facts)
    traits = Traits(
        n_layer=facts.model.n_layer,
        gpu_offload=facts.gpu_offload,
        prompt_tokens=facts.workload.prompt_tokens,
        n_ctx_needed=facts.workload.n_ctx_needed,
        n_ctx_train=facts.model.n_ctx_train,
    )
    return build_space(spec, default_configuration(facts), traits), notes


def _with_quantisations(rig: Rig, space: SearchSpace, root: Path, say: Callable[[str], None]) -> Rig:
    """The rig with every quantisation of the space at hand."""
    if rig.use_files is None:
        return rig
    from sweeper.model.quantise import quantised

    files, notes = dict(rig.model.files), list(rig.notes)
    base = Path(rig.model.files[rig.model.base_quant].path)
    for quant in _quants(space):
        if quant in files:
            continue
        made = quantised(base, quant, root)
        if made.made:
            say(f"made {quant} with llama.cpp's quantiser in {made.seconds:.1f} s")
        notes += [f"{quant}: {warning}" for warning in made.warnings]
        files[quant] = replace(made.file, path=str(Path(made.file.path).resolve()))
    rig.use_files({quant: Path(file.path) for quant, file in files.items()})
    return replace(rig, model=replace(rig.model, files=files), notes=tuple(notes))


def _quants(space: SearchSpace) -> tuple[str, ...]:
    searched = space.parameters["quant"].values if "quant" in space.parameters else (space.base.quant,)
    return tuple(str(quant) for quant in searched if quant is not None)


def with_quality(
    rig: Rig,
    space: SearchSpace,
    settings: Settings,
    root: Path,
    held: ExitStack,
    say: Callable[[str], None],
) -> Rig:
    """The rig that knows what each quantisation and cache type costs in quality, measured once and kept.

    Where nothing that changes quality is searched there is nothing to judge, and nothing is measured.
    """
    if rig.use_files is None or not {"quant", "type_k", "type_v"} & set(space.parameters):
        return rig
    from sweeper.measure.trial import exactly
    from sweeper.model.quality import QualityMeter

    best = max(rig.model.files.values(), key=lambda file: file.size_bytes)
    layers = rig.model.n_layer + 1 if rig.engine_record.gpu_offload else 0
    text = Path(settings.model.text) if settings.model.text else None
    meter: QualityMeter = held.enter_context(QualityMeter(Path(best.path), root, text, n_gpu_layers=layers))

    def quality(configuration: Configuration) -> Reading | None:
        file = rig.model.file(configuration.quant)
        found = meter.divergence(Path(file.path), configuration.type_k, configuration.type_v)
        if found.mean == 0:
            return exactly(0.0)
        half = 1.96 * found.standard_error
        return Reading(found.mean, max(0.0, found.mean - half), found.mean + half, found.tokens)

    files = dict(rig.model.files)
    for quant in _quants(space):
        divergence = meter.divergence(Path(files[quant].path)).mean
        files[quant] = replace(files[quant], kl_divergence=divergence)
    figures = ", ".join(f"{quant} {files[quant].kl_divergence:.4f}" for quant in _quants(space))
    say(f"quality: {figures} nats/token from {best.quant}")
    return replace(rig, model=replace(rig.model, files=files), quality=quality)


# -- the sweep's own records --------------------------------------------------------------------------------


def _header(
    name: str,
    settings: Settings,
    workload: Workload,
    composed: Composed,
    rig: Rig,
    space: SearchSpace,
    notes: tuple[str, ...],
    baseline: Configuration,
) -> SweepRecord:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return SweepRecord(
        sweep=name,
        state="running",
        machine=rig.machine,
        engine=rig.engine_record,
        model=rig.model,
        workload=workload,
        objectives=settings.objective_records(),
        constraints=settings.constraint_records(),
        power=rig.meter.source,
        space=space.describe(),
        trials=(),
        front=(),
        baseline=None,
        recommended=None,
        pick=settings.search.pick,
        prices=settings.prices_record(),
        notes=notes,
        caveats=rig.standing_caveats,
        idle_watts=idle_power(rig),
        started_utc=now,
        updated_utc=now,
        sweeper_version=__version__,
        config=_plain(composed.plain),
        baseline_configuration=baseline,
    )


def _refreshed(study: SweepStudy, header: SweepRecord) -> SweepRecord:
    """What a resumed sweep keeps of its first start, with what may change since: prices, pick, notes."""
    kept = study.header()
    fresh = replace(
        kept,
        state="running",
        model=header.model,  # the same files, wherever they lie now
        prices=header.prices,
        pick=header.pick,
        notes=header.notes,
        config=header.config,
    )
    if to_plain(fresh) != to_plain(kept):
        study.save_header(fresh)
    return fresh


def idle_power(rig: Rig) -> Reading | None:
    """Power of the machine at rest, before anything is loaded; None where the meter gave nothing."""
    from sweeper.measure.trial import exactly

    with rig.meter.window() as window:
        started = rig.clock()
        rig.sleep(max(IDLE_SECONDS, 10 * rig.meter.update_period_seconds))
        ended = rig.clock()
    watts = window.reading(started, ended).watts
    return None if watts is None else exactly(watts)


def sweep_name(settings: Settings, space: SearchSpace, workload: Workload, rig: Rig, root: Path) -> str:
    """The sweep's name: the user's, or one made of model and settings.

    A name that was made goes on with an unfinished sweep of the same settings, and is numbered where that
    is finished: the same command again measures again.
    """
    if settings.name:
        return settings.name
    model = rig.model
    decides = {
        "space": space.describe(),
        "fixed": space.fixed,
        "objectives": [to_plain(o) for o in settings.objective_records()],
        "constraints": [to_plain(c) for c in settings.constraint_records()],
        "workload": to_plain(workload),
        "engine": [rig.engine_record.name, settings.engine.environment],
        "model": model.files[model.base_quant].sha256,
        "sampler": settings.search.sampler,
        "power": settings.power.source,
        "machine": rig.machine.fingerprint,
    }
    text = json.dumps(decides, sort_keys=True, default=str)
    base = f"{model.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    names = sweep_names(root)
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in names:
        if SweepStudy.load(root, name).header().state != "complete":
            return name
        number += 1
    return name


def _plan(
    settings: Settings,
    space: SearchSpace,
    first: tuple[Configuration, ...],
    stop_reason: Callable[[], str | None] | None,
) -> SearchPlan:
    search = settings.search
    points = _counted(space)
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
    )


def _earlier(name: str, settings: Settings, rig: Rig, space: SearchSpace, root: Path) -> Earlier | None:
    """What an earlier sweep on this machine leaves, where it may teach."""
    if not settings.search.transfer:
        return None
    return from_earlier(
        root, rig.machine, rig.engine_record.simulated, settings.objective_records(), space, name
    )


def _with_earlier(
    first: tuple[Configuration, ...], earlier: Earlier | None
) -> tuple[tuple[Configuration, ...], tuple[str, ...]]:
    """What to ask first, after the baseline also what an earlier sweep found best, and a line that says so."""
    if earlier is None:
        return first, ()
    note = f"starts from what the sweep {earlier.sweep} found here; search.transfer=false starts anew"
    return tuple(dict.fromkeys((first[0], *earlier.configurations, *first[1:]))), (note,)


def speeds_of_engine(record: SweepRecord, trial: TrialRecord) -> Mapping[str, Reading]:
    """What sweeper's own engine gives for a trial of a finished sweep now, in tok/s. Raises TrialFailed."""
    from sweeper.apply.fresh import model_file
    from sweeper.apply.run import environment_of
    from sweeper.engine.llama_cpp import LlamaCppEngine

    path = Path(model_file(record, trial).path).expanduser()
    with LlamaCppEngine({trial.configuration.quant: path}, dict(environment_of(record))) as engine:
        return speeds_now(engine, trial.configuration, record.workload)


def finalist_measurements(plan: SearchPlan) -> int:
    """How many measurements the final stage is expected to take."""
    return (plan.finalists + 1) * FINAL_VISITS


def _counted(space: SearchSpace) -> int:
    count = 0
    for count, _ in enumerate(space.grid(), 1):
        if count >= MOST_COUNTED:
            break
    return count


# -- folders, locks, limits ---------------------------------------------------------------------------------


def _make_folder(root: Path) -> None:
    try:
        (root / "journal").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write in {root}: {error.strerror}; choose another root=…") from error


def alone(root: Path, name: str) -> AbstractContextManager[None]:
    """Hold the sweep's lock; another process that writes the same sweep is refused."""

    def busy(owner: str) -> SweepBusyError:
        return SweepBusyError(
            f"the sweep {name!r} is being written by process {owner}: wait for it, or choose name=…"
        )

    return locks.held(root / "journal" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock", busy)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
