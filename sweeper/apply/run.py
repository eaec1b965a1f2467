"""``sweeper apply``: makes a plan from a sweep and a pick, and writes it so that it can be rolled back."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.apply.base import ApplyPlan, Draft, Request, asked_for_context, unfinished
from sweeper.apply.fresh import model_file, require_fresh
from sweeper.apply.journal import Entry, journal_folder, write_plan
from sweeper.apply.names import alias_for, check_text
from sweeper.apply.targets.registry import target as target_named
from sweeper.apply.targets.systemd import limit_unit
from sweeper.errors import ConfigError, NoResultError, UsageError
from sweeper.limits.standing_limit import power_limits
from sweeper.records import EngineRecord, MachineRecord, SweepRecord, TrialRecord
from sweeper.results.provisional import provisional

if TYPE_CHECKING:
    from sweeper.limits.standing_limit import StandingLimit

NO_MODEL = "MODEL.gguf"  # shown where a simulated sweep has no model file


@dataclass(frozen=True, slots=True)
class Options:
    """The user's choice of name, port and place; the target chooses for None."""

    name: str | None = None
    port: int | None = None
    file: Path | None = None  # the target's main file
    folder: Path | None = None  # for files that the target names itself


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan, and the journal's entry if the plan was written."""

    plan: ApplyPlan
    entry: Entry | None = None
    journal: str | None = None  # the folder with the backups


def resolve(record: SweepRecord, pick: str | int) -> TrialRecord:
    """The trial that a pick stands for: a word such as ``within:5%``, or a trial's number.

    Raises:
        UsageError: a word that is no pick, a bound that nothing keeps, or a number that is no finished trial.
        NoResultError: the sweep has nothing to pick from.
    """
    if isinstance(pick, str):
        from sweeper.results.picks import choose

        found = choose(record, pick)
        if found.nearest is not None:
            easier = "Allow more watts" if found.pick.startswith("at-most") else "Ask for less speed"
            raise UsageError(f"--pick {pick}: {found.nearest}. {easier}, or use --pick {found.trial.number}")
        return found.trial
    try:
        trial = record.trial(pick)
    except KeyError:
        raise UsageError(f"sweep {record.sweep!r} has no trial #{pick}") from None
    if trial.state != "complete":
        raise UsageError(f"trial #{pick} is {trial.state} ({trial.reason}): pick one that is complete")
    return trial


def plan(
    record: SweepRecord,
    pick: str | int,
    target: str,
    options: Options | None = None,
    *,
    stale: tuple[str, ...] = (),
    limit: StandingLimit | None = None,
    root: Path | None = None,
) -> ApplyPlan:
    """What writing a pick to a target would change. Reads existing files and changes nothing.

    ``stale`` is what changed since the sweep, for the notes. With ``limit`` the plan sets the power limit too.
    ``root``, sweeper's data folder, tells whether an unfinished sweep still runs.

    A context that was not part of the question does not replace the one that the user's file has.

    Raises:
        UsageError: a target, pick, name or file that cannot be used.
        MissingError: a folder that the target needs does not exist.
    """
    options = options or Options()
    trial = resolve(record, pick)
    words = pick if isinstance(pick, str) else ""
    place = target_named(target)
    port = options.port or place.default_port
    path = model_file(record, trial).path  # empty if the sweep is simulated
    model_path = str(Path(path).expanduser().absolute()) if path else NO_MODEL
    name = options.name or alias_of(record, trial, pick)
    if drafting := record.model.draft_file(trial.configuration):
        check_text("the draft model's path", drafting.path)
    request = Request(
        record=record,
        trial=trial,
        model_path=check_text("the model's path", model_path),
        name=check_text("the name", name),
        port=port,
        folder=options.folder if options.folder is not None else place.default_folder,
        file=options.file,
        port_is_named=options.port is not None,
    )
    draft = place.draft(request)
    kept_context = None if asked_for_context(record) else _replaced_context(draft, trial.configuration.n_ctx)
    if kept_context is not None:
        keeps = trial.configuration.with_(n_ctx=kept_context)
        request = replace(request, trial=replace(trial, configuration=keeps))
        draft = place.draft(request)
    request = replace(request, port=draft.port or port)
    changed = tuple(f"changed since the sweep: {what}" for what in stale)
    unset = None if limit is not None or draft.sets_power_limit else _unset_limit(request, place.name)
    context = _context_note(record, trial, kept_context)
    notes = (*_notes(request, root), *context, *([unset] if unset else []), *draft.notes, *changed)
    found = ApplyPlan(place.name, words, request, replace(draft, notes=notes))
    watts = trial.configuration.power_limit_watts
    if limit is None or watts is None:
        return found
    return replace(found, limit_device=limit.device, limit_watts=watts)


