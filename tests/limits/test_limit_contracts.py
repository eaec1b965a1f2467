"""Every control of limits passes the contract: a fake GPU through pynvml, a sysfs tree, a simulated machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_nvml import RTX_4090, FakeNvml
from limit_contract import LimitControlContract, LimitedDevice

from sweeper.lab.simulated_power import SimulatedLimits
from sweeper.limits.base import LimitControl, LimitRange
from sweeper.limits.control import find_limits
from sweeper.limits.rights import MeansSettings
from sweeper.power_settings import PowerSettings

CLOCK = "clock_limit_mhz"
POWER = "power_limit_watts"


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., LimitControl]:
    """Looks for limits with folders of its own for runs, locks and sysfs."""
    (tmp_path / "locks").mkdir()

    def make(source: str) -> LimitControl:
        settings = PowerSettings(source=source, sysfs_root=str(tmp_path / "sys"))
        means = MeansSettings(means="direct")
        return find_limits(tmp_path / "mlruns", settings, means, tmp_path / "locks", environ={})

    return make


class Gpu:
    """A fake GPU, as `nvidia-smi` would show and set it."""

    def __init__(self, nvml: FakeNvml) -> None:
        self._gpu = nvml.gpus[0]

    def limit(self, name: str) -> int | None:
        if name == POWER:
            return int(self._gpu.power_limit_watts)
        locked = self._gpu.locked_clocks_mhz
        return None if locked is None else locked[1]

    def change(self, name: str, value: int) -> None:
        assert name == POWER
        self._gpu.power_limit_watts = value


class TestNvmlLimits(LimitControlContract):
    @pytest.fixture
    def nvml(self, make_fake_nvml: Callable[..., FakeNvml]) -> Iterator[FakeNvml]:
        nvml = make_fake_nvml(RTX_4090)
        nvml.gpus[0].power_limit_watts = 400  # neither the default nor the most
        with nvml.in_process():
            yield nvml

    @pytest.fixture
    def device(self, nvml: FakeNvml) -> LimitedDevice:
        return Gpu(nvml)

    @pytest.fixture
    def limits(self, nvml: FakeNvml, find: Callable[..., LimitControl]) -> LimitControl:
        return find("nvml")


class Package:
    """A processor package's folder, as `powercap-set` would show and set it."""

    def __init__(self, folder: Path) -> None:
        self._files = [folder / f"constraint_{n}_power_limit_uw" for n in (0, 1)]
        folder.mkdir(parents=True)
        (folder / "name").write_text("package-0\n")
        (folder / "enabled").write_text("1\n")
        for file, watts in zip(self._files, (44, 64), strict=True):
            file.write_text(f"{watts}000000\n")

    def limit(self, name: str) -> int | None:
        return int(self._files[0].read_text().split()[0]) // 1_000_000

    def change(self, name: str, value: int) -> None:
        for file in self._files:
            file.write_text(f"{value}000000\n")


class TestRaplLimits(LimitControlContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> LimitedDevice:
        return Package(tmp_path / "sys/class/powercap/intel-rapl:0")

    @pytest.fixture
    def limits(self, device: LimitedDevice, find: Callable[..., LimitControl]) -> LimitControl:
        return find("rapl")


class Imagined:
    """The machine in the memory of a `SimulatedLimits`."""

    def __init__(self, limits: SimulatedLimits) -> None:
        self._limits = limits

    def limit(self, name: str) -> int | None:
        return self._limits.in_force[name]

    def change(self, name: str, value: int) -> None:
        self._limits.in_force[name] = value


class TestSimulatedLimits(LimitControlContract):
    @pytest.fixture
    def limits(self) -> SimulatedLimits:
        ranges = (LimitRange(POWER, "GPU-1", 100, 170, 170), LimitRange(CLOCK, "GPU-1", 300, 2100, None, 15))
        return SimulatedLimits({one.name: one for one in ranges})

    @pytest.fixture
    def device(self, limits: SimulatedLimits) -> LimitedDevice:
        return Imagined(limits)
