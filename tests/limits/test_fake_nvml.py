"""The fake driver, through the real pynvml: it must obey physics, or tests against it prove nothing."""

import ctypes
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pynvml
import pytest
from fake_nvml import (
    CONTROL_VARIABLE,
    GPU_IS_LOST,
    H100_MIG,
    H200,
    LAPTOP_4060,
    NO_PERMISSION,
    RTX_3060,
    RTX_4090,
    STATE_VARIABLE,
    FakeNvml,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def opened(make_fake_nvml: Callable[..., FakeNvml]) -> Iterator[Callable[..., FakeNvml]]:
    """A fake driver under this process's pynvml, on a manual clock."""
    entered = []

    def open_(*models: object, manual_clock: bool = True) -> FakeNvml:
        nvml = make_fake_nvml(*models, manual_clock=manual_clock)
        context = nvml.in_process()
        context.__enter__()
        entered.append(context)
        pynvml.nvmlInit()
        return nvml

    yield open_
    for context in entered:
        context.__exit__(None, None, None)


def handle(index: int = 0) -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def test_identity_and_ranges(opened: Callable[..., FakeNvml]) -> None:
    opened(RTX_4090, RTX_3060)
    assert pynvml.nvmlDeviceGetCount() == 2
    first, second = handle(0), handle(1)
    assert pynvml.nvmlDeviceGetName(second) == "NVIDIA GeForce RTX 3060"
    uuid = pynvml.nvmlDeviceGetUUID(second)
    again = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    assert ctypes.addressof(again.contents) == ctypes.addressof(second.contents)
    pci = pynvml.nvmlDeviceGetPciInfo(first)
    assert (pci.busId, pci.bus) == ("00000000:01:00.0", 1)
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(first) == [150_000, 600_000]
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(first) == 450_000
    memory_clocks = pynvml.nvmlDeviceGetSupportedMemoryClocks(first)
    clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(first, memory_clocks[0])
    assert clocks[0] == 3105
    assert clocks[-1] == 210
    assert pynvml.nvmlSystemGetDriverVersion() == "580.95.05"
    assert pynvml.nvmlDeviceGetMemoryInfo(first).total == 24 << 30
    assert pynvml.nvmlDeviceGetMemoryInfo(first, version=pynvml.nvmlMemory_v2).total == 24 << 30
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-none")


def test_energy_is_the_integral_of_power(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    gpu = nvml.gpus[0]
    gpu.load(compute=0.5, memory=1.0)
    before, truth = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()), gpu.truth()
    nvml.advance(10.0)
    joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()) - before) / 1000
    assert joules == pytest.approx(10 * truth.watts, rel=0.005)
    assert gpu.truth().energy_joules - truth.energy_joules == pytest.approx(10 * truth.watts, rel=1e-6)


def test_a_cap_binds_lowers_clock_and_prefill_and_keeps_the_power(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    gpu = nvml.gpus[0]
    gpu.load(compute=1.0, memory=0.5)
    free = gpu.truth()
    pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 300_000)
    nvml.advance(1.0)
    capped = gpu.truth()
    assert capped.watts == pytest.approx(300, abs=0.1)
    assert capped.clock_mhz < free.clock_mhz
    assert capped.prefill_tokens_per_second < free.prefill_tokens_per_second
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle()) & pynvml.nvmlClocksEventReasonSwPowerCap
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle()) & 0x4


def test_decode_is_flat_above_its_knee(opened: Callable[..., FakeNvml]) -> None:
    gpu = opened().gpus[0]
    gpu.load(compute=0.5, memory=1.0)
    free = gpu.truth()
    pynvml.nvmlDeviceSetGpuLockedClocks(handle(), 210, 2200)
    locked = gpu.truth()
    assert locked.decode_tokens_per_second == free.decode_tokens_per_second
    assert locked.watts < 0.85 * free.watts
    pynvml.nvmlDeviceSetGpuLockedClocks(handle(), 210, 1200)
    assert gpu.truth().decode_tokens_per_second < 0.7 * free.decode_tokens_per_second
    pynvml.nvmlDeviceResetGpuLockedClocks(handle())
    assert gpu.locked_clocks_mhz is None
    assert pynvml.nvmlDeviceGetClockInfo(handle(), pynvml.NVML_CLOCK_SM) == 3105


