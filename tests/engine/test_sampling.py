"""Decode samples each token as llama-server does by default, or as the model recommends, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from sweeper.engine.llama_cpp import LlamaCppEngine
from sweeper.engine.sampling import DEFAULTS, values_of
from sweeper.engine.worker import Worker
from sweeper.parameters import CONTEXT_KEYS, MODEL_KEYS
from sweeper.records import Configuration

SMALL = Configuration(n_ctx=256, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker()


def load(worker: Worker, model: Path) -> None:
    wanted = SMALL.to_dict()
    worker.load(
        str(model), {k: wanted[k] for k in MODEL_KEYS if k != "quant"}, {k: wanted[k] for k in CONTEXT_KEYS}
    )


def with_metadata(model: Path, path: Path, **values: Any) -> Path:
    """A copy of the model that recommends ``values`` for sampling."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = [*field.types, None]
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[1])
    for name, value in values.items():
        add = {float: writer.add_float32, int: writer.add_int32, str: writer.add_string}[type(value)]
        add(f"general.sampling.{name}", value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_each_decoded_token_is_sampled_once(worker: Worker, smallest_model: Path) -> None:
    load(worker, smallest_model)
    worker.decode(4, 0, 0.0, 5.0)
    assert worker.sampler is not None
    sampled: list[int] = []
    sample = worker.sampler.sample
    worker.sampler.sample = lambda context: sampled.append(sample(context))  # type: ignore[method-assign]
    assert worker.decode(8, 16, 0.0, 5.0)["tokens"] == len(sampled) == 8
    assert worker.decode(8, 16, 0.0, 5.0, sample=False)["tokens"] == len(sampled) == 8


def test_the_chain_is_llama_servers(worker: Worker, smallest_model: Path) -> None:
    load(worker, smallest_model)
    worker.decode(1, 0, 0.0, 5.0)
    assert worker.sampler is not None
    assert worker.sampler.values == DEFAULTS
    api, chain = worker.api, worker.sampler._chain
    names = [
        api.llama_sampler_name(api.llama_sampler_chain_get(chain, i)).decode()
        for i in range(api.llama_sampler_chain_n(chain))
    ]
    # llama.cpp names an empty sampler with a question mark.
    assert names == ["?penalties", "top-k", "top-p", "min-p", "temp-ext", "dist"]


def test_a_models_own_values_count(worker: Worker, smallest_model: Path, tmp_path: Path) -> None:
    wanted = {"top_k": 20, "temp": 0.5, "penalty_repeat": 1.5}
    load(worker, with_metadata(smallest_model, tmp_path / "own.gguf", **wanted))
    assert values_of(worker.api, worker.model) == DEFAULTS | wanted
    assert worker.decode(4, 0, 0.0, 5.0)["tokens"] == 4


def test_values_that_are_no_numbers_are_left_out(
    worker: Worker, smallest_model: Path, tmp_path: Path
) -> None:
    load(
        worker,
        with_metadata(smallest_model, tmp_path / "odd.gguf", top_k="many", temp="inf", penalty_repeat=-1.0),
    )
    assert values_of(worker.api, worker.model) == DEFAULTS
    assert worker.decode(4, 0, 0.0, 5.0)["tokens"] == 4


def test_the_record_says_how_tokens_were_sampled(smallest_model: Path) -> None:
    with LlamaCppEngine({None: smallest_model}) as engine, LlamaCppEngine({None: smallest_model}) as again:
        assert engine.record.sampling
        again.measure_as(engine.record)
        assert again.record == engine.record
    with LlamaCppEngine({None: smallest_model}, sample=False) as engine:
        assert not engine.record.sampling
        engine.load(SMALL)
        assert engine.decode(4, 0, 0.0, 5.0).tokens == 4
