"""A guess in words, as a table and as plain data. Every figure stands beside its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sweeper.guess.records import Figure, Guess
from sweeper.parameters import DEFAULTS
from sweeper.records import to_plain

UNMEASURED = "no figure here was measured for this model just now: `sweeper sweep` measures them"


def plain(guesses: Sequence[Guess]) -> dict[str, Any]:
    """The guesses as plain data for JSON."""
    found = [to_plain(each) for each in guesses]
    for data, each in zip(found, guesses, strict=True):
        for entry, device in zip(data["fit"]["devices"], each.fit.devices, strict=True):
            entry["needed_mib"] = device.needed_mib
    return {"guesses": found, "note": UNMEASURED}


def text(guesses: Sequence[Guess]) -> str:
    """One model in a block of lines, several as a table."""
    if len(guesses) == 1:
        return "\n".join([*block(guesses[0]), f"next: {guesses[0].command}"])
    commands = [f"  {each.command}" for each in guesses if each.fit.fits]
    notes = [f"{each.model} does not fit: {each.fit.reason}" for each in guesses if not each.fit.fits]
    reasons = [
        f"speed ({figure.label}): {figure.reason}"
        for figure in (each.tokens_per_second for each in guesses)
        if figure is not None
    ]
    reasons += [f"watts ({each.watts.label}): {each.watts.reason}" for each in guesses]
    reasons += [f"ceiling (computed): {each.ceiling_reason}" for each in guesses]
    shared = [note for note in guesses[0].notes if all(note in each.notes for each in guesses)]
    reasons += [
        note if note in shared else f"{each.model}: {note}" for each in guesses for note in each.notes
    ]
    said = [*_table(guesses), "", *notes, *dict.fromkeys(reasons), f"({UNMEASURED})"]
    return "\n".join([*said, *(["next:", *commands] if commands else [])])


def block(guess: Guess) -> list[str]:
    """The lines about one model, without the command."""
    size, count = _size(guess.size_bytes / 2**20), _count(guess.parameters)
    lines = [f"{guess.model}: {guess.architecture}, {count} parameters, {guess.quant}, {size}"]
    needs = ", ".join(
        f"{device.needed_mib:.0f} MiB on {device.device}"
        + ("" if device.free_mib is None else f" ({device.free_mib:.0f} free)")
        for device in guess.fit.devices
    )
    verdict = f"yes, needs {needs}" if guess.fit.fits else f"no: {guess.fit.reason}"
    rows = [("fits", f"{verdict}; {guess.fit.label}")]
    ceilings = (guess.ceiling_tokens_per_second, guess.ceiling_tokens_per_second_at_depth)
    if ceilings[0] is None or ceilings[1] is None:
        rows.append(("ceiling", f"unknown: {guess.ceiling_reason}"))
    else:
        words = f"{_number(ceilings[0])} tok/s, and {_number(ceilings[1])} with {guess.depth:,} tokens in the context"
        rows.append(("ceiling", f"{words}; computed: {guess.ceiling_reason}"))
    rows.append(("decode", _figure(guess.tokens_per_second, "tok/s")))
    at_depth = guess.tokens_per_second_at_depth
    rows.append((f"at {guess.depth}", _figure(at_depth, "tok/s", at_depth == guess.tokens_per_second)))
    rows.append(("watts", _figure(guess.watts, "W")))
    rows.append(("start", _settings(guess)))
    rows += [("note", note) for note in guess.notes]
    return [*lines, *(f"  {name:<8} {words}" for name, words in rows), f"  ({UNMEASURED})"]


def _figure(figure: Figure | None, unit: str, brief: bool = False) -> str:
    if figure is None:
        return "unknown"
    span = f"{_number(figure.low)} to {_number(figure.high)} {unit}"
    words = f"about {_number(figure.expected)}, {span}, {figure.label}"
    return words if brief else f"{words}: {figure.reason}"


def _settings(guess: Guess) -> str:
    """The first configuration: the threads and the context, and what differs from a parameter's idle value."""
    always = ("n_threads", "n_ctx", "n_gpu_layers", "quant")
    changed = {
        field.name: getattr(guess.configuration, field.name)
        for field in fields(guess.configuration)
        if field.name in always or getattr(guess.configuration, field.name) != DEFAULTS[field.name]
    }
    return " ".join(f"{name}={value}" for name, value in changed.items())


def _table(guesses: Sequence[Guess]) -> list[str]:
    depths = {each.depth for each in guesses}
    one = f"{guesses[0].depth:,} tokens in the context" if len(depths) == 1 else None
    deep = f"tok/s with {one or 'a full context'}"
    head = ("model", "quant", "size", "fits", "ceiling tok/s", "decode tok/s", deep, "W", "labels")
    rows = [head, *(_row(each, with_depth=one is None) for each in guesses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(guess: Guess, with_depth: bool) -> tuple[str, ...]:
    ceiling = guess.ceiling_tokens_per_second
    figures = (guess.tokens_per_second, guess.tokens_per_second_at_depth, guess.watts)
    labels = dict.fromkeys(figure.label for figure in figures if figure is not None)
    return (
        guess.model,
        guess.quant,
        _size(guess.size_bytes / 2**20),
        "yes" if guess.fit.fits else "no",
        "unknown" if ceiling is None else _number(ceiling),
        _span(figures[0]),
        _span(figures[1]) + (f" ({guess.depth:,} tokens)" if with_depth else ""),
        _span(figures[2]),
        ", ".join(labels),
    )


def _span(figure: Figure | None) -> str:
    return "–" if figure is None else f"{_number(figure.low)}–{_number(figure.high)}"


def _number(value: float) -> str:
    """Two significant digits below 100, whole numbers above: a range of ±25 % supports no more."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.0f} million"


def _size(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
