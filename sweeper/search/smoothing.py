"""Replaces one noisy screening by the mean of a model of all trials.

Among many similar trials, the luckiest looks best. A model that knows the neighbours removes the luck, so the final
stage measures good trials again instead of lucky ones. sweeper neither records nor recommends these means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sweeper.metrics import describe
from sweeper.records import Objective, Reading, SweepRecord, TrialRecord
from sweeper.search.encoding import Encoder, weighted
from sweeper.search.gaussian_process import GaussianProcess, fit, one_thread, starting_hyper
from sweeper.space.space import SearchSpace
from sweeper.stats import relative_noise

# Fewer trials cannot separate noise from effects.
LEAST_TRIALS = 10
# No median of repeats has less noise than this, even if a few repeats agree by chance.
LEAST_NOISE = 0.01
# A model of more trials would take seconds; beyond this number, the screenings stay unchanged.
MOST_TRIALS = 400


def smoothed(record: SweepRecord, space: SearchSpace) -> SweepRecord:
    """The record with each complete trial's objectives replaced by the mean of a model of all trials."""
    names = [o.metric for o in record.objectives]
    whole = [t for t in record.trials if t.state == "complete" and all(m in t.metrics for m in names)]
    if not LEAST_TRIALS <= len(whole) <= MOST_TRIALS:
        return record
    with one_thread():
        noisy = [o for o in record.objectives if not describe(o.metric).exact]
        means = {o.metric: _means(whole, o, space) for o in noisy}
    changed = {t.number: t for t in record.trials}
    for i, trial in enumerate(whole):
        metrics = _with_means(trial, {m: v[i] for m, v in means.items()})
        changed[trial.number] = replace(trial, metrics=metrics)
    return replace(record, trials=tuple(changed.values()))


def _means(trials: Sequence[TrialRecord], objective: Objective, space: SearchSpace) -> list[float]:
    """The model's mean for each trial, in the objective's unit."""
    raw = [trial.metrics[objective.metric].median for trial in trials]
    if min(raw) <= 0 or max(raw) <= min(raw):
        return raw
    values = np.log(np.array(raw))
    encode = Encoder(space)
    features = weighted(encode([trial.configuration for trial in trials]), encode.weights(objective.metric))
    known = relative_noise(t.metrics[objective.metric] for t in trials)
    noise = min(0.5, max(known or 0.0, LEAST_NOISE) / float(values.std()))
    hyper = fit(features, values, starting_hyper(features.shape[1], noise), noise)
    mean, _ = GaussianProcess(features, values, hyper).predict(features)
    return [math.exp(value) for value in mean]


def _with_means(trial: TrialRecord, means: Mapping[str, float]) -> dict[str, Reading]:
    """The trial's readings, scaled to their expected medians; J/token is scaled accordingly."""
    metrics = dict(trial.metrics)
    for metric, mean in means.items():
        factor = mean / metrics[metric].median if metrics[metric].median else 1.0
        metrics[metric] = _scaled(metrics[metric], factor)
    if "joules_per_token" in metrics and "joules_per_token" not in means:
        speed, watts = metrics.get("tokens_per_second"), metrics.get("watts")
        if speed is not None and watts is not None:
            own = metrics["joules_per_token"]
            metrics["joules_per_token"] = _scaled(own, watts.median / speed.median / own.median)
    return metrics


def _scaled(reading: Reading, factor: float) -> Reading:
    return Reading(reading.median * factor, reading.low * factor, reading.high * factor, reading.n)
