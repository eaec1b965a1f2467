"""One energy tool around one window, for against_energy_tools.py: opens and closes on a word from stdin.

    python energy_tool_children.py sweeper|codecarbon|zeus gpu|cpu

Every line on stdout is JSON. The last one has ``started`` and ``ended`` (monotonic seconds) and ``joules``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

OUT = os.dup(1)
os.dup2(2, 1)  # what a tool prints must not mix with the answers
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def say(**words: object) -> None:
    os.write(OUT, (json.dumps(words) + "\n").encode())


def await_word(word: str) -> None:
    if sys.stdin.readline().strip() != word:
        raise SystemExit(f"expected {word}")


def sweeper(gpu: bool) -> None:
    from sweeper.meter.choose import find_meter
    from sweeper.power_settings import PowerSettings

    settings = PowerSettings(source="nvml" if gpu else "rapl")
    with tempfile.TemporaryDirectory() as root:
        meter, _ = find_meter(settings, Path(root), gpu)
    with meter:
        say(ready=True)
        await_word("open")
        with meter.window() as window:
            started = time.monotonic()
            say(opened=True)
            await_word("close")
            ended = time.monotonic()
        reading = window.reading(started, ended)
    if reading.joules is None:
        told = reading.reason
    else:
        told = f"±{reading.error_fraction:.1%}"
        if "stands still" in reading.source.interface:
            told += ", from power: the counter stands still"
    say(started=started, ended=ended, joules=reading.joules, said=told)


def codecarbon(gpu: bool) -> None:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA",
        save_to_file=False,
        measure_power_secs=1,
        log_level="error",
        allow_multiple_runs=True,
    )
    say(ready=True)
    await_word("open")
    tracker.start()
    started = time.monotonic()  # it takes seconds to start, and those it does not count
    say(opened=True)
    await_word("close")
    ended = time.monotonic()
    tracker.stop()
    data = tracker.final_emissions_data
    joules = (data.gpu_energy if gpu else data.cpu_energy) * 3.6e6
    say(started=started, ended=ended, joules=joules)


def zeus(gpu: bool) -> None:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor()
    say(ready=True)
    await_word("open")
    started = time.monotonic()
    monitor.begin_window("window", sync_execution=False)
    say(opened=True)
    await_word("close")
    measured = monitor.end_window("window", sync_execution=False)
    ended = time.monotonic()
    found = measured.gpu_energy if gpu else measured.cpu_energy
    say(started=started, ended=ended, joules=sum(found.values()) if found else None)


if __name__ == "__main__":
    try:
        {"sweeper": sweeper, "codecarbon": codecarbon, "zeus": zeus}[sys.argv[1]](sys.argv[2] == "gpu")
    except Exception as error:  # noqa: BLE001 (the table shows whatever a tool raised)
        say(error=f"{type(error).__name__}: {error}"[:200])
