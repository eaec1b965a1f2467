"""The GPU path on a real card, in one command: speed, watts, NVML's honesty, a table, a sweep.

Nothing is downloaded, and no setting of the card is touched. What was measured stands in JSON and CSV under
``--out`` after every row; the same command again goes on where it was cut off. See docs/gpu.md.

    PYTHONPATH=. python benchmarks/gpu.py --out FOLDER [--work FOLDER] [--minutes 8] [--small]
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_nvml
import gpu_path
import gpu_sweep
import gpu_table
from gpu_bench import Bench, opened
from gpu_plan import SMALL, WHOLE
from gpu_record import Deadline, OutOfTime, StepFile
from gpu_summary import write_summary

from sweeper import machine
from sweeper.errors import EXIT_DONE, SweeperError
from sweeper.records import to_plain

# In order of worth, with the share of all minutes that a step may take; what it leaves goes to the next.
# Guesses, until a card has said better.
STEPS: tuple[tuple[str, Callable[[Bench, StepFile, Deadline], None], float], ...] = (
    ("path", gpu_path.run, 0.40),
    ("nvml", gpu_nvml.run, 0.20),
    ("table", gpu_table.run, 0.45),
    ("sweep", gpu_sweep.run, 1.0),
)
_SETTINGS = ("power_limit_watts", "power_default_watts", "power_min_watts", "power_max_watts")


def main() -> int:
    options = _options()
    plan = SMALL if options.small else WHOLE
    overall = Deadline.after(options.minutes * 60)
    work = options.work or options.out / "work"
    try:
        with opened(plan, options.out, work, options.gpu_gb_per_second) as bench:
            head = StepFile(options.out / "machine.json", bench.head())
            before = _settings(bench)
            _note_machine(bench, head)
            for name, run, share in STEPS:
                _step(name, run, bench, Deadline.after(share * options.minutes * 60, overall))
                write_summary(options.out)  # whoever ends this run early has it all the same
            head.data |= {"settings_before": before, "settings_after": _settings(bench)}
            head.data["settings_changed"] = head.data["settings_before"] != head.data["settings_after"]
            head.finish("complete")
    except SweeperError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {write_summary(options.out)}")
    return EXIT_DONE


def _step(
    name: str, run: Callable[[Bench, StepFile, Deadline], None], bench: Bench, deadline: Deadline
) -> None:
    """One step, whatever becomes of it: its file says so, and the next one has its turn."""
    step = StepFile(bench.out / f"{name}.json", bench.head())
    if step.complete:
        print(f"{name}: is there already", flush=True)
        return
    absent = gpu_sweep.missing_packages() if name == "sweep" else ()
    if absent:
        step.finish("skipped", f"not installed here: {', '.join(absent)}")
    else:
        try:
            run(bench, step, deadline)
            step.finish("complete")
        except OutOfTime as cut:
            step.finish("cut", f"{cut}: run the same command again")
        except SweeperError as error:
            step.finish("failed", f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - a lent card is not lost to one step; the file keeps it all
            step.data["traceback"] = traceback.format_exc().splitlines()[-6:]
            step.finish("failed", f"{type(error).__name__}: {error}")
    print(f"{name}: {step.data['state']} {step.data['reason'] or ''}", flush=True)


def _note_machine(bench: Bench, head: StepFile) -> None:
    """The machine's record, and the card at rest; an earlier run's rest is kept, of a card as cold as this."""
    head.data |= {"record": to_plain(bench.machine)}
    head.data.setdefault("idle_watts", to_plain(bench.idle) if bench.idle else None)
    head.data["card_ceiling"] = to_plain(bench.card_ceiling)
    head.data["host_ceiling"] = to_plain(bench.host_ceiling)
    head.save()


def _settings(bench: Bench) -> dict[str, Any]:
    """What the driver says of the card's limits now, read and not set."""
    gpu = next(g for g in machine.examine().gpus if g.uuid == bench.uuid)
    return {name: getattr(gpu, name) for name in _SETTINGS}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where records go")
    parser.add_argument("--work", type=Path, help="models (27 GB) and runs; the default is OUT/work")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further row is begun")
    parser.add_argument("--small", action="store_true", help="tiny models and short windows, for tests")
    parser.add_argument(
        "--gpu-gb-per-second", type=float, help="the card's memory bandwidth, from its data sheet"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