def test_temperature_lags_and_heat_throttles(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    gpu = nvml.gpus[0]
    gpu.load(compute=1.0, memory=1.0)
    nvml.advance(1.0)
    early = pynvml.nvmlDeviceGetTemperature(handle(), pynvml.NVML_TEMPERATURE_GPU)
    nvml.advance(200.0)
    late = pynvml.nvmlDeviceGetTemperature(handle(), pynvml.NVML_TEMPERATURE_GPU)
    assert 30 <= early < late < 90
    gpu.put(throttle_c=60.0)
    nvml.advance(1.0)
    assert (
        pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle())
        & pynvml.nvmlClocksEventReasonSwThermalSlowdown
    )


def test_power_shows_a_new_value_once_a_period(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    gpu = nvml.gpus[0]
    gpu.update_period(power_seconds=0.5)
    nvml.advance(1.0)
    seen = []
    for step in range(200):
        gpu.load(compute=(step % 50) / 50)
        nvml.advance(0.01)
        seen.append(
            pynvml.nvmlDeviceGetFieldValues(handle(), [pynvml.NVML_FI_DEV_POWER_INSTANT])[0].value.uiVal
        )
    assert len(set(itertools.pairwise(seen))) > 2
    assert sum(a != b for a, b in itertools.pairwise(seen)) <= 4


def test_average_power_is_a_second_behind(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    gpu = nvml.gpus[0]
    nvml.advance(3.0)
    idle = pynvml.nvmlDeviceGetPowerUsage(handle()) / 1000
    gpu.load(compute=1.0)
    full = gpu.truth().watts
    nvml.advance(0.5)
    half = pynvml.nvmlDeviceGetPowerUsage(handle()) / 1000
    assert idle + 0.3 * (full - idle) < half < idle + 0.7 * (full - idle)
    nvml.advance(1.5)
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) / 1000 == pytest.approx(full, rel=0.03)


def test_module_scope_is_there_or_not_supported(opened: Callable[..., FakeNvml]) -> None:
    opened(H200, RTX_4090)
    wanted = [(pynvml.NVML_FI_DEV_POWER_INSTANT, scope) for scope in (0, 1)]
    gpu, module = pynvml.nvmlDeviceGetFieldValues(handle(0), wanted)
    assert module.value.uiVal - gpu.value.uiVal == 60_000
    gpu, module = pynvml.nvmlDeviceGetFieldValues(handle(1), wanted)
    assert (gpu.nvmlReturn, module.nvmlReturn) == (0, pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_faults(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    gpu, card = nvml.gpus[0], handle()
    gpu.deny_setting()
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceSetPowerManagementLimit(card, 300_000)
    gpu.heal()
    gpu.floor(250, "ignores")
    pynvml.nvmlDeviceSetPowerManagementLimit(card, 200_000)
    assert gpu.power_limit_watts == 450
    gpu.floor(250, "clamps")
    pynvml.nvmlDeviceSetPowerManagementLimit(card, 200_000)
    assert gpu.power_limit_watts == 250
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceSetPowerManagementLimit(card, 100_000)
    gpu.fail("nvmlDeviceGetTotalEnergyConsumption")
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    gpu.fail("nvmlDeviceGetPowerUsage", code=NO_PERMISSION)
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceGetPowerUsage(card)
    gpu.lose()
    with pytest.raises(pynvml.NVMLError) as lost:
        pynvml.nvmlDeviceGetTemperature(card, 0)
    assert lost.value.value == GPU_IS_LOST
    with pytest.raises(KeyError, match="nvmlDeviceGetPowerUsage"):
        gpu.fail("nvmlNoSuchThing")


def test_counter_stands_still_or_starts_again(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    gpu, card = nvml.gpus[0], handle()
    gpu.load(compute=1.0)
    nvml.advance(5.0)
    gpu.freeze_energy()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    nvml.advance(5.0)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(card) == before > 0
    gpu.heal()
    gpu.reset_energy()
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(card) == 0
    nvml.advance(1.0)
    assert 0 < pynvml.nvmlDeviceGetTotalEnergyConsumption(card) < before


def test_laptop_and_mig(opened: Callable[..., FakeNvml]) -> None:
    opened(LAPTOP_4060, H100_MIG)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPowerManagementLimit(handle(0))
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetMigMode(handle(0))
    assert pynvml.nvmlDeviceGetMigMode(handle(1)) == [1, 1]
    part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle(1), 1)
    assert pynvml.nvmlDeviceGetUUID(part).startswith("MIG-")
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPowerUsage(part)


def test_processes_are_listed(opened: Callable[..., FakeNvml]) -> None:
    gpu = opened().gpus[0]
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle()) == []
    before = gpu.truth().watts
    gpu.run_processes(4242, 4243)
    assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle())] == [4242, 4243]
    assert gpu.truth().watts == before + 15


