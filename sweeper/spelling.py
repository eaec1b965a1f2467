"""Reads numbers as people type them (``90s``, ``16k``, ``0,30``), and finds the nearest right spelling of a word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from sweeper.metrics import METRICS

_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0}
_SECONDS |= dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0)
_SECONDS |= dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0)
_MIB = {"mib": 1.0, "m": 1.0, "gib": 1024.0, "g": 1024.0, "kib": 1 / 1024}
_MIB |= {"mb": 1e6 / 2**20, "gb": 1e9 / 2**20, "kb": 1e3 / 2**20}
_SPEED = dict.fromkeys(("tok/s", "t/s", "tokens/s", "tps"), 1.0)
_TOKENS = {"k": 1024.0, "ki": 1024.0, "m": 1024.0**2}
_TOKENS |= dict.fromkeys(("t", "tok", "token", "tokens"), 1.0)
_PLAIN = {"k": 1000.0}

# The ends of keys that have a unit in their name, that unit in the table behind it, and an example.
_UNITS: tuple[tuple[str, Mapping[str, float], float, str], ...] = (
    (r"tokens_per_second(_at_full_depth)?$", _SPEED, 1.0, "20tok/s"),
    (r"joules_per_token$", {"j": 1.0, "j/token": 1.0, "j/tok": 1.0, "mj": 0.001}, 1.0, "0.5"),
    (r"seconds$", _SECONDS, 1.0, "500ms, 90s, 2m"),
    (r"minutes$", _SECONDS, 60.0, "90s, 2m, 1h"),
    (r"hours(_per_day)?$", _SECONDS, 3600.0, "30m, 4h"),
    (r"watts$", {"w": 1.0, "kw": 1000.0, "mw": 0.001}, 1.0, "60W"),
    (r"_mhz$", {"mhz": 1.0, "ghz": 1000.0}, 1.0, "1500MHz"),
    (r"_hz$", {"hz": 1.0}, 1.0, "10Hz"),
    (r"_mib$", _MIB, 1.0, "4GiB"),
    (r"per_kwh$", {"ct": 0.01, "cent": 0.01, "cents": 0.01}, 1.0, "0.30"),
    (r"(n_ctx|n_batch|n_ubatch|n_ctx_train|depth|_tokens)$", _TOKENS, 1.0, "16384, 16k"),
    (r"kl_divergence$", {"nats": 1.0, "nats/token": 1.0}, 1.0, "0.1"),
)
_NUMBER = r"[-+]?(?:\d[\d_]*(?:[.,]\d+)?|[.,]\d+)(?:[eE][-+]?\d+)?"
_PART = re.compile(rf"\s*({_NUMBER})\s*([^\W\d_][^\W\d_/]*(?:/[^\W\d_]+)?)?\s*")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}([.,]\d{3})+")


def number(key: str, text: str, *, whole: bool = False) -> str | None:
    """``text`` as a plain number in the unit of ``key``; None if its meaning is not plain.

    ``16k`` is 16384 for tokens and 16000 for other counts. ``0,30`` is 0.30. ``1h30m`` adds up. A unit must fit the
    key's name: a metric's, or a key's that ends in a unit, such as ``warmup_seconds``. A key's own noun counts as its
    unit, as in ``n_threads=4 threads``. With ``whole``, a result that is not a whole number has no plain meaning.
    """
    units, base, _ = _units_of(key)
    parts: list[tuple[str, str]] = []
    at = 0
    while found := _PART.match(text, at):
        parts.append((found[1], (found[2] or "").lower()))
        at = found.end()
    adds_up = units is _SECONDS and all(unit for _, unit in parts)
    if at != len(text) or not parts or (len(parts) > 1 and not adds_up):
        return None
    total = 0.0
    for digits, unit in parts:
        if unit and unit not in units:
            return None
        if "," in digits and (whole or _THOUSANDS.fullmatch(digits)):
            return None  # 16,384 is a count to some people and a fraction to others
        value = float(digits.replace(",", ".").replace("_", ""))
        total += value * (units[unit] / base if unit else 1.0)
    if total.is_integer() and (whole or abs(total) < 2**53):
        return str(int(total))
    return None if whole else f"{total:.12g}"


def examples(key: str) -> str:
    """Values of ``key`` as it takes them, such as ``90s, 2m, 1h``; empty if its name has no unit."""
    return _units_of(key)[2]


def _units_of(key: str) -> tuple[Mapping[str, float], float, str]:
    name = key.rpartition(".")[2]
    noun = name.rpartition("_")[2]
    own = {word: 1.0 for word in (name, noun, noun.removesuffix("s")) if len(word) > 1}
    for ending, units, base, shown in _UNITS:
        if re.search(ending, name):
            return units, base, shown
    return _PLAIN | own, 1.0, ""


def bound(metric: str, text: str) -> tuple[str, float] | None:
    """``(op, value)`` of a bound such as ``<=500ms``, ``< 60 W`` or ``60``; None if it is no bound.

    Without a sign, the bound is an upper one for a metric that should be small, else a lower one.
    """
    found = re.fullmatch(r"\s*(<=|>=|=<|=>|<|>|≤|≥)?\s*(.+?)\s*", text)
    value = number(metric, found[2]) if found else None
    if found is None or value is None:
        return None
    sign = found[1] or (">" if metric in METRICS and METRICS[metric].direction == "maximize" else "<")
    return ("<=" if sign[0] in "<≤" or sign == "=<" else ">="), float(value)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """``; did you mean X?`` with the name in ``allowed`` that is most like ``word``; empty if none is."""
    by_lower = {name.lower(): name for name in allowed}
    lower = word.lower()
    near = difflib.get_close_matches(lower, by_lower, n=1)
    begins = [name for name in by_lower if len(lower) > 1 and name.startswith(lower)]
    found = near or begins[:1]
    return f"; did you mean {by_lower[found[0]]}?" if found else ""
