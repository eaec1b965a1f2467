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
    direction: Direction
    phase: Phase | None = None
    needs_prefill: bool = False  # computed from prefill windows, perhaps together with decode windows
    power: bool = False  # depends on the power sensor, so it carries that sensor's trust
    exact: bool = False  # computed or read once, so it has no spread
    is_objective: bool = True  # can be an objective or a constraint


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tokens_per_second", "decode speed", "tok/s", "tok/s", "speed", "maximize", "decode"),
        Metric(
            "prompt_tokens_per_second",
            "prefill speed",
            "tok/s",
            "prefill tok/s",
            "prompt speed",
            "maximize",
            "prefill",
            needs_prefill=True,
        ),
        Metric("watts", "power while decoding", "W", "W", "watts", "minimize", "decode", power=True),
        Metric(
            "prompt_watts",
            "power while prefilling",
            "W",
            "prefill W",
            "prompt watts",
            "minimize",
            "prefill",
            needs_prefill=True,
            power=True,
        ),
        Metric(
            "joules_per_token",
            "energy per generated token",
            "J/token",
            "J/tok",
            "J/token",
            "minimize",
            "decode",
            power=True,
        ),
        Metric(
            "prompt_joules_per_token",
            "energy per prompt token",
            "J/token",
            "prefill J/tok",
            "prompt J/token",
            "minimize",
            "prefill",
            needs_prefill=True,
            power=True,
        ),
        Metric(
            "net_joules_per_token",
            "energy per token above idle",
            "J/token",
            "net J/tok",
            "net J/token",
            "minimize",
            power=True,
            is_objective=False,
        ),
        Metric(
            "idle_watts",
            "power at rest",
            "W",
            "idle W",
            "idle watts",
            "minimize",
            power=True,
            is_objective=False,
        ),
        Metric(
            "resident_watts",
            "power with the model loaded, idle",
            "W",
            "loaded W",
            "resident watts",
            "minimize",
            power=True,
        ),
        Metric(
            "time_to_first_token_seconds",
            "time to first token",
            "s",
            "first token s",
            "time to first token",
            "minimize",
            needs_prefill=True,
        ),
        Metric(
            "request_seconds",
            "time of one request",
            "s",
            "request s",
            "time of a request",
            "minimize",
            needs_prefill=True,
        ),
        Metric("memory_mib", "peak memory", "MiB", "MiB", "memory", "minimize", exact=True),
        Metric("vram_mib", "peak device memory", "MiB", "VRAM MiB", "GPU memory", "minimize", exact=True),
        Metric(
            "kl_divergence",
            "quality lost (KL divergence)",
            "nats/token",
            "KLD",
            "kl divergence",
            "minimize",
            "decode",
            exact=True,
        ),
        Metric("n_ctx", "context length", "tokens", "context", "context", "maximize", exact=True),
    )
}
OBJECTIVES = tuple(metric.name for metric in METRICS.values() if metric.is_objective)
# The metrics of speed and of power. A pick calls them "speed" and "cost" if a sweep has several objectives.
SPEEDS = tuple(m.name for m in METRICS.values() if m.unit == "tok/s")
POWERS = ("watts", "prompt_watts")
NEED_PREFILL = tuple(m.name for m in METRICS.values() if m.needs_prefill)


def describe(name: str) -> Metric:
    """The metric of that name. For an unknown name from an older record, the description repeats the name."""
    words = name.replace("_", " ")
    return METRICS.get(name) or Metric(name, words, "", name, words, "minimize", power="watts" in name)
