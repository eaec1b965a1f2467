"""`sweeper guess` as its user runs it, with real llama.cpp and a hub on loopback."""

import json

import gguf_bytes as raw
import pytest
from hub_server import COMMIT, Hub, hub_serving

from sweeper.errors import ConfigError, ModelFileError, ModelMissingError
from sweeper.guess.locate import locate, shapes
from sweeper.guess.run import guess_models
from sweeper.model.header import read_header
from sweeper.model.remote_header import copy_header, copy_url

ONE_THREAD = ("space.n_threads=1", "space.n_threads_batch=1")


@pytest.fixture
def hub(smallest_model):
    with hub_serving(Hub("owner/model", {"small-F16.gguf": smallest_model.read_bytes()})) as serving:
        yield serving


def test_a_shape_that_is_not_on_the_disk(sweeper, tmp_path):
    done = sweeper("guess", "tinyllama_1b", *ONE_THREAD)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fits     yes, needs" in done.stdout
    assert "computed by llama.cpp's own memory plan" in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: sweeper sweep model=tinyllama_1b {' '.join(ONE_THREAD)}"
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_a_model_beyond_memory_does_not_fit_and_that_is_no_error(sweeper):
    huge = "model.shape={n_layer: 200, embedding_length: 32768, feed_forward_length: 131072, head_count: 32, "
    done = sweeper("guess", f"{huge}head_count_kv: 32, vocab_size: 512}}", "model.quant=Q4_0", *ONE_THREAD)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fits     no: weights" in done.stdout
    assert "decode   unknown" in done.stdout


def test_several_models_give_a_table_and_json(sweeper, smallest_model):
    words = ("tiny_moe", str(smallest_model), *ONE_THREAD)
    done = sweeper("guess", *words)
    assert done.returncode == 0, done.stderr
    head, moe, file = done.stdout.splitlines()[:3]
    assert head.split()[:4] == ["model", "quant", "size", "fits"]
    assert (moe.split()[0], file.split()[0]) == ("tiny_moe", "smallest")
    assert "a token uses 2 of 8 experts" in done.stdout
    assert done.stdout.count("memory bandwidth of the host") == 1  # measured once, said once
    assert "smallest: a model this small" not in done.stdout  # said once for both
    data = json.loads(sweeper("guess", *words, "--json").stdout)["guesses"]
    assert [each["fit"]["fits"] for each in data] == [True, True]
    assert {each["tokens_per_second"]["label"] for each in data} == {"computed"}
    assert {each["watts"]["label"] for each in data} == {"estimated"}
    for each in data:
        span = each["tokens_per_second"]
        assert 0 < span["low"] < span["expected"] < span["high"]
        assert each["tokens_per_second_at_depth"]["expected"] < span["expected"]
    assert data[1]["command"].startswith(f"sweeper sweep model.path={smallest_model}")


@pytest.mark.parametrize(
    ("word", "code", "words"),
    [
        ("tinylama_1b", 2, "did you mean tinyllama_1b"),
        ("zzzz", 2, "the names are: codellama_34b"),
        ("missing.gguf", 3, "no model at missing.gguf"),
        ("model.quant=Q9", 2, "model.quant=Q9"),
        ("modle.quant=Q8_0", 2, "no such key"),
    ],
)
def test_wrong_words_are_one_line(sweeper, word, code, words):
    done = sweeper("guess", word)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_model(sweeper, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"no model at all")
    done = sweeper("guess", "x.gguf")
    assert (done.returncode, "not a GGUF" in done.stderr) == (2, True)


