"""What the sampler costs: processor time of its threads at the default settings, as a share of one core.

It looks more often than it is asked to where a sensor's refreshes would go unseen otherwise. Reads RAPL of a
planted tree and NVML of the fake driver, each as a sweep would; the time is that of the threads themselves
(`time.thread_time`), so other load on the machine does not count, save for the caches that it empties.

    python benchmarks/sampler_cost.py [--seconds 20]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests/power"), str(HERE.parent / "tests/fake_nvml")]

from fake_nvml import RTX_4090, FakeNvml  # noqa: E402 (helpers of the tests, found just now)
from fake_plugs import FakePlug, serving  # noqa: E402
from sysfs_trees import plant  # noqa: E402

from sweeper.meter.base import Sensor  # noqa: E402
from sweeper.meter.composite import TrustedSensor  # noqa: E402
from sweeper.meter.sampling import SampledMeter  # noqa: E402
from sweeper.meter.sensors.estimate import EstimateSensor  # noqa: E402
from sweeper.meter.sensors.hwmon import HwmonSensor  # noqa: E402
from sweeper.meter.sensors.nvml import NvmlSensor  # noqa: E402
from sweeper.meter.sensors.plug import PlugSensor  # noqa: E402
from sweeper.meter.sensors.rapl import RaplSensor  # noqa: E402
from sweeper.meter.trust import Trust  # noqa: E402
from sweeper.power_settings import PlugSettings  # noqa: E402


def gpu_counter(period: float) -> Sensor:
    """The first GPU's counter, as its trust check leaves it that found this update period in s."""
    return TrustedSensor(NvmlSensor("0"), Trust(polls=400, seconds=2.0, counter_period_seconds=period))


def gpu_power(period: float) -> Sensor:
    """Its instant power, refreshed so often."""
    trust = Trust(polls=400, seconds=2.0, power_period_seconds=period)
    return TrustedSensor(NvmlSensor("0", use_counter=False), trust)


def cost(sensors: Sequence[Sensor], seconds: float, hz: float) -> tuple[float, int]:
    """Share of one core while a window is open, and samples of the first sensor, which ranks."""
    with SampledMeter(sensors[0], beside=sensors[1:], hz=hz) as meter:
        with meter.window() as window:
            time.sleep(0.3)
            started, before = time.monotonic(), meter.busy_seconds
            time.sleep(seconds)
            ended, after = time.monotonic(), meter.busy_seconds
        samples = window.reading(started, ended).samples
    return (after - before) / (ended - started), samples


def main() -> None:
    """Print a table of the cost of each sensor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hz", type=float, default=10.0)
    chosen = parser.parse_args()
    print(f"| sensor at {chosen.hz:g} Hz | looks a second | share of one core |\n|---|---|---|")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nvml = stack.enter_context(FakeNvml.create(scratch, [RTX_4090]))
        stack.enter_context(nvml.in_process())
        plug = stack.enter_context(serving(FakePlug("shelly", 60.0)))
        rapl = RaplSensor(plant("epyc_two_sockets", scratch / "epyc"))
        sensors: dict[str, tuple[Sensor, ...]] = {
            "RAPL, two packages": (rapl,),
            "NVML, counter of 20 ms": (gpu_counter(0.02),),
            "NVML, counter of 100 ms": (gpu_counter(0.1),),
            "NVML, counter of 100 ms, with RAPL beside": (gpu_counter(0.1), rapl),
            "NVML, instant power of 20 ms": (gpu_power(0.02),),
            "NVML, instant power of 100 ms": (gpu_power(0.1),),
            "hwmon, amdgpu": (HwmonSensor(plant("amdgpu_card", scratch / "amd")),),
            "hwmon, Jetson's three rails": (HwmonSensor(plant("jetson_orin", scratch / "jetson")),),
            "plug (HTTP), twice a period": (PlugSensor(PlugSettings("shelly", plug.url)),),
            "estimate": (EstimateSensor(),),
        }
        for name, ranking_first in sensors.items():
            share, samples = cost(ranking_first, chosen.seconds, chosen.hz)
            print(f"| {name} | {samples / chosen.seconds:.0f} | {share:.2%} |", flush=True)


if __name__ == "__main__":
    main()
