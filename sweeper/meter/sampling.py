"""The meter: threads sample the sensors and block between samples; windows are cut out of the samples.

Outside windows, a thread reads its sensor once a second, so that no counter wraps unseen and the live display has a
figure. While a window is open, it reads at ``hz``, plus once as the window opens and once as it closes. It samples up
to five times as often if that shows more (a counter's edges, or power that refreshes faster), within a budget of
processor time. Each sensor has its own thread: a plug that takes a second to answer does not delay a GPU counter.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from sweeper.errors import ConfigError, ReadingFailed
from sweeper.meter.base import DeviceState, Sample, Sensor
from sweeper.meter.integrate import integrate
from sweeper.power_settings import LEAST_SAMPLE_HZ, MOST_SAMPLE_HZ
from sweeper.records import Caveat, EnergyReading, PowerSource

# Time between samples outside windows; also the longest time between samples of a counter.
RESTING_SECONDS = 1.0
# Temperatures and clocks change slowly, and reading them costs as much as reading power.
STATE_SECONDS = 0.5
# How long a closing window waits for the last sample of a sensor that does not rank trials.
BESIDE_WAIT_SECONDS = 1.0
# The assumed update period of a sensor whose period is unknown: NVML's usual value.
UNKNOWN_PERIOD_SECONDS = 0.1
# More than two samples of each value of a slow sensor show little more, and are expensive.
LOOKS_PER_SLOW_VALUE = 2
# A counter's edge lies between two samples: five samples in each period place it to a tenth of the period.
LOOKS_PER_EDGE = 5
# The maximum number of samples for each one that ``hz`` asks for.
LOOKS_PER_SAMPLE = 5
# The share of a core that sampling may cost. With the noise of a busy machine, it stays below 1 % of a core.
MOST_BUSY_SHARE = 0.008
# How far a pause may differ, as a share of it, and for which sensors: see `next_pause`.
JITTER = 0.5
JITTERED_BELOW = 0.75
# A sensor beside never ranks, so half the rate is enough. Each one takes this share of a core (measured for RAPL).
BESIDE_RATE = 0.5
BESIDE_BUSY_SHARE = 0.0025
# A shorter pause than this needs no wake-up; sleeping costs a third less than an event.
SHORT_SECONDS = 0.1
# The live display averages over at least this long.
LIVE_SECONDS = 0.5
# If at least one sample in twenty is capped, the cap shapes the figure; a single sample may be a start-up spike.
CAPPED_SHARE = 0.05


@dataclass(slots=True)
class _Take:
    """The samples of one sensor during one window."""

    samples: list[Sample] = field(default_factory=list)
    states: list[DeviceState] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def look_seconds(
    period: float | None, is_counter: bool, hz: float, cost_seconds: float, busy_share: float
) -> float:
    """Seconds between two samples of a sensor while a window is open. The function is pure.

    Args:
        period: the sensor's update period in s; None if it is not known.
        is_counter: whether the sensor gives energy.
        hz: the requested samples a second.
        cost_seconds: the processor time of one sample.
        busy_share: the share of a core that sampling faster than ``hz`` may take; 0 forbids it.
    """
    asked = 1.0 / hz
    if period is None:
        return asked
    if period > 2 * asked:
        return min(RESTING_SECONDS, period / LOOKS_PER_SLOW_VALUE)
    if busy_share <= 0:
        return asked
    least = max(asked / LOOKS_PER_SAMPLE, cost_seconds / busy_share)
    dense = max(least, period / LOOKS_PER_EDGE if is_counter else period)
    if (
        is_counter and dense >= period
    ):  # it refreshes between any two samples, so more samples show nothing more
        return asked
    return min(asked, dense)


def next_pause(pause: float, period: float | None, rng: random.Random) -> float:
    """The pause until the next sample of a power sensor, where ``look_seconds`` gave ``pause``.

    A sensor that refreshes faster than sweeper samples shows a load that repeats with the samples always at the same
    point. Random moments break that step. They would lose refreshes of a sensor that is sampled at each of them.
    """
    if period is None or period > JITTERED_BELOW * pause:
        return pause
    return pause * rng.uniform(1 - JITTER, 1 + JITTER)


class Sampler:
    """One sensor, and the thread that reads it."""

    def __init__(self, sensor: Sensor, hz: float, clock: Callable[[], float], busy_share: float) -> None:
        self.sensor = sensor
        self.latest_state: DeviceState | None = None
        self.busy_seconds = 0.0  # processor time of the thread so far
        self._hz = hz
        self._busy_share = busy_share
        self._clock = clock
        self._looks = 0
        self._recent: deque[Sample] = deque()  # for the live watts: the newest half second, in order
        self._takes: list[_Take] = []
        self._next_state = float("-inf")
        self._lock = threading.Lock()  # one caller of the sensor at a time
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the sensor and begin sampling."""
        self.sensor.open()
        self._stopping = False
        name = f"power-{self.sensor.source.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the sensor."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.sensor.close()

    def begin(self, take: _Take, wait: bool) -> None:
        """Collect samples into ``take`` from now on. With ``wait``, take the first one before returning."""
        with self._lock:
            self._takes.append(take)
            if wait:
                self._read()
        self._wake.set()

    def end(self, take: _Take, wait_seconds: float | None) -> None:
        """Take a last sample for ``take`` and stop collecting; None waits as long as the sensor needs."""
        if self._lock.acquire(timeout=-1 if wait_seconds is None else wait_seconds):
            try:
                self._read()
            finally:
                self._lock.release()
        else:
            take.failures.append(f"no answer within {wait_seconds:g} s")
        self._takes.remove(take)

    def watts_now(self) -> float | None:
        """The latest power, or a counter's mean over at least half a second; None before there is any."""
        if not self._recent:
            return None
        first, latest = self._recent[0], self._recent[-1]
        if latest.power_watts is not None:
            return latest.power_watts
        if first.energy_joules is None or latest.energy_joules is None or first.epoch != latest.epoch:
            return None
        seconds = latest.monotonic_seconds - first.monotonic_seconds
        joules = latest.energy_joules - first.energy_joules
        return joules / seconds if seconds > 0 and joules > 0 else None

    def _run(self) -> None:
        period = self.sensor.source.update_period_seconds
        rng = random.Random(self.sensor.source.name)
        while not self._stopping:
            with self._lock:
                self._read()
            self._looks += 1
            self.busy_seconds = time.thread_time()
            pause = RESTING_SECONDS
            if self._takes:
                is_counter = bool(self._recent) and self._recent[-1].energy_joules is not None
                cost = self.busy_seconds / self._looks
                pause = look_seconds(period, is_counter, self._hz, cost, self._busy_share)
                pause = pause if is_counter else next_pause(pause, period, rng)
            if pause <= SHORT_SECONDS:
                time.sleep(pause)
            else:
                self._wake.wait(pause)
                self._wake.clear()

    def _read(self) -> None:
        """Add one sample to every open take. A failure is kept as text; the integration decides if it matters."""
        try:
            sample = self.sensor.read()
            self._recent.append(sample)
            while (
                len(self._recent) > 2
                and sample.monotonic_seconds - self._recent[1].monotonic_seconds >= LIVE_SECONDS
            ):
                self._recent.popleft()
            for take in self._takes:
                take.samples.append(sample)
            now = self._clock()
            if now >= self._next_state:
                self._next_state = now + STATE_SECONDS
                self.latest_state = self.sensor.state()
                for take in self._takes:
                    take.states.append(self.latest_state)
        except ReadingFailed as error:
            for take in self._takes:
                take.failures.append(str(error))


