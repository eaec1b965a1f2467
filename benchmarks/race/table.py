"""The race's result: a document with every figure, and tables of it in markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from contest import Outcome, Pick, Question
from judge import Judge, Measured
from picks import in_short

from sweeper import machine
from sweeper.records import Reading, to_plain
from sweeper.stats import reading

TRUTH = "grid"
BASELINE = "llama.cpp's defaults"
FIRST = "first usable pick"
# The criteria of the truth: decode by each ruler, and requests per second by llama-bench.
CRITERIA = ("bench_decode", "client_decode", "request")
_OF_CLAIM = {"llama-bench": "bench_decode", "client": "client_decode"}
_NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was judged, by the key of an entrant."""

    judge: Judge
    rounds: Sequence[Mapping[str, Measured]]
    divergences: Mapping[str, float | str | None]
    starts: Mapping[str | None, str]

    def series(self, key: str, criterion: str) -> list[float | None]:
        """One value for each round, in tok/s or requests/s; None where there is none."""
        return [self._value(one.get(key, {}), criterion) for one in self.rounds]

    def _value(self, measured: Measured, criterion: str) -> float | None:
        if criterion != "request":
            value: float | None = measured.get(criterion)
            return value
        decode, prefill = measured.get("bench_decode"), measured.get("bench_prefill")
        if not decode or not prefill:
            return None
        rules = self.judge.rules
        return 1 / (rules.prompt_tokens / prefill + rules.generated_tokens / decode)

    def speed(self, key: str, criterion: str) -> Reading | None:
        """Median and interval over the rounds."""
        values = [value for value in self.series(key, criterion) if value is not None]
        return reading(values) if values else None

    def regret(self, key: str, best: str | None, criterion: str) -> Reading | None:
        """By which share the entrant is slower than the best one, from the ratios within each round."""
        if best is None:
            return None
        pairs = zip(self.series(key, criterion), self.series(best, criterion), strict=True)
        ratios = [own / other for own, other in pairs if own is not None and other]
        if not ratios:
            return None
        found = reading(ratios)
        return Reading(1 - found.median, 1 - found.high, 1 - found.low, found.n)

    def error(self, key: str) -> str | None:
        """Why the entrant has no figures, or not all of them."""
        return next((one[key]["error"] for one in self.rounds if "error" in one.get(key, {})), None)


