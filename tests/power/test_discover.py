"""Which sensor is chosen, what is said about it, and what happens where a named one is not there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from fake_plugs import FakePlug, serving
from omegaconf import OmegaConf
from sysfs_trees import MACHINES, plant, running

from sweeper.doctor import Diagnosis, examine
from sweeper.errors import ConfigError, RightMissingError, SensorMissingError, SweeperError
from sweeper.limits.base import LimitControl, LimitInForce, LimitRange
from sweeper.meter.base import PowerMeter
from sweeper.meter.choose import find_meter
from sweeper.power_settings import SOURCES, CommandSettings, PlugSettings, PowerSettings, check_settings
from sweeper.records import Caveat, EnergyReading

QUICK = 0.1
CONF = Path(__file__).resolve().parents[2] / "conf" / "power"


@contextmanager
def machine(name: str, root: Path) -> Iterator[PowerSettings]:
    """A planted machine whose counters all run."""
    sysfs = plant(name, root / "sys")
    counters = [*sysfs.glob("class/powercap/*/energy_uj"), *sysfs.glob("class/hwmon/*/energy*_input")]
    with running(dict.fromkeys(counters, 30.0)):
        yield PowerSettings(sysfs_root=str(sysfs))


def _find(settings: PowerSettings, root: Path, gpu_used: bool) -> tuple[PowerMeter, tuple[str, ...]]:
    return find_meter(settings, root / "runs", gpu_used, trust_seconds=QUICK)


def _window(meter: PowerMeter, seconds: float = 0.25) -> EnergyReading:
    with meter:
        with meter.window() as window:
            started = time.monotonic()
            time.sleep(seconds)
            ended = time.monotonic()
        return window.reading(started, ended)


@pytest.mark.parametrize(
    ("name", "gpu_used", "source", "scope"),
    [
        ("intel_desktop", False, "rapl", "package"),
        ("intel_desktop", True, "rapl", "package"),
        ("hybrid_laptop", False, "rapl", "package"),
        ("epyc_two_sockets", False, "rapl", "package"),
        ("lattepanda_sigma", False, "rapl", "package"),
        ("jetson_orin", False, "hwmon", "module"),
        ("jetson_orin", True, "hwmon", "module"),
        ("amdgpu_card", True, "hwmon", "gpu"),
        ("amdgpu_card", False, "estimate", "package"),
        ("arc_card", True, "hwmon", "gpu"),
    ],
)
def test_auto_picks_by_trust(name: str, gpu_used: bool, source: str, scope: str, tmp_path: Path) -> None:
    with machine(name, tmp_path) as settings:
        meter, notes = _find(settings, tmp_path, gpu_used)
    assert (meter.source.name, meter.source.scope) == (source, scope)
    if source == "estimate":
        assert any(note.startswith("rapl: ") for note in notes)


def test_auto_prefers_the_gpus_own_sensor_and_records_the_processor_beside(
    tmp_path: Path, fake_nvml: FakeNvml
) -> None:
    with machine("intel_desktop", tmp_path) as settings, fake_nvml.in_process():
        meter, _ = _find(settings, tmp_path, True)
        reading = _window(meter)
        assert meter.source.scope == "gpu"
        assert [b.source.scope for b in reading.beside] == ["package"]
        assert reading.watts is not None
        assert reading.watts < 40  # the GPU's 18 W at rest, the package's 30 W not added
        meter, _ = _find(settings, tmp_path, False)
        assert meter.source.scope == "package"


def test_rapl_misses_a_discrete_gpu_and_says_so(tmp_path: Path) -> None:
    with machine("intel_desktop", tmp_path) as settings:
        reading = _window(_find(settings, tmp_path, True)[0])
    assert Caveat.MISSING_DOMAIN in reading.caveats


def test_an_estimate_says_why_each_better_one_is_missing(tmp_path: Path) -> None:
    settings = PowerSettings(sysfs_root=str(tmp_path))
    meter, notes = _find(settings, tmp_path, True)
    assert meter.source.kind == "estimated"
    assert [note.split(":")[0] for note in notes[:3]] == ["nvml", "hwmon", "rapl"]
    assert all("power=" in note for note in notes[:3])
    assert "this assumes 10 W when idle" in notes[-1]


def test_auto_passes_over_a_counter_that_stands_still(tmp_path: Path) -> None:
    settings = PowerSettings(sysfs_root=str(plant("intel_desktop", tmp_path / "sys")))
    meter, notes = _find(settings, tmp_path, False)
    assert meter.source.name == "estimate"
    assert "stands still" in notes[0]
    settings.source = "rapl"
    with pytest.raises(SensorMissingError, match="stands still"):
        _find(settings, tmp_path, False)


@pytest.mark.parametrize("source", ["nvml", "rapl", "hwmon", "battery"])
def test_a_named_source_that_is_not_there_fails_at_once(source: str, tmp_path: Path) -> None:
    with pytest.raises(SensorMissingError):
        _find(PowerSettings(source=source, sysfs_root=str(tmp_path)), tmp_path, False)


def test_a_battery_is_never_picked_but_can_be_named(tmp_path: Path) -> None:
    with machine("hybrid_laptop", tmp_path) as settings:
        for zone in Path(settings.sysfs_root).glob("class/powercap/*/energy_uj"):
            zone.unlink()
        assert _find(settings, tmp_path, False)[0].source.name == "estimate"
        settings.source = "battery"
        assert _find(settings, tmp_path, False)[0].source.name == "battery"


def test_sources_beside_are_opened_too_or_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        settings = stack.enter_context(machine("lattepanda_sigma", tmp_path))
        plug = stack.enter_context(serving(FakePlug("shelly", 44.0)))
        settings.source, settings.beside = "rapl", ("plug", "estimate")
        settings.plug = PlugSettings("shelly", plug.url)
        reading = _window(_find(settings, tmp_path, False)[0], 1.35)
        settings.beside = ("battery",)
        with pytest.raises(SensorMissingError, match="battery"):
            _find(settings, tmp_path, False)
    assert [b.source.name for b in reading.beside] == ["plug", "estimate"]
    assert reading.beside[0].watts == pytest.approx(44, rel=0.02)


def test_the_trust_check_is_kept_under_the_root(tmp_path: Path) -> None:
    with machine("intel_desktop", tmp_path) as settings:
        _find(settings, tmp_path, False)
        (kept,) = (tmp_path / "runs/trust").glob("rapl-*.json")
        before = kept.stat().st_mtime_ns
        _find(settings, tmp_path, False)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (PowerSettings(source="wall"), "power.source=wall is none of auto"),
        (PowerSettings(beside=("auto",)), "power.beside=auto"),
        (PowerSettings(sample_hz=50), "power.sample_hz=50"),
        (PowerSettings(source="plug"), "power.plug.url is missing"),
        (PowerSettings(source="plug", plug=PlugSettings(url="192.168.1.2")), "no http address"),
        (PowerSettings(source="plug", plug=PlugSettings(url="file:///etc/passwd")), "no http address"),
        (PowerSettings(source="plug", plug=PlugSettings("kasa", "http://x")), "power.plug.kind=kasa"),
        (PowerSettings(source="command"), "power.command.argv is empty"),
        (PowerSettings(source="command", command=CommandSettings(["x"], "volts")), "power.command.unit"),
    ],
)
def test_settings_that_cannot_work_name_their_key(settings: PowerSettings, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(settings)
    assert words in str(caught.value)


def test_every_file_of_the_group_fits_the_schema() -> None:
    files = sorted(CONF.glob("*.yaml"))
    assert {file.stem for file in files} == set(SOURCES)
    for file in files:
        merged = OmegaConf.merge(OmegaConf.structured(PowerSettings), OmegaConf.load(file))
        settings = OmegaConf.to_object(merged)
        assert isinstance(settings, PowerSettings)
        assert settings.source == file.stem


class _Limits(LimitControl):
    def ranges(self) -> dict[str, LimitRange]:
        return {"power_limit_watts": LimitRange("power_limit_watts", "GPU-1", 150, 450, 450)}

    def refusals(self) -> dict[str, SweeperError]:
        return {"clock_limit_mhz": RightMissingError("not as this user")}

    def set(self, name: str, value: int | None) -> LimitInForce:
        raise AssertionError("the doctor sets nothing")


@pytest.mark.parametrize("name", MACHINES)
def test_the_doctor_finds_what_each_machine_has(name: str, tmp_path: Path) -> None:
    with machine(name, tmp_path) as settings:
        findings = list(examine(tmp_path / "runs", settings, seconds=QUICK))
    found = {f.name for f in findings if f.area == "sensor" and f.status == "ok"} - {"estimate"}
    expected = {
        "intel_desktop": {"rapl"},
        "hybrid_laptop": {"rapl", "battery"},
        "epyc_two_sockets": {"rapl"},
        "lattepanda_sigma": {"rapl", "rapl psys"},
        "jetson_orin": {"hwmon ina3221"},
        "amdgpu_card": {"hwmon 0000:03:00.0"},
        "arc_card": {"hwmon 0000:03:00.0"},
    }
    assert found == expected[name]
    for finding in findings:
        assert finding.status == "ok" or finding.mend, finding


def test_the_doctor_offers_no_missing_sensor_and_explains_its_marks(tmp_path: Path) -> None:
    findings = tuple(examine(tmp_path / "runs", PowerSettings(sysfs_root=str(tmp_path)), seconds=QUICK))
    of = {finding.name: finding for finding in findings}
    assert of["nvml"].mend is not None
    assert "ignore this line" in of["nvml"].mend
    assert all("power=rapl" not in (finding.mend or "") for finding in findings)
    assert "W now (processor only)" in of["estimate"].detail
    assert "set power.estimate.idle_watts and power.estimate.busy_watts" in of["estimate"].detail
    assert Diagnosis(findings).to_text().splitlines()[-1] == "✓ works   – not here, or not set up"


def test_the_doctor_shows_gpus_limits_and_mending_lines(tmp_path: Path, fake_nvml: FakeNvml) -> None:
    with machine("intel_desktop", tmp_path) as settings, fake_nvml.in_process():
        diagnosis = Diagnosis(tuple(examine(tmp_path / "runs", settings, limits=_Limits(), seconds=0.3)))
    text = diagnosis.to_text()
    assert "nvmlDeviceGetTotalEnergyConsumption, refreshes every" in text
    assert "150 to 450 on GPU-1, present value 450" in text
    assert "✗ clock_limit_mhz" in text
    assert text.count("sudo groupadd") == text.count("visudo -c") == 1
    assert text.startswith("sensors\n")
    assert "\nlimits\n" in text
    plain = diagnosis.to_plain()
    assert {f["area"] for f in plain["findings"]} == {"sensor", "limit"}
