"""Puts a recommended configuration into force: targets, diff, backup, undo, and the check that it holds.

``run`` plans and writes, ``rollback`` undoes, ``render_…`` turn what they return into text.
"""

from sweeper.apply.base import Command, Draft, FileChange, Request, Target
from sweeper.apply.fresh import differences, require_fresh
from sweeper.apply.journal import Entry, PowerLimit, Undone, entries, last_to_undo, rollback
from sweeper.apply.run import ApplyPlan, Options, Outcome, plan, resolve, run, write_plan
from sweeper.apply.targets.registry import target, target_names, targets
from sweeper.apply.text import outcome_to_plain, render_outcome, render_undone, undone_to_plain
from sweeper.apply.verify.check import Verification, VerifyOptions, judge, verify
from sweeper.apply.verify.text import render_verification, verification_to_plain

__all__ = [
    "ApplyPlan",
    "Command",
    "Draft",
    "Entry",
    "FileChange",
    "Options",
    "Outcome",
    "PowerLimit",
    "Request",
    "Target",
    "Undone",
    "Verification",
    "VerifyOptions",
    "differences",
    "entries",
    "judge",
    "last_to_undo",
    "outcome_to_plain",
    "plan",
    "render_outcome",
    "render_undone",
    "render_verification",
    "require_fresh",
    "resolve",
    "rollback",
    "run",
    "target",
    "target_names",
    "targets",
    "undone_to_plain",
    "verification_to_plain",
    "verify",
    "write_plan",
]