def document(
    judge: Judge,
    outcomes: Sequence[tuple[Outcome, Question]],
    rounds: Sequence[Mapping[str, Measured]],
    divergences: Mapping[str, float | str | None],
    starts: Mapping[str | None, str],
) -> dict[str, Any]:
    """Every figure as plain data."""
    figures = Figures(judge, rounds, divergences, starts)
    best = _truth(figures, [outcome for outcome, _ in outcomes if outcome.contestant == TRUTH])
    rows: dict[str, dict[str, Any]] = {}
    for question in dict.fromkeys(question for _, question in outcomes):
        name = BASELINE if question == "speed" else f"{BASELINE}, F16"
        pick = judge.baseline(question)
        rows[name] = {"question": question, "runs": [_judged(figures, pick, question, best)]}
    for outcome, question in outcomes:
        row = rows.setdefault(outcome.contestant, {"question": question, "runs": []})
        row["runs"].append(_run(figures, outcome, question, best))
        if outcome.first is not None:
            first = rows.setdefault(f"{outcome.contestant}, {FIRST}", {"question": question, "runs": []})
            found = _judged(figures, outcome.first.pick, question, best)
            first["runs"].append({"run": outcome.run, "seconds": outcome.first.seconds, **found})
    for row in rows.values():
        looks = Counter(run["looks"] for run in row["runs"] if "looks" in run)
        row["same_pick_runs"] = max(looks.values(), default=0)
    return {
        "schema": 1,
        "machine": to_plain(machine.examine()),
        "rules": {name: _plain(value) for name, value in to_plain(judge.rules).items()},
        "rounds": len(rounds),
        "load_before": sorted(outcome.load_before for outcome, _ in outcomes),
        "truth": {criterion: _truth_of(figures, outcomes, best, criterion) for criterion in CRITERIA},
        "contestants": rows,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else str(value)


def _truth(figures: Figures, of_grid: Sequence[Outcome]) -> dict[str, str | None]:
    """The key of the grid's best candidate by each criterion, as judged; None without a grid."""
    keys = [
        figures.judge.key(pick, "speed")
        for outcome in of_grid
        for pick in (outcome.pick, *outcome.also)
        if pick
    ]
    found: dict[str, str | None] = {}
    for criterion in CRITERIA:
        known = {key: speed.median for key in keys if (speed := figures.speed(key, criterion))}
        found[criterion] = max(known, key=lambda key: known[key]) if known else None
    return found


def _truth_of(
    figures: Figures,
    outcomes: Sequence[tuple[Outcome, Question]],
    best: Mapping[str, str | None],
    criterion: str,
) -> dict[str, Any] | None:
    for outcome, question in outcomes:
        for pick in (outcome.pick, *outcome.also):
            if pick and question == "speed" and figures.judge.key(pick, question) == best[criterion]:
                return {
                    "options": dict(pick.options),
                    "speed": to_plain(figures.speed(best[criterion] or "", criterion)),
                }
    return None


def _judged(
    figures: Figures, pick: Pick, question: Question, best: Mapping[str, str | None]
) -> dict[str, Any]:
    """The figures of one pick."""
    key = figures.judge.key(pick, question)
    against = best if question == "speed" else dict.fromkeys(CRITERIA)
    return {
        "model": pick.model,
        "options": dict(pick.options),
        "looks": figures.judge.looks(pick),
        "speed": {c: to_plain(figures.speed(key, c)) for c in (*CRITERIA, "bench_prefill", "client_prefill")},
        "regret": {c: to_plain(figures.regret(key, against[c], c)) for c in CRITERIA},
        "kl_divergence": figures.divergences.get(key),
        "error": figures.error(key),
    }


def _run(
    figures: Figures, outcome: Outcome, question: Question, best: Mapping[str, str | None]
) -> dict[str, Any]:
    plain = {k: v for k, v in to_plain(outcome).items() if k not in ("contestant", "pick", "first", "also")}
    if outcome.pick is None:
        return plain
    found = {**plain, **_judged(figures, outcome.pick, question, best)}
    found["starts"] = figures.starts[outcome.command]
    if outcome.claim is not None:
        truth = figures.speed(figures.judge.key(outcome.pick, question), _OF_CLAIM[outcome.claim.ruler])
        found["claimed_to_judged"] = outcome.claim.tokens_per_second / truth.median if truth else None
    return found


# -- markdown


def markdown(found: Mapping[str, Any]) -> str:
    """Two tables, one for each question, and the picks below them."""
    rows = found["contestants"]
    loads = found["load_before"]
    parts = [
        f"Rounds of the judge: {found['rounds']}. Intervals are of 95 %. Load average right before the runs: "
        + (f"{loads[0]:.1f} to {loads[-1]:.1f}." if loads else "unknown.")
    ]
    speed = {name: row for name, row in rows.items() if row["question"] == "speed"}
    if speed:
        parts.append("### Speed\n\n" + _table(_SPEED, speed))
    quality = {name: row for name, row in rows.items() if row["question"] == "quality"}
    if quality:
        target = found["rules"]["target"]
        words = f"### The best quality at {target:.1f} tok/s and depth {found['rules']['depth']}\n\n"
        parts.append(words + _table(_QUALITY, quality))
    parts.append(
        "### Picks\n\n" + "\n".join(line for name, row in rows.items() for line in _picks(name, row))
    )
    return "\n\n".join(parts)


def _table(columns: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(cell(row['runs'], row) for cell in columns.values())} |")
    return "\n".join(lines)


Runs = Sequence[Mapping[str, Any]]


def _seconds(runs: Runs, _row: Any) -> str:
    known = [run["seconds"] for run in runs if "seconds" in run and run.get("state") != "failed"]
    cut = " (cut)" if any(run.get("state") == "cut" for run in runs) else ""
    failed = sum(run.get("state") == "failed" for run in runs)
    said = f"; {failed} of {len(runs)} failed" if failed else ""
    return (_span(known, ".0f") if known else _NOTHING) + cut + said


def _launches(runs: Runs, _row: Any) -> str:
    known = [sum(run["launches"].values()) for run in runs if "launches" in run]
    asks = max((run["asks"] for run in runs if "asks" in run), default=0)
    return _NOTHING if not known else _span(known, ".0f") + (f" + {asks}" if asks else "")


def _speed(criterion: str) -> Any:
    def cell(runs: Runs, _row: Any) -> str:
        known = [found["median"] for run in runs if (found := run.get("speed", {}).get(criterion))]
        return _span(known, ".1f") if known else _NOTHING

    return cell


def _regret(criterion: str) -> Any:
    def cell(runs: Runs, _row: Any) -> str:
        known = [found for run in runs if (found := run.get("regret", {}).get(criterion))]
        if not known:
            return _NOTHING
        worst = max(known, key=lambda one: one["median"])
        return f"{worst['median']:.1%} ({worst['low']:.1%} to {worst['high']:.1%})"

    return cell


def _same(runs: Runs, row: Mapping[str, Any]) -> str:
    return f"{row['same_pick_runs']} of {len(runs)}" if len(runs) > 1 else _NOTHING


def _claim(runs: Runs, _row: Any) -> str:
    known = [ratio for run in runs if (ratio := run.get("claimed_to_judged"))]
    return f"{max(known, key=lambda ratio: abs(ratio - 1)):.3f}" if known else _NOTHING


def _divergence(runs: Runs, _row: Any) -> str:
    known = [run["kl_divergence"] for run in runs if run.get("kl_divergence") is not None]
    numbers = [value for value in known if isinstance(value, float | int)]
    return _span(numbers, ".2g") if numbers else "failed" if known else _NOTHING


def _starts(runs: Runs, _row: Any) -> str:
    known = [run["starts"] for run in runs if "starts" in run]
    yes = sum(word == "yes" for word in known)
    others = dict.fromkeys(word[:80].replace("|", "/") for word in known if word != "yes")
    return "; ".join([*([f"{yes} of {len(known)}"] if yes else []), *others]) or _NOTHING


def _note(runs: Runs, _row: Any) -> str:
    return "; ".join(dict.fromkeys(note for run in runs for note in run.get("notes", ()))) or _NOTHING


def _span(values: Iterable[float], form: str) -> str:
    """The median, and the range if it shows."""
    ordered = sorted(values)
    low, middle, high = (format(value, form) for value in (ordered[0], median(ordered), ordered[-1]))
    return middle if low == high else f"{middle} ({low} to {high})"


_SPEED = {
    "s to the answer": _seconds,
    "launches + asks": _launches,
    "decode tok/s, llama-bench": _speed("bench_decode"),
    "regret by llama-bench, worst run": _regret("bench_decode"),
    "decode tok/s, client": _speed("client_decode"),
    "regret at the client, worst run": _regret("client_decode"),
    "regret of a request, worst run": _regret("request"),
    "same pick": _same,
    "claimed ÷ judged, worst run": _claim,
    "KLD": _divergence,
    "command starts": _starts,
}
_QUALITY = {
    "s to the answer": _seconds,
    "launches + asks": _launches,
    "answer": _note,
    "decode tok/s, llama-bench": _speed("bench_decode"),
    "decode tok/s, client": _speed("client_decode"),
    "claimed ÷ judged, worst run": _claim,
    "KLD": _divergence,
    "same pick": _same,
    "command starts": _starts,
}


def _picks(name: str, row: Mapping[str, Any]) -> Iterable[str]:
    for run in row["runs"]:
        number = f", run {run['run']}" if "run" in run else ""
        said = [run["reason"] if run.get("reason") else "", run.get("error") or ""]
        words = in_short(run["options"]) if "options" in run else "no pick"
        yield f"- {name}{number}: {'; '.join(part for part in (words, *said) if part)}"