def test_no_driver(opened: Callable[..., FakeNvml]) -> None:
    nvml = opened()
    pynvml.nvmlShutdown()
    nvml.unload_driver()
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


def test_another_process_sees_and_sets_the_same_gpu(make_fake_nvml: Callable[..., FakeNvml]) -> None:
    nvml = make_fake_nvml()
    program = (
        "import pynvml; pynvml.nvmlInit(); h = pynvml.nvmlDeviceGetHandleByIndex(0);"
        "pynvml.nvmlDeviceSetPowerManagementLimit(h, 222000); print(pynvml.nvmlDeviceGetName(h))"
    )
    environment = os.environ | nvml.environment()
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == RTX_4090.name
    assert nvml.gpus[0].power_limit_watts == 222
    assert {STATE_VARIABLE, CONTROL_VARIABLE} < set(nvml.environment())


def test_many_processes_at_once_lose_nothing(make_fake_nvml: Callable[..., FakeNvml]) -> None:
    nvml = make_fake_nvml()
    program = (
        "import pynvml; pynvml.nvmlInit(); h = pynvml.nvmlDeviceGetHandleByIndex(0)\n"
        "for i in range(300): pynvml.nvmlDeviceSetPowerManagementLimit(h, 200000 + i)"
    )
    environment = os.environ | nvml.environment()
    started = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]
    assert nvml.gpus[0].get("power_sets") == 1200


def test_real_time_is_the_default(make_fake_nvml: Callable[..., FakeNvml]) -> None:
    gpu = make_fake_nvml().gpus[0]
    gpu.load(compute=1.0)
    before, started = gpu.truth(), time.monotonic()
    time.sleep(0.05)
    after, seconds = gpu.truth(), time.monotonic() - started
    assert (
        0.05 * before.watts
        < after.energy_joules - before.energy_joules
        <= 1.02 * seconds * before.watts + 0.5
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.floats(0, 1),
            st.integers(150, 600),
            st.floats(0.0001, 30, allow_subnormal=False),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_energy_adds_up_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with FakeNvml.create(folder, [RTX_4090], manual_clock=True) as nvml:
        gpu = nvml.gpus[0]
        gpu.put(throttle_c=1000.0)  # constant power between changes
        expected = gpu.truth().energy_joules
        for compute, memory, cap, seconds in steps:
            gpu.load(compute, memory)
            gpu.power_limit_watts = cap
            watts = gpu.truth().watts
            assert watts <= max(cap, 18 + 120 + 15) + 1e-6
            nvml.advance(seconds)
            expected += watts * seconds
        assert gpu.truth().energy_joules == pytest.approx(expected, rel=1e-6, abs=1e-4)
        nvml.path.unlink()