def run(
    record: SweepRecord,
    pick: str | int,
    target: str,
    options: Options | None = None,
    *,
    root: Path,
    machine: MachineRecord,
    engine: EngineRecord,
    write: bool = False,
    force: bool = False,
    limit: StandingLimit | None = None,
) -> Outcome:
    """Plan a pick of a sweep as `plan` does, and write it if ``write`` is true.

    ``root`` is sweeper's data folder, which holds the journal. ``machine`` and ``engine`` are the present ones.
    ``force`` uses the sweep although machine, driver, engine or model changed, or although it is simulated.

    Raises:
        StaleRecordError: something changed since the sweep and ``force`` is not given.
        UsageError, MissingError, LimitRefused: see `plan` and `journal.write_plan`.
    """
    if record.engine.name == "endpoint":
        raise UsageError(
            f"sweep {record.sweep!r} measured a running server, which keeps its own settings: there is nothing to apply"
        )
    stale = require_fresh(record, resolve(record, pick), machine, engine, force=force)
    made = plan(record, pick, target, options, stale=stale, limit=limit, root=root)
    if not write or made.changes_nothing:
        return Outcome(made)
    if record.engine.simulated and not force:
        raise UsageError(
            f"sweep {record.sweep!r} is simulated, so none of its results were measured: --force writes it anyway"
        )
    entry = write_plan(made, root=root, limit=limit)
    return Outcome(made, entry, str(journal_folder(root) / entry.id))


def alias_of(record: SweepRecord, trial: TrialRecord, pick: str | int) -> str:
    """The default name of a pick on a server. A pick that chose the fastest trial is called fast."""
    from sweeper.results.picks import choose

    words = pick if isinstance(pick, str) else ""
    if words.startswith("within"):
        with contextlib.suppress(ConfigError, NoResultError):  # objectives without one speed have no fastest
            if choose(record, "fastest").trial.number == trial.number:
                words = "fastest"
    return alias_for(record.model.name, trial.configuration.quant, words)


# A context length in any of the files that sweeper writes: `ctx-size = 8192`, `--ctx-size 8192`, `"n_ctx": 8192`.
_CONTEXT = re.compile(r"(?:\bctx[-_]size|\bn_ctx|\bnum_ctx|(?:^|\s)-c|^\s*c)\b[\s\"'=:,-]*(\d+)", re.I)


def _replaced_context(draft: Draft, ours: int) -> int | None:
    """The context length, in tokens, that a draft would replace in the user's file; None if it replaces none."""
    for change in draft.files:
        before = (change.before or b"").decode("utf-8").splitlines()
        after = change.after.decode("utf-8").splitlines()
        gone = [line for line in before if line not in after]
        for found in filter(None, map(_CONTEXT.search, gone)):
            if int(found[1]) != ours:
                return int(found[1])
    return None


def _context_note(record: SweepRecord, trial: TrialRecord, kept: int | None) -> tuple[str, ...]:
    n_ctx = trial.configuration.n_ctx
    if kept is not None:
        return (
            f"your context of {kept} tokens stays: the sweep measured with {n_ctx}, which was not part of its "
            f"question. For {n_ctx}, sweep with space.n_ctx={n_ctx}",
        )
    if asked_for_context(record):
        return ()
    return (
        f"the context of {n_ctx} tokens is the default of the workload {record.workload.name}; to choose another, "
        "sweep with space.n_ctx=TOKENS",
    )


def _notes(request: Request, root: Path | None) -> tuple[str, ...]:
    """The notes that do not depend on the target."""
    record, trial = request.record, request.trial
    notes = []
    if state := unfinished(record, root):
        notes.append(f"{state}: what it recommends may change")
    if record.engine.simulated:
        stands = f"; {NO_MODEL} stands for your model file" if request.model_path == NO_MODEL else ""
        notes.append(f"this sweep is simulated: none of its results were measured{stands}")
    broken = [bound for bound, beyond in trial.violations.items() if beyond > 0]
    notes += [f"trial #{trial.number} breaks your constraint {bound}" for bound in broken]
    if not trial.remeasured:
        notes.append(f"trial #{trial.number} was measured only once")
    elif doubt := provisional(record, trial):
        notes.append(f"{doubt}; finish the sweep before you rely on its figures")
    mhz = trial.configuration.clock_limit_mhz
    if mhz is not None:
        notes.append(
            f"the configuration holds a clock limit of {mhz} MHz, which sweeper does not make "
            f"last: `nvidia-smi -i {record.gpu or 'GPU'} -lgc 0,{mhz}` sets it until the next boot"
        )
    return tuple(notes)


def _unset_limit(request: Request, target: str) -> str | None:
    """A note on a power limit that this plan does not set, with the ways that set it on this machine."""
    record, watts = request.record, request.configuration.power_limit_watts
    if watts is None or watts >= _limit_found(record):
        return None
    says = f"the trial ran with a power limit of {watts} W, which this does not set"
    if record.engine.simulated:
        return f"{says}: after a sweep on a real machine, add --power-limit"
    ways = ["add --power-limit"] if len(power_limits(record.gpu or "package")) == 1 else []
    if target != "systemd" and limit_unit(request) is not None:
        ways.append("apply --to systemd as well, for every boot")
    return f"{says}: {' or '.join(ways) or 'set it by hand'}"


def _limit_found(record: SweepRecord) -> float:
    """The power limit that the machine had before the sweep; infinite if the record does not tell."""
    found = next((gpu.power_limit_watts for gpu in record.machine.gpus if gpu.uuid == record.gpu), None)
    if found is None and record.config.get("space", {}).get("power_limit_watts") == "auto":
        searched = record.space.get("power_limit_watts")  # `auto` ends at the limit found
        found = searched.get("high") if isinstance(searched, Mapping) else None
    return math.inf if found is None else math.floor(found)
