"""Watts, limits and the machine's record speak of the same card of two unlike ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nvml import GPU_IS_LOST, H200, NO_PERMISSION, RTX_4090, UNKNOWN, FakeNvml

from sweeper import machine
from sweeper.doctor import machine_findings
from sweeper.errors import RightMissingError, SensorMissingError
from sweeper.limits.control import find_limits
from sweeper.limits.rights import MeansSettings
from sweeper.meter.sensors.nvml import gpu_sensor, visible_devices
from sweeper.nvml import cuda_variables
from sweeper.power_settings import PowerSettings

MakeNvml = Callable[..., FakeNvml]


def _limited(folder: Path) -> tuple[set[str], list[str]]:
    (folder / "locks").mkdir(exist_ok=True)
    settings = PowerSettings(sysfs_root=str(folder))
    limits = find_limits(folder, settings, MeansSettings(means="direct"), folder / "locks")
    return {r.device for r in limits.ranges().values()}, [str(e) for e in limits.refusals().values()]


@pytest.mark.parametrize("chosen", [0, 1])
def test_the_engine_s_variables_choose_the_card_of_watts_and_limits(
    chosen: int, make_fake_nvml: MakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = make_fake_nvml(RTX_4090, H200)
    uuid = nvml.gpus[chosen].uuid
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    variables = {"CUDA_VISIBLE_DEVICES": str(chosen), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with nvml.in_process(), cuda_variables(variables):
        sensor = gpu_sensor(None)
        sensor.open()
        assert sensor.source.device == uuid
        sensor.close()
        assert _limited(tmp_path)[0] == {uuid}
        assert [gpu.uuid for gpu in machine.nvidia_gpus() if gpu.visible] == [uuid]
        assert len(machine.nvidia_gpus()) == 2  # the machine has both, whatever CUDA sees
    with nvml.in_process():
        assert all(gpu.visible for gpu in machine.nvidia_gpus())  # the variables are as before


def test_an_index_of_unlike_cards_gives_neither_watts_nor_limits(
    make_fake_nvml: MakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA may count them in another order than NVML: the wrong card's watts would rank."""
    nvml = make_fake_nvml(RTX_4090, H200)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    with nvml.in_process(), cuda_variables({"CUDA_VISIBLE_DEVICES": "0"}):
        with pytest.raises(
            SensorMissingError,
            match=f"CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID: {nvml.gpus[0].uuid}",
        ):
            gpu_sensor(None)
        ranges, refusals = _limited(tmp_path)
        assert not ranges
        assert all(
            "name them by UUID" in refusal or "different models of GPUs" in refusal for refusal in refusals
        )
        assert not any(gpu.visible for gpu in machine.nvidia_gpus())


def test_gpus_that_may_not_be_opened_are_a_missing_right_and_not_a_missing_gpu(
    make_fake_nvml: MakeNvml, tmp_path: Path
) -> None:
    nvml = make_fake_nvml(RTX_4090)
    nvml.gpus[0].fail("nvmlDeviceGetUUID", code=NO_PERMISSION)
    with nvml.in_process():
        with pytest.raises(RightMissingError, match="usermod -aG"):
            gpu_sensor(None)
        assert all("Insufficient Permissions" in refusal for refusal in _limited(tmp_path)[1])
        assert machine.nvidia_gpus() == ()


def test_a_lost_gpu_hides_no_other(make_fake_nvml: MakeNvml) -> None:
    nvml = make_fake_nvml(RTX_4090, H200)
    nvml.gpus[0].fail("nvmlDeviceGetUUID", code=GPU_IS_LOST)
    with nvml.in_process():
        assert [gpu.uuid for gpu in machine.nvidia_gpus()] == [nvml.gpus[1].uuid]


@pytest.mark.parametrize("code", [GPU_IS_LOST, NO_PERMISSION, UNKNOWN])
@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetName", "nvmlDeviceGetPciInfo_v3"]
)
def test_a_gpu_that_gives_no_answer_hides_no_other_and_the_doctor_says_so(
    call: str, code: int, make_fake_nvml: MakeNvml
) -> None:
    nvml = make_fake_nvml(RTX_4090, H200)
    nvml.gpus[1].fail(call, code=code)
    with nvml.in_process():
        assert [gpu.uuid for gpu in machine.nvidia_gpus()] == [nvml.gpus[0].uuid]
        assert visible_devices() == (nvml.gpus[0].uuid,)
        found = {finding.name: finding for finding in machine_findings()}
    assert found["gpu 0"].status == "ok"
    assert found["gpu 1"].status == ("no_right" if code == NO_PERMISSION else "unusable")
    assert found["gpu 1"].mend


@pytest.mark.parametrize(
    ("visible", "count"), [("0,-1,1", 1), ("1,9,0", 1), ("0,1", 2), ("-1,0", 0), ("1,1", 1), ("", 0)]
)
def test_cuda_stops_at_the_first_entry_that_names_no_gpu(
    visible: str, count: int, make_fake_nvml: MakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with make_fake_nvml(RTX_4090, H200).in_process():
        if count:
            assert len(visible_devices()) == count
        else:
            with pytest.raises(SensorMissingError, match="hides every GPU"):
                visible_devices()
