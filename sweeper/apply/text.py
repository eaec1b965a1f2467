"""Plans, outcomes and rollbacks as text for a terminal. Nothing here prints."""

from __future__ import annotations

import difflib
import shlex
from typing import Any

from sweeper.apply.base import Command, FileChange, lines_of
from sweeper.apply.journal import Undone
from sweeper.apply.run import Outcome
from sweeper.records import to_plain


def diff_of(change: FileChange) -> str:
    """A unified diff, empty if nothing changes. Characters that a terminal would hide or obey are escaped."""
    if change.before == change.after:
        return ""
    before, after = (_shown(data) for data in (change.before or b"", change.after))
    old = "/dev/null" if change.before is None else str(change.path)
    return "".join(difflib.unified_diff(before, after, old, str(change.path)))


def _shown(data: bytes) -> list[str]:
    shown = []
    for line in lines_of(data.decode("utf-8", "backslashreplace")):
        characters = line.rstrip("\r\n")
        escaped = (
            c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in characters
        )
        shown.append("".join(escaped) + ("\n" if line.endswith("\n") else "\n\\ no end of line\n"))
    return shown


def command_line(command: Command) -> str:
    """A command as typed into a shell."""
    words = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    return " ".join([*words, *(shlex.quote(word) for word in command.argv)])


def render_outcome(outcome: Outcome) -> str:
    """What apply did, or would do with ``--write``: the diffs, the commands to run next, the notes."""
    plan, request, draft = outcome.plan, outcome.plan.request, outcome.plan.draft
    pick = f" ({plan.pick})" if plan.pick else ""
    trial = f"trial #{request.trial.number}{pick} of sweep {request.record.sweep}"
    verb = "applied" if outcome.entry else "would apply"
    head = f"{verb} {trial} to {plan.target} as {request.name}"
    parts = [f"copy this to use {trial} in {plan.target}:" if draft.snippet else head]
    for change in draft.files:
        parts.append(f"{change.path}  ({change.says})" if change.says else str(change.path))
        parts.append(diff_of(change).rstrip("\n") or "  no change")
    if plan.limit_watts is not None:
        verb = "set to" if outcome.entry else "to be set to"
        parts.append(f"power limit of {plan.limit_device}: {verb} {plan.limit_watts} W")
    if draft.snippet:
        parts.append(draft.snippet.rstrip("\n"))
    parts += [f"{command.says}:\n  {command_line(command)}" for command in draft.commands]
    parts += [f"note: {note}" for note in draft.notes]
    if outcome.entry is not None:
        parts.append(f"backup in {outcome.journal}; undo with `sweeper rollback`")
    elif not plan.changes_nothing:
        simulated = "this sweep is simulated, so there is nothing to write"
        parts.append(
            simulated if request.record.engine.simulated else "nothing was written: add --write to do it"
        )
    elif draft.files:
        parts.append("nothing to write: everything is in place already")
    return "\n".join(parts)


def render_undone(undone: Undone) -> str:
    """What a rollback restored."""
    entry = undone.entry
    lines = [
        f"rolled back the apply to {entry.target} of {entry.utc} (sweep {entry.sweep}, trial #{entry.trial})"
    ]
    lines += [f"  restored  {path}" for path in undone.restored]
    lines += [f"  removed   {path}" for path in undone.removed]
    lines += [f"  unchanged {path}" for path in undone.unchanged]
    lines += [f"  edited since, a copy is kept in {path}" for path in undone.kept_aside]
    if undone.limit_watts is not None and entry.limit is not None:
        lines.append(f"  power limit of {entry.limit.device}: {undone.limit_watts:g} W again")
    lines += [f"note: {note}" for note in undone.notes]
    return "\n".join(lines)


def outcome_to_plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome for ``--json``."""
    plan, request, draft = outcome.plan, outcome.plan.request, outcome.plan.draft
    watts = plan.limit_watts
    return {
        "schema": 1,
        "target": plan.target,
        "sweep": request.record.sweep,
        "trial": request.trial.number,
        "pick": plan.pick,
        "name": request.name,
        "port": request.port,
        "model_path": request.model_path,
        "configuration": request.configuration.to_dict(),
        "written": outcome.entry is not None,
        "journal": outcome.journal,
        "files": [
            {
                "path": str(change.path),
                "says": change.says,
                "created": change.before is None,
                "changed": change.before != change.after,
                "content": change.after.decode("utf-8"),
                "diff": diff_of(change),
            }
            for change in draft.files
        ],
        "commands": to_plain(draft.commands),
        "snippet": draft.snippet,
        "notes": list(draft.notes),
        "power_limit": None if watts is None else {"device": plan.limit_device, "watts": watts},
    }


def undone_to_plain(undone: Undone) -> dict[str, Any]:
    """A rollback for ``--json``."""
    plain = to_plain(undone)
    entry = plain.pop("entry")
    head = {name: entry[name] for name in ("id", "target", "sweep", "trial")}
    return {"schema": 1, **head, "power_limit_watts": plain.pop("limit_watts"), **plain}