def test_the_hub_sends_the_header_and_not_the_weights(sweeper_process, hub, smallest_model):
    done = sweeper_process("guess", "owner/model/small-F16.gguf", *ONE_THREAD, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small-F16: llama")
    assert "model=hub model.repo=owner/model model.file=small-F16.gguf" in done.stdout
    assert hub.sent_bytes <= 1 << 20 < smallest_model.stat().st_size
    missing = sweeper_process("guess", "owner/model/other.gguf", HF_ENDPOINT=hub.endpoint)
    assert (missing.returncode, "404" in missing.stderr) == (3, True)
    unknown = sweeper_process("guess", "owner/other/x.gguf", HF_ENDPOINT=hub.endpoint)
    assert (unknown.returncode, "no repository owner/other" in unknown.stderr) == (3, True)


def test_a_url_gives_the_commands_that_fetch_and_sweep(sweeper, hub):
    url = f"{hub.endpoint}/owner/model/resolve/{COMMIT}/small-F16.gguf"
    done = sweeper("guess", url, *ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert f"curl -LO {url} && sweeper sweep model.path=small-F16.gguf" in done.stdout


def test_the_sparse_file_is_the_model_without_its_weights(hub, smallest_model, tmp_path):
    url = f"{hub.endpoint}/owner/model/resolve/{COMMIT}/small-F16.gguf"
    path = copy_url(url, tmp_path)
    real, sparse = read_header(smallest_model), read_header(path)
    assert (sparse.tensors, sparse.size_bytes) == (real.tensors, real.size_bytes)
    assert path.stat().st_blocks * 512 < real.size_bytes / 10


def test_the_parts_of_a_split_model(hub, tmp_path):
    for part in (1, 2):
        keys = [*raw.LLAMA, raw.number("split.count", 2)]
        tensors = (raw.tensor(f"t{part}", (8,)),)
        hub.files[f"big-{part:05d}-of-00002.gguf"] = raw.whole(keys, tensors, bytes(32))
    path = copy_url(
        f"{hub.endpoint}/owner/model/blob/{COMMIT}/big-00001-of-00002.gguf?download=true", tmp_path
    )
    header = read_header(path)
    assert [tensor.name for tensor in header.tensors] == ["t1", "t2"]
    assert header.size_bytes == sum(len(hub.files[name]) for name in hub.files if name.startswith("big"))


def test_an_address_of_no_model(hub, tmp_path):
    with pytest.raises(ConfigError, match=r"give the address of a \.gguf file"):
        copy_url(f"{hub.endpoint}/owner/model/", tmp_path)


def test_a_server_without_ranges_sends_no_whole_model(hub, tmp_path):
    hub.ranges = False
    url = f"{hub.endpoint}/owner/model/resolve/{COMMIT}/small-F16.gguf"
    with pytest.raises(ModelMissingError, match="cannot send a part of a file"):
        copy_header(url, tmp_path / "x.gguf")


def test_a_remote_file_that_is_no_model(hub, tmp_path):
    hub.files["x.gguf"] = b"something else"
    with pytest.raises(ModelFileError, match="not a GGUF"):
        copy_header(f"{hub.endpoint}/owner/model/resolve/{COMMIT}/x.gguf", tmp_path / "x.gguf")


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(ModelMissingError, match="cannot read http"):
        copy_header("http://127.0.0.1:9/x.gguf", tmp_path / "x.gguf")


@pytest.mark.parametrize("name", shapes())
def test_every_shape_of_the_catalogue_has_a_header(name, tmp_path):
    found = locate(name, (), tmp_path)
    assert found.command == f"sweeper sweep model={name}"
    assert found.header.n_layer > 0


def test_without_llama_cpp_only_the_range_is_wider(monkeypatch, smallest_model, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (found,) = guess_models([str(smallest_model)], ONE_THREAD, tmp_path)
    assert "llama-cpp-python is not installed" in found.fit.label
    assert found.tokens_per_second is not None
    assert "memory bandwidth alone" in found.tokens_per_second.reason
    assert found.tokens_per_second.high == pytest.approx(5 * found.tokens_per_second.low, rel=0.3)


def test_a_simulated_sweep_says_no_guess(sweeper):
    done = sweeper("sweep", "experiment=demo", "search.trials=2", "search.finalists=1")
    assert done.returncode == 0, done.stderr
    assert "no figure here was measured" not in done.stderr
