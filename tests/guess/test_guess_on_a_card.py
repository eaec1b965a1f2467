"""Guesses for layers on a card, from a data sheet's bandwidth; no test machine has a card."""

from dataclasses import replace
from pathlib import Path

import pytest
from nano_models import NANO

from sweeper.guess.fit import most_layers_that_fit
from sweeper.guess.gpu import HIGH_SHARE, LOW_SHARE
from sweeper.guess.run import Here, computed_speed, guess_models
from sweeper.guess.traffic import ceiling_tokens_per_second, kernels_wanted, traffic
from sweeper.model.forecast import HOST, KernelSpeeds, MemoryForecast
from sweeper.model.header import read_header
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic_header
from sweeper.records import Configuration, GpuRecord, MachineRecord

CARD = GpuRecord("a card", "GPU-1", "580", memory_mib=8192, power_limit_watts=200.0)
MACHINE = MachineRecord(
    "f" * 12, "a CPU", 4, 8, 16_000, "Linux", (CARD,), memory_bandwidth_gb_per_second=20.0
)
LARGE = ModelShape(32, 4096, 11008, 32, 32)


def here_with(gb_per_second):
    here = Here(Path("no sweeps"), MACHINE, None, gpu_offload=True)
    here.card_gb_per_second = gb_per_second
    return here


def header_of(shape, tmp_path):
    return read_header(write_synthetic_header(shape, tmp_path / "x.gguf", "Q4_K_M", "x"))


def test_the_range_lies_below_the_data_sheet(tmp_path):
    header = header_of(LARGE, tmp_path)
    work, whole = traffic(header), Configuration(n_gpu_layers=33, n_threads=4)
    found = computed_speed(here_with(900.0), work, header, whole, 0)
    ceiling = ceiling_tokens_per_second(work, 0, whole, 900.0)
    assert found is not None
    assert 0.5 * LOW_SHARE * ceiling < found.low < LOW_SHARE * ceiling
    assert 0.9 * HIGH_SHARE * ceiling < found.high < HIGH_SHARE * ceiling
    assert "data sheet" in found.reason


def test_layers_left_on_the_host_slow_a_model_down(tmp_path):
    header = header_of(LARGE, tmp_path)
    work = traffic(header)
    speeds = [
        computed_speed(here_with(900.0), work, header, Configuration(n_gpu_layers=layers), 0)
        for layers in (33, 24, 12, 0)
    ]
    expected = [speed.expected for speed in speeds if speed is not None]
    assert len(expected) == 4
    assert expected == sorted(expected, reverse=True)


def test_a_card_without_a_data_sheet_has_no_speed(tmp_path):
    header = header_of(NANO, tmp_path)
    work = traffic(header)
    assert computed_speed(here_with(None), work, header, Configuration(n_gpu_layers=3), 0) is None
    host = computed_speed(here_with(None), work, header, Configuration(n_gpu_layers=0), 0)
    assert host is not None


class CardOf:
    """Plans as llama.cpp would on a card with so much memory: each layer takes 100 MiB there."""

    def __init__(self, free_mib):
        self.free_mib = free_mib

    def forecast(self, path, configuration):
        layers = configuration.n_gpu_layers
        return MemoryForecast(
            weights_mib={HOST: 100.0 * (33 - layers), "CUDA0": 100.0 * layers},
            kv_mib={},
            compute_mib={},
            free_mib={HOST: 1e6, "CUDA0": self.free_mib},
        )


@pytest.mark.parametrize(("free_mib", "layers"), [(1700.0, 11), (4000.0, 32), (650.0, 0)])
def test_the_most_layers_that_fit(free_mib, layers, tmp_path):
    header = header_of(LARGE, tmp_path)
    whole = Configuration(n_gpu_layers=33)
    found = most_layers_that_fit(header, traffic(header), whole, CardOf(free_mib))
    assert found is not None
    configuration, fit = found
    assert configuration == replace(whole, n_gpu_layers=layers)
    assert fit.fits


@pytest.mark.parametrize(
    ("threads", "share", "widest"), [(1, 0.0, 1.25), (4, 0.0, 1.25), (1, 0.9, 1.25 * 1.5), (4, 0.9, 1.25 * 4)]
)
def test_other_programs_widen_the_range_upwards(threads, share, widest, tmp_path):
    header = header_of(NANO, tmp_path)
    work, wanted = traffic(header), Configuration(n_threads=threads)
    here = here_with(None)
    here.others_share = share
    kernels = tuple(1e9 for _ in kernels_wanted(work))
    here.speeds = lambda *_: KernelSpeeds(kernels, 1e-6, 1e9)
    found = computed_speed(here, work, header, wanted, 0)
    assert found is not None
    assert found.high / found.expected == pytest.approx(widest)
    assert found.low / found.expected == pytest.approx(0.75)


@pytest.mark.parametrize(("threads", "share", "bandwidth"), [(4, 0.0, 20.0), (1, 0.9, 30.0), (4, 0.9, 30.0)])
@pytest.mark.parametrize("kernel", [19e9, 1e12])
def test_the_range_of_a_large_model_ends_at_the_ceiling(threads, share, bandwidth, kernel, tmp_path):
    header = header_of(LARGE, tmp_path)
    work, wanted = traffic(header), Configuration(n_threads=threads)
    here = here_with(None)
    here.others_share = share
    kernels = tuple(kernel for _ in kernels_wanted(work))
    here.speeds = lambda *_: KernelSpeeds(kernels, 1e-9, 1e12)
    found = computed_speed(here, work, header, wanted, 0)
    assert found is not None
    assert found.high == pytest.approx(ceiling_tokens_per_second(work, 0, wanted, bandwidth))
    assert found.low <= found.expected <= found.high


def test_this_machine_takes_the_depth_of_the_workload(smallest_model, tmp_path):
    words = ("space.n_threads=1", "space.n_threads_batch=1", "workload=code")
    (found,) = guess_models([str(smallest_model)], words, tmp_path)
    assert found.depth == 8192 - 1024 - 256
    assert found.configuration.n_ctx == 8192
