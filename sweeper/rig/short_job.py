"""A short job does not search levels whose quality it would have to measure first.

A level is a quantisation with the types of the K and of the V cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from sweeper.config import SHORT_MINUTES, Composed
from sweeper.metrics import OF_QUALITY
from sweeper.parameters import LOSSY_KEYS
from sweeper.records import ModelFile
from sweeper.rig.base import Rig
from sweeper.rig.quantisations import comparison, with_values
from sweeper.search.study import SweepStudy, sweep_names
from sweeper.search.warm_start import nearest
from sweeper.space.space import SearchSpace

Values = Mapping[str, tuple[Any, ...]]  # of each parameter that changes quality


def in_time(rig: Rig, space: SearchSpace, composed: Composed) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space without the levels that a short job has no time to compare, and a note that names the parameters.

    Levels whose quality is known stay, and so do values that the user typed. If the user asks for quality itself, as an
    objective or by a constraint, the space stays as it is. A sweep that goes on keeps the levels that it began with.
    """
    settings = composed.settings
    if not settings.is_short() or _asks_for_quality(composed):
        return space, ()
    root = Path(settings.root)
    at_hand = replace(rig, model=replace(rig.model, files=_files_at_hand(rig, space, root)))
    compare = comparison(at_hand, space, settings, root, lambda _: None)
    if compare is None:
        return space, ()
    searched = {name: _values(space, name) for name in LOSSY_KEYS}
    # Quantisations that nothing here can make leave the space later, for a reason of their own.
    impossible = set() if rig.makes_quantisations else set(searched["quant"]) - set(rig.model.files) - {None}
    searched["quant"] = tuple(quant for quant in searched["quant"] if quant not in impossible)
    typed = {name for name in LOSSY_KEYS if composed.types(f"space.{name}")}

    @cache
    def is_known(level: tuple[Any, ...]) -> bool:
        quant, type_k, type_v = level
        return compare.is_known((quant or rig.model.base_quant, type_k, type_v))

    left = _as_begun(settings.name, root, searched, typed) or _affordable(space, searched, typed, is_known)
    for name in [name for name in LOSSY_KEYS if name in space.parameters]:
        stay = {*left[name], *impossible}
        space = with_values(space, name, tuple(v for v in space.parameters[name].values if v in stay))
    return space, _said(searched, left, settings.minutes or SHORT_MINUTES)


def _asks_for_quality(composed: Composed) -> bool:
    """Whether quality is an objective, or a constraint that the user typed."""
    settings = composed.settings
    bounded = {c.metric for c in settings.constraint_records()} & set(OF_QUALITY)
    typed = [word for word in composed.typed if word.startswith("objectives.constraints")]
    by_constraint = any(metric in word for metric in bounded for word in typed)
    return by_constraint or bool(set(OF_QUALITY) & set(settings.objectives.targets))


def _files_at_hand(rig: Rig, space: SearchSpace, root: Path) -> dict[str, ModelFile]:
    """The model's files, and those of the space that an earlier sweep made. What was not made was never compared."""
    from sweeper.model.quantise import is_made, quantised

    files = dict(rig.model.files)
    if rig.use_files is None or not rig.makes_quantisations:
        return files
    base = Path(files[rig.model.base_quant].path)
    for quant in _values(space, "quant"):
        if quant is not None and quant not in files and is_made(base, quant, root):
            files[quant] = quantised(base, quant, root).file
    return files


def _values(space: SearchSpace, name: str) -> tuple[Any, ...]:
    return space.parameters[name].values if name in space.parameters else (getattr(space.base, name),)


def _as_begun(name: str | None, root: Path, searched: Values, typed: Collection[str]) -> Values | None:
    """The values with which the sweep ``name`` began; None for a new sweep."""
    if name is None or name not in sweep_names(root):
        return None
    header = SweepStudy.load(root, name).header()
    base = header.baseline_configuration
    if base is None:  # of an early version, which left nothing out
        return searched
    had = {key: header.space.get(key, [getattr(base, key)]) for key in LOSSY_KEYS}
    # Where nothing is in common, the study itself says how the spaces differ.
    return {
        key: values if key in typed else tuple(v for v in values if v in had[key]) or values
        for key, values in searched.items()
    }


def _affordable(
    space: SearchSpace, searched: Values, typed: Collection[str], is_known: Callable[[tuple[Any, ...]], bool]
) -> Values:
    """The typed values with those of the baseline, and every other value that needs no new comparison."""
    left = {
        name: values if name in typed else (nearest(values, getattr(space.base, name)),) if values else ()
        for name, values in searched.items()
    }
    levels = set(product(*left.values()))
    wanted = levels if len(levels) > 1 else set()  # a single level is not compared with any other
    for name, values in searched.items():
        for value in values:
            more = {**left, name: tuple(v for v in values if v in (*left[name], value))}
            if all(level in wanted or is_known(level) for level in product(*more.values())):
                left = more
    return left


def _said(searched: Values, left: Values, minutes: float) -> tuple[str, ...]:
    """One line about the values that left the space; none if all stay."""
    fewer = {name: left[name] for name, values in searched.items() if len(left[name]) < len(values)}
    if not fewer:
        return ()
    gone = [name for name, values in fewer.items() if len(values) == 1]
    parts = [f"{name} is searched only for {', '.join(v)}" for name, v in fewer.items() if name not in gone]
    if gone:
        names = " and ".join(filter(None, (", ".join(gone[:-1]), gone[-1])))
        parts.insert(0, f"{names} {'is' if len(gone) == 1 else 'are'} not searched")
    time = "1 minute" if minutes == 1 else f"{minutes:g} minutes"
    why = f"there is no time in {time} to measure the quality of other levels"
    fix = f"give minutes=4 or more, or name the values with space.{next(iter(fewer))}=…"
    return (f"{'; '.join(parts)}: {why}; {fix}",)
