"""Sweeps in MLflow: one experiment a model, one parent run a sweep, one flat child a trial.

MLflow is a projection: the truth is the sweep's own study, and ``Tracker`` brings the store to the state
that follows from it, however often it is asked and wherever it was killed.

    projection.py   what should stand in MLflow for a record                            (pure)
    description.py  the parent's description: the answer to "what should I run?"        (pure)
    views.py        the sweep's saved view of MLflow's page of runs                    (pure)
    store.py        opening a store: quiet, checked, its schema made once, mended after a move
    reconcile.py    bringing one run to what it should be, by the fewest calls
    tracker.py      ``Tracker``: what a sweep calls
"""

from sweeper.tracking.tracker import Tracker

__all__ = ["Tracker"]
