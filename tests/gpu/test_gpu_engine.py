"""The engine's worker on a build that offloads: its memory on cards, and how it runs out of it.

The build is a stand-in (gpu_build/llama_cpp): worker, protocol and reading of the log are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.errors import OutOfMemory
from sweeper.records import Configuration

BUILD = Path(__file__).resolve().parent / "gpu_build"
ALL = 3  # two layers and the output
GOOD = Configuration(n_gpu_layers=ALL, n_ctx=512, n_batch=64, n_ubatch=64)

MakeEngine = Callable[..., LlamaCppEngine]


@pytest.fixture
def on_gpus(smallest_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEngine]:
    monkeypatch.setenv("PYTHONPATH", str(BUILD), prepend=":")
    with ExitStack() as held:

        def make(gpus: int = 1, mib: float = 100.0) -> LlamaCppEngine:
            environment = {"STAND_IN_GPUS": str(gpus), "STAND_IN_GPU_MIB": str(mib)}
            return held.enter_context(LlamaCppEngine({None: smallest_model}, environment))

        yield make


def _works(engine: LlamaCppEngine) -> None:
    assert engine.load(GOOD).reloaded, "the next load starts afresh"
    assert engine.decode(4, 0, 0.01, 1.0).tokens >= 4


def test_the_build_says_that_it_offloads(on_gpus: MakeEngine) -> None:
    assert on_gpus().record.gpu_offload
    assert not on_gpus(gpus=0).record.gpu_offload  # built for a card that is not there


def test_memory_of_the_card_is_read_and_follows_the_layers(on_gpus: MakeEngine, smallest_model: Path) -> None:
    engine = on_gpus()
    size = smallest_model.stat().st_size / 2**20
    found = [engine.load(GOOD.with_(n_gpu_layers=n)).vram_mib for n in (0, 1, ALL, -1)]
    cache = 0.01 * 512
    assert found[0] == pytest.approx(0.0, abs=0.01)
    assert found[1] == pytest.approx((size + cache) / 3, rel=0.02)
    assert found[2] == pytest.approx(size + cache, rel=0.02)
    assert found[3] == found[2], "a negative number means all layers"


def test_memory_of_several_cards_is_summed(on_gpus: MakeEngine) -> None:
    one, two = (on_gpus(gpus=n).load(GOOD).vram_mib for n in (1, 2))
    assert one is not None
    assert two == pytest.approx(one, rel=0.01)


def test_the_cache_on_the_host_takes_nothing_of_the_card(on_gpus: MakeEngine) -> None:
    engine = on_gpus()
    beside = engine.load(GOOD.with_(n_ctx=2048, offload_kqv=False))
    on_card = engine.load(GOOD.with_(n_ctx=2048))
    assert beside.vram_mib is not None
    assert on_card.vram_mib is not None
    assert on_card.vram_mib - beside.vram_mib == pytest.approx(0.01 * 2048, rel=0.02)


@pytest.mark.parametrize("key", ["n_gpu_layers", "split_mode", "main_gpu"])
def test_what_moves_weights_loads_the_model_anew(on_gpus: MakeEngine, key: str) -> None:
    engine = on_gpus(gpus=2)
    engine.load(GOOD)
    pid = engine.worker_pid
    other = {"n_gpu_layers": 1, "split_mode": "none", "main_gpu": 1}[key]
    assert engine.load(GOOD.with_(**{key: other})).reloaded
    assert engine.worker_pid != pid  # a fresh process, so that its peak is this model's


@pytest.mark.parametrize(
    ("mib", "changes"),
    [(1.0, {}), (100.0, {"n_ctx": 100_096})],
    ids=["weights", "cache"],
)
def test_a_load_that_does_not_fit_the_card_is_out_of_memory(
    on_gpus: MakeEngine, mib: float, changes: dict[str, int]
) -> None:
    engine = on_gpus(mib=mib)
    with pytest.raises(OutOfMemory) as failure:
        engine.load(GOOD.with_(**changes))
    assert failure.value.state == "out_of_memory"
    assert any("cudaMalloc failed: out of memory" in line for line in failure.value.log_tail)
    assert engine.worker_pid is None, "what a refused worker still holds is unknown"
    if mib > 1:
        _works(engine)
    else:
        assert engine.load(GOOD.with_(n_gpu_layers=0)).vram_mib == pytest.approx(0.0, abs=0.01)


def test_an_abort_for_want_of_memory_while_it_runs_is_out_of_memory(on_gpus: MakeEngine) -> None:
    engine = on_gpus(mib=20.0)
    engine.load(GOOD.with_(n_ctx=1024, n_batch=512, n_ubatch=512))
    with pytest.raises(OutOfMemory, match="CUDA error: out of memory"):
        engine.prefill(512, 0, 0.01, 1.0)
    _works(engine)
