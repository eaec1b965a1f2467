"""How large the report of 500 trials is, and how soon a real Chromium shows it.

    python benchmarks/report_of_500_trials.py [--repeats N]

Prints one JSON object: bytes of the page, seconds to make it; medians and maxima of the seconds from navigation
to first contentful paint, to the end of loading, to the interactive front being drawn, and to the first frame
after all of that; requests to any host and lines in the console, which must be none. Exit code 1 where a bound
below is missed. Needs Chromium and a quiet machine: on a busy one the times say nothing, and only the CPU time
of the page's main thread is of use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "report"))

from chromium import Chromium, chromium_path
from made_sweeps import sweep

from sweeper.report.html import html_report

MOST_BYTES = 6_000_000
MOST_SECONDS = 2.0
DRAWN = "document.documentElement?.dataset.drawn === 'yes'"
PAINTED = "performance.getEntriesByName('first-contentful-paint').length > 0"
DONE = f"{DRAWN} && window.firstWholeFrame > 0 && {PAINTED}"
# Two frames after the load event everything that stands in the page was laid out and painted.
WATCH = """addEventListener("load", () => requestAnimationFrame(() => requestAnimationFrame(
    () => { window.firstWholeFrame = performance.now(); })));"""
MOMENTS = {
    "paint": "performance.getEntriesByName('first-contentful-paint')[0].startTime",
    "load": "performance.getEntriesByType('navigation')[0].loadEventEnd",
    "front": "Number(document.documentElement.dataset.drawnAt)",
    "all": "window.firstWholeFrame",
}


@dataclass(frozen=True, slots=True)
class Opening:
    """One opening of the page in a browser that has never seen it; seconds from navigation by moment."""

    seconds: dict[str, float]
    cpu_seconds: float
    requests: list[str]
    console: list[str]


def opened(page: Path) -> Opening:
    """Start a browser, open the page, wait until all of it stands."""
    with Chromium() as browser:
        browser.screen(1280)
        browser.ask("Performance.enable", timeDomain="threadTicks")
        browser.ask("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        browser.open(page.as_uri(), DONE)
        seconds = {name: float(browser.evaluate(what)) / 1000 for name, what in MOMENTS.items()}
        metrics = {m["name"]: m["value"] for m in browser.ask("Performance.getMetrics")["metrics"]}
        return Opening(seconds, metrics["TaskDuration"], browser.requests(), browser.complaints())


def _over(runs: list[Opening], what: Callable[[list[float]], float]) -> dict[str, float]:
    return {name: round(what([run.seconds[name] for run in runs]), 3) for name in MOMENTS}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    repeats = options.parse_args().repeats
    if chromium_path() is None:
        print("no chromium here: apt-get install chromium", file=sys.stderr)
        return 3
    record = sweep(500, "measured", gpu=True)
    html_report(record)  # imports are paid once a process
    started = time.perf_counter()
    html = html_report(record)
    made = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(html, "utf-8")
        runs = [opened(page) for _ in range(repeats)]
    result = {
        "trials": len(record.trials),
        "bytes": len(html.encode()),
        "seconds_to_make": round(made, 3),
        "median_seconds_to": _over(runs, statistics.median),
        "longest_seconds_to": _over(runs, max),
        "main_thread_cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 3),
        "requests": sorted({url for run in runs for url in run.requests}),
        "console": sorted({line for run in runs for line in run.console}),
        "repeats": repeats,
    }
    print(json.dumps(result, indent=2))
    kept = result["bytes"] < MOST_BYTES and result["longest_seconds_to"]["all"] < MOST_SECONDS
    return 0 if kept and not result["requests"] and not result["console"] else 1


if __name__ == "__main__":
    sys.exit(main())
