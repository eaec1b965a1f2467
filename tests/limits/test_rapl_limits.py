"""Package limits on a folder that stands for sysfs, as Linux lays it out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.errors import LimitRefused, SensorMissingError
from sweeper.limits.base import Action, LimitControl
from sweeper.limits.control import find_limits
from sweeper.limits.rapl import packages
from sweeper.limits.rights import MeansSettings
from sweeper.limits.standing_limit import own_bench, standing_limit
from sweeper.power_settings import PowerSettings


def zone(sysfs: Path, number: int | str, name: str, limits: dict[str, int], **files: str) -> Path:
    """One powercap zone. ``limits``: constraint -> µW."""
    folder = sysfs / "class/powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    for file, text in {"name": name, "enabled": "1", **files}.items():
        (folder / file).write_text(f"{text}\n")
    for constraint, value in limits.items():
        (folder / f"{constraint}_power_limit_uw").write_text(f"{value}\n")
    return folder


Make = Callable[..., LimitControl]


@pytest.fixture
def find(tmp_path: Path) -> Make:
    (tmp_path / "locks").mkdir()

    def make(sysfs: Path = tmp_path / "sys", means: str = "direct", source: str = "rapl") -> LimitControl:
        settings = PowerSettings(source=source, sysfs_root=str(sysfs))
        return find_limits(tmp_path / "mlruns", settings, MeansSettings(means=means), tmp_path / "locks", {})

    return make


def limits_of(folder: Path) -> list[int]:
    return [int(path.read_text().split()[0]) for path in sorted(folder.glob("constraint_*_power_limit_uw"))]


def test_a_mini_pc_is_capped_in_both_constraints_and_given_back(tmp_path: Path, find: Make) -> None:
    found = {"constraint_0": 44_000_000, "constraint_1": 64_000_000}  # a LattePanda Sigma's i5-1340P
    folder = zone(tmp_path / "sys", 0, "package-0", found, constraint_0_max_power_uw="28000000")
    zone(tmp_path / "sys", 1, "psys", {"constraint_0": 0})
    limits = find()
    power = limits.ranges()["power_limit_watts"]
    assert (power.low, power.high, power.found, power.device) == (11, 44, 44, "intel-rapl:0")
    assert "NVIDIA" in str(limits.refusals()["clock_limit_mhz"])
    with limits:
        assert limits.set("power_limit_watts", 20).enforced == 20
        assert limits_of(folder) == [20_000_000, 20_000_000]
        limits.set("power_limit_watts", 44)
        assert limits_of(folder) == [44_000_000, 44_000_000]
        limits.set("power_limit_watts", None)
        assert limits_of(folder) == list(found.values())
        limits.set("power_limit_watts", 15)
    assert limits_of(folder) == list(found.values())
    assert {outcome.action for outcome in limits.outcomes} == {Action.RESTORED}


def test_two_sockets_move_together(tmp_path: Path, find: Make) -> None:
    one = zone(tmp_path / "sys", 0, "package-0", {"constraint_0": 150_000_000, "constraint_1": 180_000_000})
    two = zone(tmp_path / "sys", 1, "package-1", {"constraint_0": 140_000_000, "constraint_1": 170_000_000})
    with find() as limits:
        assert limits.ranges()["power_limit_watts"].high == 140
        limits.set("power_limit_watts", 100)
        assert limits_of(one) == limits_of(two) == [100_000_000, 100_000_000]
    assert limits_of(one) == [150_000_000, 180_000_000]
    assert limits_of(two) == [140_000_000, 170_000_000]


def test_only_packages_count(tmp_path: Path) -> None:
    zone(tmp_path, 0, "package-0", {"constraint_0": 1})
    zone(tmp_path, "0:0", "core", {"constraint_0": 1})
    zone(tmp_path, 1, "psys", {"constraint_0": 1})
    twin = tmp_path / "class/powercap/intel-rapl-mmio:0"
    twin.mkdir()
    (twin / "name").write_text("package-0\n")
    assert packages(tmp_path) == ["intel-rapl:0"]


def test_processors_without_limits_and_machines_without_rapl(tmp_path: Path, find: Make) -> None:
    zone(tmp_path / "amd", 0, "package-0", {})
    for sysfs in (tmp_path / "amd", tmp_path / "nothing"):
        limits = find(sysfs)
        assert not limits.ranges()
        assert "no processor package with a power limit" in str(limits.refusals()["power_limit_watts"])


def test_a_package_without_a_long_term_limit_is_refused(tmp_path: Path, find: Make) -> None:
    zone(tmp_path / "sys", 0, "package-0", {"constraint_1": 44_000_000})
    assert "no long-term power limit" in str(find().refusals()["power_limit_watts"])


def test_limits_switched_off_are_said_to_be(tmp_path: Path, find: Make) -> None:
    zone(tmp_path / "sys", 0, "package-0", {"constraint_0": 44_000_000}, enabled="0")
    assert "switched off" in str(find().refusals()["power_limit_watts"])


def test_a_kernel_that_keeps_the_old_value_is_seen(
    tmp_path: Path, find: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = zone(tmp_path / "sys", 0, "package-0", {"constraint_0": 44_000_000})
    monkeypatch.setattr("sweeper.limits.knob.READ_BACK_SECONDS", 0.05)
    monkeypatch.setattr("sweeper.limits.rapl._write_at_once", lambda path, raw: None)
    with find() as limits, pytest.raises(LimitRefused, match="did not change to 20 W: it reads back 44 W"):
        limits.set("power_limit_watts", 20)
    assert limits_of(folder) == [44_000_000]


def test_rounding_to_the_processors_own_unit_is_no_refusal(
    tmp_path: Path, find: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = zone(tmp_path / "sys", 0, "package-0", {"constraint_0": 44_000_000})

    def eighths(path: Path, raw: int) -> None:
        path.write_text(f"{raw // 125_000 * 125_000 - 1}\n")

    monkeypatch.setattr("sweeper.limits.rapl._write_at_once", eighths)
    with find() as limits:
        assert limits.set("power_limit_watts", 20).enforced == 20
    assert limits_of(folder) == [43_999_999]


def test_firmware_that_locks_limits_is_named(
    tmp_path: Path, find: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(tmp_path / "sys", 0, "package-0", {"constraint_0": 44_000_000})

    def denied(path: Path, raw: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sweeper.limits.rapl._write_at_once", denied)
    with find() as limits, pytest.raises(LimitRefused, match="locked by the firmware"):
        limits.set("power_limit_watts", 20)


def test_without_the_right_the_reason_says_how_to_grant_it(
    tmp_path: Path, find: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(tmp_path / "sys", 0, "package-0", {"constraint_0": 44_000_000})
    monkeypatch.setattr("sweeper.limits.rapl.PackageKnob.writable", False)
    limits = find(means="auto")
    assert limits.ranges() == {}
    reason = str(limits.refusals()["power_limit_watts"])
    assert "sweeper doctor" in reason
    assert "\n" not in reason
    with limits, pytest.raises(LimitRefused):
        limits.set("power_limit_watts", 20)


def test_a_lasting_limit_needs_exactly_one_limit(tmp_path: Path) -> None:
    settings = PowerSettings(sysfs_root=str(tmp_path))
    with own_bench(settings) as machine:
        with pytest.raises(
            SensorMissingError, match=r"^this machine has no power limit that sweeper can set$"
        ):
            standing_limit(machine, "package", tmp_path)
        folder = zone(tmp_path, 0, "package-0", {"constraint_0": 44_000_000})
        limit = standing_limit(machine, "package", tmp_path)
        assert (limit.device, limit.read()) == ("intel-rapl:0", 44)
        (folder / "constraint_1_power_limit_uw").write_text("64000000\n")
        with pytest.raises(SensorMissingError, match="package has 2 power limits"):
            standing_limit(machine, "package", tmp_path)