class _Window:
    def __init__(self, takes: Sequence[tuple[Sensor, _Take]]) -> None:
        self._takes = takes

    def reading(self, started: float, ended: float) -> EnergyReading:
        """Energy between two ``time.monotonic()`` moments inside the window."""
        ranking, *beside = [_reading(sensor, take, started, ended) for sensor, take in self._takes]
        return replace(ranking, beside=tuple(beside))


class SampledMeter:
    """Samples a ranking sensor, and other sensors beside it. Enter it to open the sensors."""

    def __init__(
        self,
        sensor: Sensor,
        beside: Sequence[Sensor] = (),
        hz: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing yet.

        Args:
            sensor: the sensor that ranks trials.
            beside: sensors that each reading records in ``beside``, at half the rate. They are never added up.
            hz: samples a second while a window is open, 1 to 20.
            clock: in seconds; decides when to read temperatures and clocks. Sensors stamp samples themselves.
        """
        if not LEAST_SAMPLE_HZ <= hz <= MOST_SAMPLE_HZ:
            raise ConfigError(f"power.sample_hz={hz:g} is not in {LEAST_SAMPLE_HZ:g} to {MOST_SAMPLE_HZ:g}")
        left = MOST_BUSY_SHARE - BESIDE_BUSY_SHARE * len(beside)
        self._ranking = Sampler(sensor, hz, clock, left)
        slower = max(LEAST_SAMPLE_HZ, hz * BESIDE_RATE)
        self._beside = tuple(Sampler(other, slower, clock, busy_share=0.0) for other in beside)

    @property
    def source(self) -> PowerSource:
        """The source that ranks trials."""
        return self._ranking.sensor.source

    @property
    def update_period_seconds(self) -> float:
        """The ranking sensor's update period in seconds, or its settling time if that is longer."""
        source = self.source
        return max(source.update_period_seconds or UNKNOWN_PERIOD_SECONDS, source.settling_seconds or 0.0)

    @property
    def busy_seconds(self) -> float:
        """Processor time of the sampling threads so far, in seconds."""
        return sum(sampler.busy_seconds for sampler in (self._ranking, *self._beside))

    @contextmanager
    def window(self) -> Iterator[_Window]:
        """Sample while the block runs, at least once at its start and once at its end."""
        ranking = _Take()
        others = [_Take() for _ in self._beside]
        for sampler, take in zip(self._beside, others, strict=True):
            sampler.begin(take, wait=False)
        self._ranking.begin(ranking, wait=True)
        try:
            sensors = [sampler.sensor for sampler in (self._ranking, *self._beside)]
            yield _Window(list(zip(sensors, [ranking, *others], strict=True)))
        finally:
            self._ranking.end(ranking, wait_seconds=None)
            for sampler, take in zip(self._beside, others, strict=True):
                sampler.end(take, BESIDE_WAIT_SECONDS)

    def watts_now(self) -> float | None:
        """The latest power in W, for the live display only; None before there is any."""
        return self._ranking.watts_now()

    def temperature_celsius(self) -> float | None:
        """The latest temperature of the ranking device in °C, or None."""
        state = self._ranking.latest_state
        return None if state is None else state.temperature_celsius

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for sampler in (self._ranking, *self._beside):
                sampler.start()
                opened.callback(sampler.stop)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def _reading(sensor: Sensor, take: _Take, started: float, ended: float) -> EnergyReading:
    source = sensor.source
    is_estimate = source.kind == "estimated"
    integral = integrate(take.samples, started, ended, source.update_period_seconds, source.settling_seconds)
    reason = integral.reason
    if reason is not None and take.failures:
        reason = f"{reason}: {take.failures[-1]}"
    states = take.states
    temperatures = [s.temperature_celsius for s in states if s.temperature_celsius is not None]
    clocks = [s.clock_mhz for s in states if s.clock_mhz is not None]
    capped = [s.power_capped for s in states if s.power_capped is not None]
    limits = [s.enforced_limit_watts for s in states if s.enforced_limit_watts is not None]
    others = max((s.other_processes for s in states if s.other_processes is not None), default=None)
    throttle_reasons = tuple(sorted({reason for s in states for reason in s.throttle_reasons}))
    capped_share = sum(capped) / len(capped) if capped else None
    # Whether a window is too short is decided elsewhere, for all windows of a trial together.
    shown = {
        Caveat.THERMALLY_THROTTLED: any("thermal" in reason for reason in throttle_reasons),
        Caveat.POWER_CAPPED: capped_share is not None and capped_share >= CAPPED_SHARE,
        Caveat.BUSY_MACHINE: bool(others),
        Caveat.IN_STEP: integral.in_step,
        Caveat.ESTIMATED: is_estimate,
    }
    return EnergyReading(
        source=source,
        seconds=ended - started,
        joules=integral.joules,
        reason=reason,
        samples=integral.samples,
        largest_gap_seconds=integral.largest_gap_seconds,
        # The ratings cause the error of an estimate, and their error is unknown. The sampling error says nothing.
        error_fraction=None if is_estimate else integral.error_fraction,
        temperature_start_celsius=temperatures[0] if temperatures else None,
        temperature_end_celsius=temperatures[-1] if temperatures else None,
        temperature_max_celsius=max(temperatures, default=None),
        clock_mhz=sum(clocks) / len(clocks) if clocks else None,
        throttle_reasons=throttle_reasons,
        capped_share=capped_share,
        enforced_limit_watts=limits[-1] if limits else None,
        other_processes=others,
        caveats=tuple(c for c in Caveat if c in sensor.caveats or shown.get(c, False)),
    )
