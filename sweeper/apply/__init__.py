"""Applies a recommended configuration: targets, diff, backup, rollback, and the check that it holds.

``run`` plans and writes, ``rollback`` undoes, ``render_…`` turn what they return into text.
"""

from sweeper.apply.base import ApplyPlan
from sweeper.apply.journal import last_to_undo, rollback, write_plan
from sweeper.apply.run import Options, plan, resolve, run
from sweeper.apply.targets.registry import target_names
from sweeper.apply.text import render_outcome, render_undone
from sweeper.apply.verify.check import verify
from sweeper.apply.verify.find import VerifyOptions
from sweeper.apply.verify.text import render_verification, verification_to_plain

__all__ = [
    "ApplyPlan",
    "Options",
    "VerifyOptions",
    "last_to_undo",
    "plan",
    "render_outcome",
    "render_undone",
    "render_verification",
    "resolve",
    "rollback",
    "run",
    "target_names",
    "verification_to_plain",
    "verify",
    "write_plan",
]
