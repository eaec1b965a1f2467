"""What the meter around a window costs, as a share of decode speed.

python benchmarks/overheads.py [--repeats 15] [--threads 1]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from ratios import ratio_of

from sweeper.config import compose
from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.meter.choose import find_meter
from sweeper.model.obtain import obtain
from sweeper.records import Configuration


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path("mlruns"))
    options = parser.parse_args()
    meter_share(options.repeats, options.threads, options.root)


if __name__ == "__main__":
    main()
