"""NVML through the real pynvml, on a fake driver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from fake_nvml import GPU_IS_LOST, H100_MIG, H200, LAPTOP_4060, NO_PERMISSION, RTX_4090, FakeGpu, FakeNvml

from sweeper.errors import ConfigError, ReadingFailed, RightMissingError, SensorMissingError
from sweeper.meter.composite import SumSensor, TrustedSensor
from sweeper.meter.sampling import SampledMeter
from sweeper.meter.sensors.nvml import NvmlSensor, gpu_sensor, visible_devices
from sweeper.meter.sensors.plug import PlugSensor
from sweeper.meter.trust import Trust
from sweeper.power_settings import PlugSettings
from sweeper.records import Caveat

MakeNvml = Callable[..., FakeNvml]
COUNTER = "nvmlDeviceGetTotalEnergyConsumption"


def _interface(nvml: FakeNvml) -> tuple[str, str]:
    with nvml.in_process():
        sensor = NvmlSensor("0")
        sensor.open()
        try:
            return sensor.source.interface, sensor.source.scope
        finally:
            sensor.close()


@pytest.mark.parametrize(
    ("broken", "interface", "scope"),
    [
        ([], COUNTER, "gpu"),
        ([COUNTER], "nvmlDeviceGetFieldValues(POWER_INSTANT, gpu)", "gpu"),
        ([COUNTER, "field_power_instant"], "nvmlDeviceGetFieldValues(POWER_AVERAGE, gpu)", "gpu"),
        ([COUNTER, "field_power_instant", "field_power_average"], "nvmlDeviceGetPowerUsage", "gpu"),
        ([COUNTER, "nvmlDeviceGetFieldValues"], "nvmlDeviceGetPowerUsage", "gpu"),
    ],
)
def test_goes_down_the_ladder_by_calling(
    broken: list[str], interface: str, scope: str, fake_nvml: FakeNvml
) -> None:
    if broken:
        fake_nvml.gpus[0].fail(*broken)
    assert _interface(fake_nvml) == (interface, scope)


@pytest.mark.parametrize("is_averaged", [False, True])
def test_a_mean_of_the_last_second_stays_one_however_often_it_is_refreshed(
    is_averaged: bool, fake_nvml: FakeNvml
) -> None:
    if is_averaged:
        fake_nvml.gpus[0].fail("field_power_instant")
    still = Trust(100, 2.0, counter_stands_still=True, power_period_seconds=0.02)
    with fake_nvml.in_process():
        sensor = TrustedSensor(NvmlSensor("0"), still)
        sensor.open()
        source = sensor.source
        sensor.close()
    assert source.interface == f"power instead of {COUNTER}, which stands still"
    assert source.update_period_seconds == (1.0 if is_averaged else 0.02)
    assert source.settling_seconds == (1.2 if is_averaged else None)


def test_power_beside_a_counter_is_read_for_the_trust_check_only(fake_nvml: FakeNvml) -> None:
    with fake_nvml.in_process():
        bare = NvmlSensor("0")
        bare.open()
        assert bare.read().power_watts is not None
        bare.close()
        both = SumSensor([NvmlSensor("0")])
        for sensor in (NvmlSensor("0"), both):
            trusted = TrustedSensor(sensor, Trust(100, 2.0, counter_period_seconds=0.02))
            trusted.open()
            sample = trusted.read()
            trusted.close()
            assert sample.energy_joules is not None
            assert sample.power_watts is None


def test_a_gpu_that_tells_nothing_is_missing(fake_nvml: FakeNvml) -> None:
    fake_nvml.gpus[0].fail(COUNTER, "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage")
    with fake_nvml.in_process(), pytest.raises(SensorMissingError, match="neither energy nor power"):
        NvmlSensor("0").open()


def test_without_a_driver_it_says_what_to_install(fake_nvml: FakeNvml) -> None:
    fake_nvml.unload_driver()
    with fake_nvml.in_process(), pytest.raises(SensorMissingError, match="install NVIDIA's driver"):
        gpu_sensor(None)


def test_device_files_that_may_not_be_opened_are_a_matter_of_rights(fake_nvml: FakeNvml) -> None:
    fake_nvml.gpus[0].fail("nvmlDeviceGetUUID", code=NO_PERMISSION)
    with fake_nvml.in_process(), pytest.raises(RightMissingError, match="usermod -aG"):
        NvmlSensor("0").open()


def _truth_at(gpu: FakeGpu) -> tuple[float, float]:
    """A moment, and the joules until then: asked again where the machine was busy in between."""
    while True:
        before, joules, after = time.monotonic(), gpu.truth().energy_joules, time.monotonic()
        if after - before < 0.001:
            return (before + after) / 2, joules


def test_a_window_holds_the_true_energy_and_what_stands_beside_it(fake_nvml: FakeNvml) -> None:
    gpu = fake_nvml.gpus[0]
    gpu.load(compute=0.6, memory=1.0)
    gpu.update_period(energy_seconds=0.02)
    sensor = TrustedSensor(NvmlSensor("0"), Trust(100, 2.0, counter_period_seconds=0.02))
    with fake_nvml.in_process(), SampledMeter(sensor) as meter:
        with meter.window() as window:
            time.sleep(0.15)
            started, before = _truth_at(gpu)
            time.sleep(1.0)
            ended, after = _truth_at(gpu)
        reading = window.reading(started, ended)
        assert meter.watts_now() is not None
        assert meter.temperature_celsius() is not None
    assert reading.joules is not None
    assert reading.error_fraction is not None
    assert abs(reading.joules - (after - before)) <= reading.error_fraction * reading.joules
    assert reading.error_fraction < 0.2  # a sampler that was held up widens the bar, and no further than this
    assert reading.source.device == gpu.uuid
    assert reading.clock_mhz is not None
    assert reading.clock_mhz > 300
    assert reading.temperature_max_celsius is not None
    assert reading.enforced_limit_watts == 450
    assert reading.capped_share == 0.0
    assert reading.other_processes == 0
    assert reading.samples >= 6
    assert reading.largest_gap_seconds is not None
    assert reading.largest_gap_seconds < 1


def test_a_slow_counter_keeps_to_its_bar_where_load_begins_and_ends_with_the_window(
    fake_nvml: FakeNvml,
) -> None:
    gpu = fake_nvml.gpus[0]
    gpu.update_period(energy_seconds=0.1)
    sensor = TrustedSensor(NvmlSensor("0"), Trust(100, 2.0, counter_period_seconds=0.1))
    with fake_nvml.in_process(), SampledMeter(sensor) as meter:
        with meter.window() as window:
            time.sleep(0.12)
            gpu.load(memory=1.0)
            started, before = _truth_at(gpu)
            time.sleep(1.33)
            ended, after = _truth_at(gpu)
            gpu.load()
        reading = window.reading(started, ended)
    assert reading.joules is not None
    assert reading.error_fraction is not None
    assert abs(reading.joules - (after - before)) <= reading.error_fraction * reading.joules
    assert reading.error_fraction < 0.2  # and a bar that says something


def test_a_capped_window_says_so(fake_nvml: FakeNvml) -> None:
    gpu = fake_nvml.gpus[0]
    gpu.power_limit_watts = 200
    gpu.load(compute=1.0, memory=1.0)
    time.sleep(0.3)
    with fake_nvml.in_process(), SampledMeter(NvmlSensor("0")) as meter:
        with meter.window() as window:
            started = time.monotonic()
            time.sleep(0.7)
            ended = time.monotonic()
        reading = window.reading(started, ended)
    assert reading.capped_share == 1.0
    assert "sw_power_cap" in reading.throttle_reasons
    assert Caveat.POWER_CAPPED in reading.caveats
    assert reading.enforced_limit_watts == 200


def test_other_processes_are_told_from_ours(fake_nvml: FakeNvml) -> None:
    child = subprocess.Popen(["/bin/sleep", "30"])
    try:
        with fake_nvml.in_process():
            sensor = NvmlSensor("0")
            sensor.open()
            fake_nvml.gpus[0].run_processes(os.getpid(), child.pid)
            assert sensor.state().other_processes == 0
            fake_nvml.gpus[0].run_processes(os.getpid(), os.getppid())
            assert sensor.state().other_processes == 1
            fake_nvml.gpus[0].run_processes(4_000_000)  # a number of another namespace
            assert sensor.state().other_processes is None
            sensor.close()
    finally:
        child.kill()
        child.wait()


def test_a_gpu_lost_in_the_window_gives_no_joules_but_a_reason(fake_nvml: FakeNvml) -> None:
    with fake_nvml.in_process(), SampledMeter(NvmlSensor("0")) as meter:
        with meter.window() as window:
            started = time.monotonic()
            time.sleep(0.3)
            fake_nvml.gpus[0].lose()
            time.sleep(0.75)
            ended = time.monotonic()
        reading = window.reading(started, ended)
    assert reading.joules is None
    assert reading.watts is None
    assert "GPU is lost" in (reading.reason or "")


def test_a_counter_that_freezes_or_resets_gives_no_joules(fake_nvml: FakeNvml) -> None:
    gpu = fake_nvml.gpus[0]
    with fake_nvml.in_process(), SampledMeter(NvmlSensor("0")) as meter:
        for spoil, words in ((gpu.freeze_energy, "stood still"), (gpu.reset_energy, "reset")):
            gpu.heal()
            time.sleep(0.1)
            with meter.window() as window:
                started = time.monotonic()
                if words == "reset":
                    time.sleep(0.3)
                spoil()
                time.sleep(0.4)
                ended = time.monotonic()
            reading = window.reading(started + 0.1, ended)
            assert reading.joules is None
            assert words in (reading.reason or "")


def test_several_gpus_are_summed_unless_one_is_named(make_fake_nvml: MakeNvml) -> None:
    nvml = make_fake_nvml(RTX_4090, H200)
    for gpu in nvml.gpus:
        gpu.load(memory=1.0)
    with nvml.in_process():
        both = gpu_sensor(None)
        assert isinstance(both, SumSensor)
        with SampledMeter(both) as meter:
            with meter.window() as window:
                started = time.monotonic()
                time.sleep(0.6)
                ended = time.monotonic()
            reading = window.reading(started, ended)
        one = gpu_sensor(nvml.gpus[1].uuid)
        one.open()
        assert one.source.device == nvml.gpus[1].uuid
        one.close()
    assert reading.watts == pytest.approx(18 + 120 + 75 + 190, rel=0.1)
    assert "the sum of 2 devices" in (reading.source.note or "")
    assert reading.enforced_limit_watts == 450 + 700


def test_a_sum_of_different_scopes_is_refused(fake_nvml: FakeNvml) -> None:
    from fake_plugs import FakePlug, serving

    with serving(FakePlug("shelly", 50.0)) as plug, fake_nvml.in_process():
        mixed = SumSensor([NvmlSensor("0"), PlugSensor(PlugSettings("shelly", plug.url))])
        with pytest.raises(ConfigError, match="different scopes"):
            mixed.open()


@pytest.mark.parametrize("form", ["uuid", "index", "pci"])
def test_finds_a_gpu_by_uuid_index_or_pci_address(form: str, make_fake_nvml: MakeNvml) -> None:
    nvml = make_fake_nvml(RTX_4090, H200)
    device = {"uuid": nvml.gpus[1].uuid, "index": "1", "pci": "00000000:02:00.0"}[form]
    with nvml.in_process():
        sensor = NvmlSensor(device)
        sensor.open()
        assert sensor.source.device == nvml.gpus[1].uuid
        sensor.close()


def test_respects_what_cuda_may_see(make_fake_nvml: MakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = make_fake_nvml(RTX_4090, H200)
    uuids = [gpu.uuid for gpu in nvml.gpus]
    with nvml.in_process():
        # Without PCI_BUS_ID CUDA counts unlike GPUs fastest first, so an index may mean the other card.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        with pytest.raises(SensorMissingError, match="name them by UUID"):
            visible_devices()
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        # CUDA stops at the first entry that names no device: the 1 after the 9 is not seen.
        for value, expected in (
            ("1", uuids[1:]),
            (uuids[0], uuids[:1]),
            ("0,1", uuids),
            ("0,9,1", uuids[:1]),
            ("MIG-1234", ["MIG-1234"]),
        ):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
            assert visible_devices() == tuple(expected)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        with pytest.raises(SensorMissingError, match="hides every GPU"):
            visible_devices()


@pytest.mark.parametrize(("model", "words"), [(H100_MIG, "MIG"), (LAPTOP_4060, "shares its power budget")])
def test_says_what_mig_and_laptops_mean(model: object, words: str, make_fake_nvml: MakeNvml) -> None:
    with make_fake_nvml(model).in_process():
        sensor = NvmlSensor("0")
        sensor.open()
        assert words in (sensor.source.note or "")
        sensor.close()


def test_a_failed_reading_names_nvmls_words(fake_nvml: FakeNvml) -> None:
    with fake_nvml.in_process():
        sensor = NvmlSensor("0")
        sensor.open()
        fake_nvml.gpus[0].fail(COUNTER, code=GPU_IS_LOST)
        with pytest.raises(ReadingFailed, match="NVML says GPU is lost"):
            sensor.read()
        sensor.close()


def test_the_loader_finds_it_in_a_process_of_its_own(fake_nvml: FakeNvml) -> None:
    program = (
        "from sweeper.meter.sensors.nvml import gpu_sensor\n"
        "sensor = gpu_sensor(None); sensor.open(); sample = sensor.read()\n"
        "print(sensor.source.device, sample.energy_joules is not None); sensor.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | fake_nvml.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [fake_nvml.gpus[0].uuid, "True"], done.stderr
