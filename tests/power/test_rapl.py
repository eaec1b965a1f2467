"""RAPL on the trees of real machines: what is summed, what is left out, wraps, and the rights."""

from __future__ import annotations

from pathlib import Path

import pytest
from sysfs_trees import as_plain_user, plant, write

from sweeper.doctor import examine
from sweeper.errors import ReadingFailed, SensorMissingError
from sweeper.meter.base import ANOTHER
from sweeper.meter.choose import find_meter
from sweeper.meter.integrate import integrate
from sweeper.meter.sensors.rapl import RaplSensor, find_zones, packages, without_mirrors
from sweeper.power_settings import PowerSettings

POWERCAP = "class/powercap"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("machine", "zones"),
    [
        ("intel_desktop", ["package-0"]),
        ("hybrid_laptop", ["package-0"]),
        ("epyc_two_sockets", ["package-0", "package-1"]),
        ("lattepanda_sigma", ["package-0"]),
        ("jetson_orin", []),
        ("amdgpu_card", []),
    ],
)
def test_sums_packages_only(machine: str, zones: list[str], tmp_path: Path) -> None:
    assert [zone.name for zone in packages(find_zones(plant(machine, tmp_path)))] == zones


def test_counts_the_twins_of_msr_and_mmio_once_and_reads_msr(tmp_path: Path) -> None:
    (zone,) = find_zones(plant("hybrid_laptop", tmp_path))
    assert zone.path.name == "intel-rapl:0"


def test_psys_is_a_scope_of_its_own(tmp_path: Path) -> None:
    root = plant("lattepanda_sigma", tmp_path)
    for is_platform, device, scope in ((False, "package-0", "package"), (True, "psys", "psys")):
        sensor = RaplSensor(root, platform=is_platform)
        sensor.open()
        assert (sensor.source.device, sensor.source.scope) == (device, scope)
        sensor.close()


def _dies(root: Path, joules: list[float]) -> None:
    for number, value in enumerate(joules):
        zone = root / POWERCAP / f"intel-rapl:{number}"
        write(zone / "name", f"package-0-die-{number}")
        write(zone / "max_energy_range_uj", 262143328850)
        write(zone / "energy_uj", round(value * 1e6))


def test_mirrored_dies_count_once_and_real_dies_all(tmp_path: Path) -> None:
    _dies(tmp_path, [5000.0, 5000.2, 9000.0])
    zones = without_mirrors(packages(find_zones(tmp_path)))
    assert [zone.name for zone in zones] == ["package-0-die-0", "package-0-die-2"]


def test_equal_packages_are_no_mirrors(tmp_path: Path) -> None:
    root = plant("epyc_two_sockets", tmp_path)
    for number in (0, 1):
        write(root / POWERCAP / f"intel-rapl:{number}" / "energy_uj", 5_000_000)
    assert len(without_mirrors(packages(find_zones(root)))) == 2


def test_each_zone_wraps_by_itself(tmp_path: Path) -> None:
    root = plant("epyc_two_sockets", tmp_path)
    clock = Clock()
    sensor = RaplSensor(root, clock=clock)
    span = 65532610987
    values = [span - 30_000_000, span - 250_000_000]
    files = [root / POWERCAP / f"intel-rapl:{n}" / "energy_uj" for n in (0, 1)]
    for file, value in zip(files, values, strict=True):
        write(file, value)
    sensor.open()
    samples = []
    for _ in range(101):  # 10 s at 100 W each: one wraps after 0.3 s, the other after 2.5 s
        samples.append(sensor.read())
        clock.now += 0.1
        for n, file in enumerate(files):
            values[n] = (values[n] + 10_000_000) % span
            write(file, values[n])
    integral = integrate(samples, 100.5, 109.5, 0.001)
    assert integral.joules == pytest.approx(200 * 9.0, rel=1e-6)


def test_a_sleeping_machine_makes_no_energy_up(tmp_path: Path) -> None:
    root = plant("intel_desktop", tmp_path)
    clock = Clock()
    sensor = RaplSensor(root, clock=clock)
    sensor.open()
    before = sensor.read()
    clock.now += 8 * 3600
    after = sensor.read()
    assert after.epoch == before.epoch + 1
    assert integrate([before, after], 200.0, 20_000.0, 0.001).joules is None


def test_a_counter_that_vanishes_fails_the_reading(tmp_path: Path) -> None:
    root = plant("intel_desktop", tmp_path)
    sensor = RaplSensor(root)
    sensor.open()
    (root / POWERCAP / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(ReadingFailed, match="energy_uj"):
        sensor.read()


def test_names_the_missing_interface(tmp_path: Path) -> None:
    with pytest.raises(SensorMissingError, match="no powercap interface"):
        RaplSensor(tmp_path).open()
    (tmp_path / POWERCAP).mkdir(parents=True)
    with pytest.raises(SensorMissingError, match="modprobe intel_rapl_msr"):
        RaplSensor(tmp_path).open()


def test_explains_the_right_to_a_plain_user(open_folder: Path) -> None:
    """Asked as a user without rights, since the tests may run as root."""
    root = plant("intel_desktop", open_folder / "sys")
    (root / POWERCAP / "intel-rapl:0" / "energy_uj").chmod(0o000)
    said = as_plain_user("sweeper.meter.sensors.rapl", "RaplSensor", root)
    assert said.startswith("RightMissingError")
    assert "CVE-2020-8694" in said
    assert "/etc/udev/rules.d/70-sweeper-rapl.rules" in said
    assert "usermod -aG power" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("fault", ["empty", "EIO", "words"])
def test_a_counter_that_cannot_be_read_ends_neither_doctor_nor_auto(fault: str, tmp_path: Path) -> None:
    root = plant("intel_desktop", tmp_path / "sys")
    counter = root / POWERCAP / "intel-rapl:0" / "energy_uj"
    write(counter, "" if fault == "empty" else "no value")
    if fault == "EIO":
        counter.unlink()
        counter.symlink_to("/proc/self/mem")  # reading its start is an EIO
    settings = PowerSettings(sysfs_root=str(root))
    meter, notes = find_meter(settings, tmp_path / "runs", gpu_used=False)
    assert meter.source.name == "estimate"
    reason = {"empty": "is empty", "EIO": "Input/output error", "words": "'no value' instead of a number"}[
        fault
    ]
    assert reason in notes[0]
    assert "CVE" not in notes[0]
    (finding,) = (f for f in examine(tmp_path / "runs", settings, seconds=0.1) if f.name == "rapl")
    assert (finding.status, finding.mend) == ("unusable", ANOTHER)
    assert reason in finding.detail
    with pytest.raises(SensorMissingError, match=reason):
        find_meter(PowerSettings(source="rapl", sysfs_root=str(root)), tmp_path / "runs", gpu_used=False)
