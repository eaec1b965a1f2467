"""The truth: every combination of threads, batch threads, ubatch, flash attention and cache type.

llama.cpp's decode uses neither batch threads nor ubatch, and its prefill does not use the decode threads. So each
combination is the pair of a decode point and a prefill point with the same flash attention and cache type, and only
these points are measured. Passes over all points in random order follow each other while the time allows.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from contest import Claim, Contestant, Outcome, Pick, Rules, write_json
from programs import bench, starts_in

from sweeper import machine

UBATCHES = (64, 128, 256, 512, 1024)
CACHES = (
    (True, "f16"),
    (True, "q8_0"),
    (False, "f16"),
)  # flash attention and type; q8_0 needs flash attention
_FASTEST = 3  # of the decode points, which become candidates for the truth
_SEED = 15


@dataclass(frozen=True, slots=True)
class Point:
    """A decode point (``ubatch`` is None) or a prefill point."""

    threads: int
    flash: bool
    cache: str
    ubatch: int | None = None

    @property
    def shared(self) -> tuple[bool, str]:
        """What a decode point and a prefill point of one combination have in common."""
        return self.flash, self.cache

    def options(self) -> dict[str, Any]:
        """As options of a pick."""
        found = {
            "n_threads": self.threads,
            "flash_attn": self.flash,
            "type_k": self.cache,
            "type_v": self.cache,
        }
        return found if self.ubatch is None else found | {"n_batch": 2048, "n_ubatch": self.ubatch}


def points(cores: int, logical: int) -> tuple[list[Point], list[Point]]:
    """Every decode point and every prefill point."""
    counts = range(1, logical + 1) if logical <= 4 else {1, cores // 4, cores // 2, cores, logical}
    threads = sorted(n for n in counts if n)
    decode = [Point(n, *cache) for n, cache in itertools.product(threads, CACHES)]
    prefill = [Point(n, *cache, ubatch) for n, cache, ubatch in itertools.product(threads, CACHES, UBATCHES)]
    return decode, prefill


def play(rules: Rules, folder: Path, run: int) -> Outcome:
    here = machine.examine()
    decode, prefill = points(here.physical_cores, here.logical_cores)
    speeds: dict[Point, list[float]] = {point: [] for point in (*decode, *prefill)}
    began, shuffled = time.monotonic(), random.Random(_SEED)
    passes = 0
    while passes < rules.grid_passes:
        order = list(speeds)
        shuffled.shuffle(order)
        for point in order:
            speeds[point].append(_measured(rules, folder, point))
        passes += 1
        if (time.monotonic() - began) * (passes + 1) / passes > rules.grid_seconds:
            break
    seconds = time.monotonic() - began
    found = {point: median(values) for point, values in speeds.items()}
    write_json(folder / "points.json", [{**p.options(), "tok/s": v} for p, v in speeds.items()])
    picks = candidates(decode, prefill, found, rules)
    launches, asks = starts_in(folder)
    best = max(found[point] for point in decode)
    count = sum(len([p for p in prefill if p.shared == d.shared]) for d in decode)
    return Outcome(
        contestant="grid",
        run=run,
        state="answered",
        seconds=seconds,
        pick=Pick(str(rules.model), picks[0]),
        claim=Claim(
            best,
            "llama-bench",
            f"measured, tg{rules.generated_tokens}, {passes} {'pass' if passes == 1 else 'passes'}",
        ),
        also=tuple(Pick(str(rules.model), options) for options in picks[1:]),
        launches=launches,
        asks=asks,
        notes=(f"{count} combinations of {len(decode)} decode and {len(prefill)} prefill points",),
    )


def _measured(rules: Rules, folder: Path, point: Point) -> float:
    tokens = (
        {"generated": rules.generated_tokens} if point.ubatch is None else {"prompt": rules.prompt_tokens}
    )
    environment = rules.environment(folder)
    return bench(
        rules.wrappers / "llama-bench", str(rules.model), point.options(), environment=environment, **tokens
    )


def candidates(
    decode: list[Point], prefill: list[Point], found: Mapping[Point, float], rules: Rules
) -> list[dict[str, Any]]:
    """The combinations that may be the truth: the fastest at decode, and the fastest for a whole request."""

    def request_seconds(pair: tuple[Point, Point]) -> float:
        return rules.generated_tokens / found[pair[0]] + rules.prompt_tokens / found[pair[1]]

    pairs = []
    for point in sorted(decode, key=lambda p: -found[p]):
        partners = [p for p in prefill if p.shared == point.shared]
        pairs.append((point, max(partners, key=lambda p: found[p])))
    chosen = [*pairs[:_FASTEST], min(pairs, key=request_seconds)]
    whole = [
        {**d.options(), "n_threads_batch": p.threads, "n_batch": 2048, "n_ubatch": p.ubatch}
        for d, p in chosen
    ]
    return [options for index, options in enumerate(whole) if options not in whole[:index]]


CONTESTANTS = (Contestant("grid", play, once=True),)
