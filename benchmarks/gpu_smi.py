"""`nvidia-smi` as a reader of power beside NVML: polled by its own loop, integrated by the same arithmetic."""

from __future__ import annotations

import subprocess
import threading
import time
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from sweeper.meter.base import Sample
from sweeper.meter.integrate import integrate

FIELDS = ("power.draw", "power.draw.instant", "power.draw.average")
LOOP_MILLISECONDS = 100
# Its clock is ours; further apart than this, it prints another time zone's.
MOST_APART_SECONDS = 30.0
_ASK_SECONDS = 20.0  # it starts the driver where nothing else holds it


class NvidiaSmi:
    """Samples of one card while entered. Where `nvidia-smi` cannot be run, ``missing`` says why."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._samples: dict[str, list[Sample]] = {}
        self._stamped = "nvidia-smi"
        self._last = float("-inf")
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self.missing: str | None = None

    def __enter__(self) -> Self:
        try:
            fields = FIELDS if self._takes(FIELDS) else FIELDS[:1]  # older drivers know the plain one alone
            self._samples = {field: [] for field in fields}
            self._process = subprocess.Popen(
                [*self._command(fields), f"--loop-ms={LOOP_MILLISECONDS}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self.missing = f"nvidia-smi cannot be run: {error}"
            return self
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def wait_until(self, moment: float, most_seconds: float) -> None:
        """Block until a sample beyond ``moment`` is there: its output may come in blocks."""
        until = time.monotonic() + most_seconds
        while self._last < moment and self.missing is None and time.monotonic() < until:
            time.sleep(LOOP_MILLISECONDS / 1000)

    def readings(self, started: float, ended: float) -> dict[str, Any]:
        """Mean watts between two moments by field, each with its samples or the reason why there is none."""
        if self.missing is not None:
            return {"missing": self.missing}
        found: dict[str, Any] = {"stamped_by": self._stamped, "loop_milliseconds": LOOP_MILLISECONDS}
        for field, samples in self._samples.items():
            integral = integrate(list(samples), started, ended)
            watts = None if integral.joules is None else integral.joules / (ended - started)
            found[field] = {"watts": watts, "samples": integral.samples, "reason": integral.reason}
        return found

    def _command(self, fields: tuple[str, ...]) -> list[str]:
        query = ",".join(("timestamp", *fields))
        return ["nvidia-smi", f"--id={self._uuid}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]

    def _takes(self, fields: tuple[str, ...]) -> bool:
        asked = subprocess.run(
            self._command(fields), capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
        return asked.returncode == 0

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            stamp, *values = (word.strip() for word in line.split(","))
            moment = self._moment(stamp)
            for samples, text in zip(self._samples.values(), values, strict=False):
                watts = _number(text)
                if watts is not None:
                    samples.append(Sample(moment, power_watts=watts))
            self._last = moment

    def _moment(self, stamp: str) -> float:
        """The line's own time on the monotonic clock; that of its arrival where the two cannot be one."""
        now = time.monotonic()
        try:
            wall = datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f").timestamp()  # local
        except ValueError:
            self._stamped = "arrival"
            return now
        moment = now - (time.time() - wall)
        if abs(moment - now) > MOST_APART_SECONDS:
            self._stamped = "arrival"
            return now
        return moment


def _number(text: str) -> float | None:
    """A figure, or None for what `nvidia-smi` prints where there is none, such as ``[N/A]``."""
    try:
        return float(text)
    except ValueError:
        return None
