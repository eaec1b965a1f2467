"""The table of all metrics of a trial. `docs/measuring.md` explains how sweeper measures each of them.

Configuration, search, results, reports and verify all read this table. A new metric needs a row here, and code in
`sweeper.measure` that computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["prefill", "decode"]
Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True, slots=True)
class Metric:
    """The properties of one metric. ``phase`` is None for a metric that does not depend on a single phase."""

    name: str
    title: str  # for people: "decode speed"
    unit: str
    head: str  # the short heading of its column
    short: str  # the name in a comparison: "-3 % speed"
    phase: Phase | None = None
    direction: Direction = "minimize"
    exact: bool = False  # computed or read once, so repeats of a trial do not change it
    is_objective: bool = True  # can be an objective or a constraint
    most: float | None = None  # the highest value that is possible

    @property
    def power(self) -> bool:
        """Whether it depends on the power sensor, so it carries that sensor's trust."""
        return self.unit in ("W", "J/token")


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tokens_per_second", "decode speed", "tok/s", "tok/s", "speed", "decode", "maximize"),
        Metric(
            "tokens_per_second_per_user",
            "speed of each user",
            "tok/s",
            "tok/s a user",
            "speed of each user",
            "decode",
            "maximize",
        ),
        Metric(
            "prompt_tokens_per_second",
            "prefill speed",
            "tok/s",
            "prefill tok/s",
            "prompt speed",
            "prefill",
            "maximize",
        ),
        Metric("watts", "power while decoding", "W", "W", "watts", "decode"),
        Metric("prompt_watts", "power while prefilling", "W", "prefill W", "prompt watts", "prefill"),
        Metric("joules_per_token", "energy per generated token", "J/token", "J/tok", "J/token", "decode"),
        Metric(
            "prompt_joules_per_token",
            "energy per prompt token",
            "J/token",
            "prefill J/tok",
            "prompt J/token",
            "prefill",
        ),
        Metric(
            "tokens_per_second_at_full_depth",
            "decode speed with a full context",
            "tok/s",
            "full tok/s",
            "speed with a full context",
            direction="maximize",
            is_objective=False,
        ),
        Metric(
            "prompt_tokens_per_second_at_full_depth",
            "prefill speed with a full context",
            "tok/s",
            "full prefill tok/s",
            "prompt speed with a full context",
            direction="maximize",
            is_objective=False,
        ),
        Metric(
            "watts_at_full_depth",
            "power while decoding with a full context",
            "W",
            "full W",
            "watts with a full context",
            is_objective=False,
        ),
        Metric(
            "time_to_first_token_seconds_at_full_depth",
            "time to first token when the prompt fills the context",
            "s",
            "first word when full s",
            "time to first token when full",
            is_objective=False,
        ),
        Metric(
            "net_joules_per_token",
            "energy per token above idle",
            "J/token",
            "net J/tok",
            "net J/token",
            is_objective=False,
        ),
        Metric("idle_watts", "power at rest", "W", "idle W", "idle watts", is_objective=False),
        Metric("resident_watts", "power with the model loaded, idle", "W", "loaded W", "resident watts"),
        Metric(
            "time_to_first_token_seconds", "time to first token", "s", "first token s", "time to first token"
        ),
        Metric(
            "time_to_first_token_p95_seconds",
            "time to first token, 95th percentile",
            "s",
            "first token p95 s",
            "95th percentile of the time to first token",
        ),
        Metric("request_seconds", "time of one request", "s", "request s", "time of a request"),
        Metric(
            "draft_acceptance",
            "accepted share of drafted tokens",
            "0 to 1",
            "accepted",
            "acceptance of drafts",
            "decode",
            "maximize",
            is_objective=False,
            most=1.0,
        ),
        Metric("memory_mib", "peak memory", "MiB", "MiB", "memory", exact=True),
        Metric("vram_mib", "peak device memory", "MiB", "VRAM MiB", "GPU memory", exact=True),
        Metric(
            "kl_divergence",
            "quality lost (KL divergence)",
            "nats/token",
            "KL divergence",
            "kl divergence",
            "decode",
            exact=True,
        ),
        Metric(
            "top_token_agreement_percent",
            "same most likely token",
            "%",
            "same top token %",
            "same top tokens",
            "decode",
            "maximize",
            exact=True,
            is_objective=False,
        ),
        Metric("n_ctx", "context length", "tokens", "context", "context", None, "maximize", exact=True),
    )
}
OBJECTIVES = tuple(metric.name for metric in METRICS.values() if metric.is_objective)
# The metrics of speed and of power. A pick calls them "speed" and "cost" if a sweep has several objectives.
SPEEDS = tuple(m.name for m in METRICS.values() if m.unit == "tok/s")
POWERS = ("watts", "prompt_watts")
# Computed from prefill windows, perhaps together with decode windows.
NEED_PREFILL = (
    *(m.name for m in METRICS.values() if m.phase == "prefill"),
    *("time_to_first_token_seconds", "request_seconds"),
)
# Known before a trial, because they depend only on its quantisation and cache types.
OF_QUALITY = ("kl_divergence", "top_token_agreement_percent")
FIRST_WHEN_FULL = "time_to_first_token_seconds_at_full_depth"
# Measured at the client while all users are busy, if the workload has several.
ONLY_WITH_USERS = ("tokens_per_second_per_user", "time_to_first_token_p95_seconds")
OF_USERS = (*ONLY_WITH_USERS, "time_to_first_token_seconds", "request_seconds")


def describe(name: str) -> Metric:
    """The metric of that name. For an unknown name from an older record, the description repeats the name."""
    words = name.replace("_", " ")
    return METRICS.get(name) or Metric(name, words, "W" if "watts" in name else "", name, words)
