"""Keep one core busy for a share of the time, in bursts: a stand-in for a compiler or a browser beside a sweep.

Run ``python benchmarks/disturber.py --share 0.5 --period 6``; it ends with its parent or when it is terminated. Bursts
and pauses have random lengths, so that no window can be in step with them. ``--even`` makes all of them equally long.
"""

from __future__ import annotations

import argparse
import os
import random
import time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.5, help="busy share of the time, 0 to 1")
    parser.add_argument("--period", type=float, default=6.0, help="mean seconds of a burst and its pause")
    parser.add_argument("--even", action="store_true", help="bursts and pauses of fixed lengths")
    parser.add_argument("--seconds", type=float, default=3600.0, help="end after this time at the latest")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lengths = random.Random(arguments.seed)

    def length(mean: float) -> float:
        return mean if arguments.even else lengths.expovariate(1 / mean) if mean else 0.0

    end, parent = time.monotonic() + arguments.seconds, os.getppid()
    while time.monotonic() < end and os.getppid() == parent:
        until = time.monotonic() + length(arguments.share * arguments.period)
        while time.monotonic() < until:
            pass
        time.sleep(length((1 - arguments.share) * arguments.period))


if __name__ == "__main__":
    main()
