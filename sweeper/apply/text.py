"""Plans, outcomes and rollbacks as text for a terminal. Nothing here prints."""

from __future__ import annotations

import difflib
import shlex
from typing import Any

from sweeper.apply.base import Command, FileChange, lines_of
from sweeper.apply.journal import Undone
from sweeper.apply.run import Outcome


def diff_of(change: FileChange) -> str:
    """A unified diff, empty if nothing changes. Characters that a terminal would hide or obey are escaped."""
    if change.before == change.after:
        return ""
    before, after = (_shown(data) for data in (change.before or b"", change.after))
    old = "/dev/null" if change.before is None else str(change.path)
    return "".join(difflib.unified_diff(before, after, old, str(change.path)))


def command_line(command: Command) -> str:
    """A command as typed into a shell."""
    words = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    return " ".join([*words, *(shlex.quote(word) for word in command.argv)])


def render_outcome(outcome: Outcome) -> str:
    """What apply did, or would do with ``--write``: the diffs, the commands to run next, the notes."""
    plan = outcome.plan
    parts = [_headline(outcome)]
    for change in plan.changes:
        says = f"  ({change.says})" if change.says else ""
        parts.append(f"{change.path}{says}")
        parts.append(diff_of(change).rstrip("\n") or "  no change")
    if plan.limit_watts is not None:
        verb = "set to" if outcome.entry else "to be set to"
        parts.append(f"power limit of {plan.limit_device}: {verb} {plan.limit_watts} W")
    if plan.snippet:
        parts.append(plan.snippet.rstrip("\n"))
    parts += [f"{command.says}:\n  {command_line(command)}" for command in plan.commands]
    parts += [f"note: {note}" for note in plan.notes]
    parts.append(_next_step(outcome))
    return "\n".join(part for part in parts if part) + "\n"


def render_undone(undone: Undone) -> str:
    """What a rollback restored."""
    entry = undone.entry
    lines = [
        f"rolled back the apply to {entry.target} of {entry.utc} (sweep {entry.sweep}, trial {entry.trial})"
    ]
    lines += [f"  restored  {path}" for path in undone.restored]
    lines += [f"  removed   {path}" for path in undone.removed]
    lines += [f"  unchanged {path}" for path in undone.unchanged]
    lines += [f"  edited since, a copy is kept in {path}" for path in undone.kept_aside]
    if undone.limit_watts is not None and entry.limit is not None:
        lines.append(f"  power limit of {entry.limit.device}: {undone.limit_watts:g} W again")
    lines += [f"note: {note}" for note in undone.notes]
    return "\n".join(lines) + "\n"


def outcome_to_plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome for ``--json``."""
    plan = outcome.plan
    return {
        "schema": 1,
        "target": plan.target,
        "sweep": plan.sweep,
        "trial": plan.trial,
        "pick": plan.pick,
        "name": plan.name,
        "port": plan.port,
        "model_path": plan.model_path,
        "configuration": plan.configuration.to_dict(),
        "written": outcome.entry is not None,
        "journal": outcome.journal,
        "files": [
            {
                "path": str(c.path),
                "says": c.says,
                "created": c.before is None,
                "changed": c.before != c.after,
                "content": c.after.decode("utf-8"),
                "diff": diff_of(c),
            }
            for c in plan.changes
        ],
        "commands": [
            {"says": c.says, "argv": list(c.argv), "environment": dict(c.environment)} for c in plan.commands
        ],
        "snippet": plan.snippet,
        "notes": list(plan.notes),
        "power_limit": None
        if plan.limit_watts is None
        else {"device": plan.limit_device, "watts": plan.limit_watts},
    }


def undone_to_plain(undone: Undone) -> dict[str, Any]:
    """A rollback for ``--json``."""
    return {
        "schema": 1,
        "id": undone.entry.id,
        "target": undone.entry.target,
        "sweep": undone.entry.sweep,
        "trial": undone.entry.trial,
        "restored": list(undone.restored),
        "removed": list(undone.removed),
        "unchanged": list(undone.unchanged),
        "kept_aside": list(undone.kept_aside),
        "power_limit_watts": undone.limit_watts,
        "notes": list(undone.notes),
    }


def _headline(outcome: Outcome) -> str:
    plan = outcome.plan
    verb = "applied" if outcome.entry else "would apply"
    pick = f" ({plan.pick})" if plan.pick else ""
    return f"{verb} trial {plan.trial}{pick} of sweep {plan.sweep} to {plan.target} as {plan.name}"


def _next_step(outcome: Outcome) -> str:
    if outcome.entry is not None:
        return f"backup in {outcome.journal}; undo with `sweeper rollback`"
    if outcome.plan.changes_nothing:
        return "nothing to write: everything is in place already" if outcome.plan.changes else ""
    return "nothing was written: add --write to do it"


def _shown(data: bytes) -> list[str]:
    lines = lines_of(data.decode("utf-8", "backslashreplace"))
    return [_visible(line) for line in lines]


def _visible(line: str) -> str:
    body = line.rstrip("\r\n")
    end = "" if line.endswith("\n") else "\n\\ no end of line\n"
    shown = "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in body)
    return f"{shown}{end}" + ("\n" if line.endswith("\n") else "")
