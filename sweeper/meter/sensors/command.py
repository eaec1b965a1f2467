"""A command of the user that prints watts or joules, for meters that sweeper does not know."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.meter.base import Sample, Sensor
from sweeper.meter.integrate import CounterTrack
from sweeper.power_settings import CommandSettings
from sweeper.records import PowerSource

# A command that needs longer cannot be sampled once a second.
TIMEOUT_SECONDS = 2.0
# Each reading starts a process, so sweeper reads twice a second instead of ten times.
UPDATE_PERIOD_SECONDS = 1.0
# No machine that sweeper supports draws more; a counter that jumps further was reset.
MOST_WATTS = 20_000.0


class CommandSensor(Sensor):
    """Runs the command for each reading, without a shell, and reads the last line that it prints."""

    def __init__(
        self,
        settings: CommandSettings,
        clock: Callable[[], float] = time.monotonic,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(clock)
        self._argv = list(settings.argv)
        self._timeout = timeout_seconds
        self._counts = settings.unit == "joules"
        self._track: CounterTrack | None = None
        self.source = PowerSource(
            name=settings.name,
            interface=" ".join(self._argv),
            scope="custom",
            kind="measured",
            update_period_seconds=UPDATE_PERIOD_SECONDS,
            note=f"the command {self._argv[0]} gives the figures, and sweeper cannot check them",
        )

    def _find(self) -> None:
        if shutil.which(self._argv[0]) is None:
            raise SensorMissingError(
                f"no program {self._argv[0]}",
                "give power.command.argv its full path, and make it executable",
            )
        try:
            self._run()
        except ReadingFailed as error:
            raise SensorMissingError(str(error)) from error
        self._track = CounterTrack(None, MOST_WATTS, slack_seconds=1.0) if self._counts else None

    def _take(self) -> Sample:
        before = self._clock()
        value = self._run()
        moment = (before + self._clock()) / 2
        if self._track is not None:
            joules, epoch = self._track.advance(moment, value)
            return Sample(moment, energy_joules=joules, epoch=epoch)
        return Sample(moment, power_watts=value)

    def _run(self) -> float:
        program = Path(self._argv[0]).name
        try:
            done = subprocess.run(
                self._argv,
                capture_output=True,
                text=True,
                timeout=self._timeout,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise ReadingFailed(f"{program} did not answer within {self._timeout:g} s") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ReadingFailed(f"{program} could not be run: {error}") from error
        last = (done.stdout.strip().splitlines() or [""])[-1].strip()
        if done.returncode != 0:
            told = done.stderr.strip().splitlines()[-1:] or [last]
            raise ReadingFailed(f"{program} ended with code {done.returncode}: {told[0]}")
        try:
            value = float(last)
        except ValueError as error:
            raise ReadingFailed(f"{program} printed {last[:60]!r}, which is no number") from error
        if not math.isfinite(value) or value < 0:
            raise ReadingFailed(f"{program} printed {last[:60]!r}, which is no amount of power or energy")
        return value
