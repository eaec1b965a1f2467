"""What sweeper itself costs: the meter's share of decode speed, and the sweep's share of its own time.

python benchmarks/overheads.py [--repeats 15] [--threads 1]
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from statistics import median

from ratios import ratio_of

from sweeper.config import compose
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.meter.choose import find_meter
from sweeper.model.obtain import obtain
from sweeper.records import Configuration, TrialRecord
from sweeper.search.study import SweepStudy


def meter_share(repeats: int, threads: int, root: Path) -> None:
    """Decode windows with and without the meter around them, interleaved."""
    wanted = compose([]).settings.model
    model = Path(obtain(wanted, root).file(None).path)
    meter, _ = find_meter(compose([]).settings.power, root, gpu_used=False)
    with_meter: list[float] = []
    without: list[float] = []
    with LlamaCppEngine({None: model}) as engine, meter:
        engine.load(Configuration(n_ctx=1024, n_threads=threads, n_threads_batch=threads))
        engine.decode(64, 0, 3.0, 10.0)
        for repeat in range(repeats):
            for metered in (repeat % 2 == 0, repeat % 2 == 1):
                if metered:
                    with meter.window():
                        with_meter.append(engine.decode(64, 0, 2.0, 10.0).tokens_per_second)
                else:
                    without.append(engine.decode(64, 0, 2.0, 10.0).tokens_per_second)
    ratio = ratio_of(with_meter, without)
    print(f"meter ({meter.source.name}) on decode, {threads} thread(s), {repeats} pairs of 2 s windows:")
    print(f"  with {median(with_meter):.1f} tok/s, without {median(without):.1f} tok/s")
    print(f"  ratio of medians {ratio.median:.4f} (95 %: {ratio.low:.4f} to {ratio.high:.4f})")


def sweep_share(study: SweepStudy) -> None:
    """Of the search's time, from the first trial's start to the last one's end, what was no measuring."""
    trials = [t for t in study.trials() if t.state == "complete"]
    first, last = trials[0], trials[-1]
    whole = _moment(last) + last.seconds - _moment(first)
    controls = [c for c in study.controls() if c.visit < len(trials)]  # those before the last trial
    measured = sum(t.measured_seconds for t in trials) + sum(c.measured_seconds for c in controls)
    inside = sum(t.seconds for t in trials)
    print(f"{len(trials)} trials and {len(controls)} controls in {whole:.1f} s of wall clock")
    print(f"  load, warm-up and windows {measured:.1f} s; all else {1 - measured / whole:.1%}")
    print(f"  inside trials alone: {1 - sum(t.measured_seconds for t in trials) / inside:.1%}")


def _moment(trial: TrialRecord) -> float:
    return datetime.fromisoformat(trial.started_utc).timestamp()


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path("mlruns"))
    parser.add_argument("--sweep", help="a sweep in root, for its own share of time")
    options = parser.parse_args()
    meter_share(options.repeats, options.threads, options.root)
    if options.sweep:
        sweep_share(SweepStudy.load(options.root, options.sweep))


if __name__ == "__main__":
    main()
