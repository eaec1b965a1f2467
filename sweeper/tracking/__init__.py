"""Sweeps in MLflow: one experiment a model, one parent run a sweep, one flat child a trial.

MLflow is a projection of the sweep's own study. ``Tracker`` brings the store to the state that follows from
the study, however often it is asked and wherever it was killed.

    projection.py   what MLflow should show for a record                                (pure)
    description.py  the parent's description: the answer to "what should I run?"        (pure)
    views.py        the sweep's saved view of MLflow's page of runs                     (pure)
    store.py        opens a store: quiet, checked, its schema made once, mended after a move
    reconcile.py    brings one run to what it should be
    tracker.py      ``Tracker``: what a sweep calls
    ui.py           ``sweeper ui``: MLflow's pages
"""

from sweeper.tracking.tracker import Tracker

__all__ = ["Tracker"]
