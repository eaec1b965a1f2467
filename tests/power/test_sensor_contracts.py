"""Every sensor passes the contract: on planted sysfs trees, a fake NVML, HTTP servers and real programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import H200, LAPTOP_4060, RTX_4090, FakeNvml
from fake_plugs import FakePlug, serving
from sensor_contract import AbsentSensorContract, SensorContract
from sysfs_trees import plant, running

from sweeper.meter.composite import SumSensor, TrustedSensor
from sweeper.meter.sensors.battery import BatterySensor
from sweeper.meter.sensors.command import CommandSensor
from sweeper.meter.sensors.estimate import EstimateSensor
from sweeper.meter.sensors.hwmon import HwmonSensor
from sweeper.meter.sensors.nvml import NvmlSensor
from sweeper.meter.sensors.plug import PlugSensor
from sweeper.meter.sensors.rapl import RaplSensor
from sweeper.meter.trust import Trust
from sweeper.power_settings import CommandSettings, EstimateSettings, PlugSettings

RAPL = "class/powercap/intel-rapl"


class TestRapl(SensorContract):
    expected_watts = 90.0

    @pytest.fixture
    def sensor(self, tmp_path: Path) -> Iterator[RaplSensor]:
        root = plant("epyc_two_sockets", tmp_path)
        files = {root / f"{RAPL}:0/energy_uj": 50.0, root / f"{RAPL}:1/energy_uj": 40.0}
        with running(files):
            yield RaplSensor(root)


class TestPsys(SensorContract):
    expected_watts = 45.0

    @pytest.fixture
    def sensor(self, tmp_path: Path) -> Iterator[RaplSensor]:
        root = plant("lattepanda_sigma", tmp_path)
        with running({root / f"{RAPL}:0/energy_uj": 20.0, root / f"{RAPL}:1/energy_uj": 45.0}):
            yield RaplSensor(root, platform=True)


class TestAmdgpu(SensorContract):
    expected_watts = 85.043

    @pytest.fixture
    def sensor(self, tmp_path: Path) -> HwmonSensor:
        return HwmonSensor(plant("amdgpu_card", tmp_path))


class TestArc(SensorContract):
    expected_watts = 120.0

    @pytest.fixture
    def sensor(self, tmp_path: Path) -> Iterator[HwmonSensor]:
        root = plant("arc_card", tmp_path)
        with running({root / "class/hwmon/hwmon5/energy1_input": 120.0}):
            yield HwmonSensor(root)


class TestJetson(SensorContract):
    expected_watts = (19832 * 240 + 19832 * 80 + 4976 * 752) / 1e6

    @pytest.fixture
    def sensor(self, tmp_path: Path) -> HwmonSensor:
        return HwmonSensor(plant("jetson_orin", tmp_path))


class TestBattery(SensorContract):
    @pytest.fixture
    def sensor(self, tmp_path: Path) -> BatterySensor:
        return BatterySensor(plant("hybrid_laptop", tmp_path))


class TestShelly(SensorContract):
    @pytest.fixture
    def sensor(self) -> Iterator[PlugSensor]:
        with serving(FakePlug("shelly", 61.3)) as plug:
            yield PlugSensor(PlugSettings("shelly", plug.url))


class TestTasmota(SensorContract):
    @pytest.fixture
    def sensor(self) -> Iterator[PlugSensor]:
        with serving(FakePlug("tasmota", 61.0)) as plug:
            yield PlugSensor(PlugSettings("tasmota", plug.url))


class TestCommandOfWatts(SensorContract):
    @pytest.fixture
    def sensor(self) -> CommandSensor:
        return CommandSensor(CommandSettings(["/bin/echo", "42.5"], "watts", "bench meter"))


class TestCommandOfJoules(SensorContract):
    @pytest.fixture
    def sensor(self) -> CommandSensor:
        program = "import time; print(time.monotonic() * 50)"
        return CommandSensor(CommandSettings([sys.executable, "-S", "-c", program], "joules", "counter"))


class TestEstimate(SensorContract):
    @pytest.fixture
    def sensor(self) -> EstimateSensor:
        return EstimateSensor(EstimateSettings(20.0, 60.0))


class TestNvmlCounter(SensorContract):
    # Idle 18 W plus 0.8 of 120 W for the memory.
    expected_watts = 114.0

    @pytest.fixture
    def sensor(self, fake_nvml: FakeNvml) -> Iterator[NvmlSensor]:
        fake_nvml.gpus[0].load(memory=0.8)
        with fake_nvml.in_process():
            yield NvmlSensor("0")


class TestNvmlPower(SensorContract):
    expected_watts = 114.0

    @pytest.fixture
    def sensor(self, fake_nvml: FakeNvml) -> Iterator[NvmlSensor]:
        fake_nvml.gpus[0].load(memory=0.8)
        with fake_nvml.in_process():
            yield NvmlSensor("0", use_counter=False)


class TestNvmlLaptop(SensorContract):
    @pytest.fixture
    def sensor(self, make_fake_nvml: Callable[..., FakeNvml]) -> Iterator[NvmlSensor]:
        with make_fake_nvml(LAPTOP_4060).in_process():
            yield NvmlSensor("0")


class TestSumOfGpus(SensorContract):
    @pytest.fixture
    def sensor(self, make_fake_nvml: Callable[..., FakeNvml]) -> Iterator[SumSensor]:
        with make_fake_nvml(RTX_4090, H200).in_process():
            yield SumSensor([NvmlSensor("0"), NvmlSensor("1")])


class TestTrusted(SensorContract):
    @pytest.fixture
    def sensor(self, fake_nvml: FakeNvml) -> Iterator[TrustedSensor]:
        trust = Trust(100, 2.0, counter_stands_still=True, power_period_seconds=0.1)
        with fake_nvml.in_process():
            yield TrustedSensor(NvmlSensor("0"), trust)


class TestAbsent(AbsentSensorContract):
    @pytest.fixture(params=["rapl", "psys", "hwmon", "battery", "plug", "command", "estimate"])
    def sensor(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        makers: dict[str, Callable[[], Any]] = {
            "rapl": lambda: RaplSensor(tmp_path),
            "psys": lambda: RaplSensor(plant("intel_desktop", tmp_path), platform=True),
            "hwmon": lambda: HwmonSensor(tmp_path),
            "battery": lambda: BatterySensor(tmp_path),
            "plug": lambda: PlugSensor(PlugSettings("shelly", "http://127.0.0.1:9"), timeout_seconds=0.5),
            "command": lambda: CommandSensor(CommandSettings([str(tmp_path / "none")])),
            "estimate": lambda: EstimateSensor(procfs_root=tmp_path),
        }
        return makers[request.param]()


class TestAbsentGpu(AbsentSensorContract):
    @pytest.fixture
    def sensor(self, fake_nvml: FakeNvml) -> Iterator[NvmlSensor]:
        with fake_nvml.in_process():
            yield NvmlSensor("7")
