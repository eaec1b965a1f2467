import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from hub_server import COMMIT, Hub, hub_serving
from nano_models import NANO

from sweeper.errors import ConfigError, ModelMissingError
from sweeper.model.obtain import ModelConfig, obtain

SHAPE = asdict(NANO)


def test_a_shape_is_written_once(tmp_path):
    wanted = ModelConfig(name="nano", shape=SHAPE, seed=3)
    first = obtain(wanted, tmp_path)
    assert (first.source, first.name, first.base_quant) == ("synthetic", "nano", "F16")
    assert first.parameters == NANO.parameters
    stamp = os.stat(first.file(None).path).st_mtime_ns
    assert obtain(wanted, tmp_path) == first
    assert os.stat(first.file(None).path).st_mtime_ns == stamp


@pytest.mark.parametrize("change", [{"seed": 4}, {"quant": "Q8_0"}, {"shape": SHAPE | {"n_layer": 1}}])
def test_another_shape_seed_or_quant_is_another_file(tmp_path, change):
    wanted = ModelConfig(name="nano", shape=SHAPE, seed=3)
    assert obtain(wanted, tmp_path).file(None) != obtain(replace(wanted, **change), tmp_path).file(None)


def test_a_path_goes_before_repository_and_shape(tmp_path, nano):
    found = obtain(ModelConfig(name="x", path=str(nano), repo="o/m", file="f.gguf", shape=SHAPE), tmp_path)
    assert (found.file(None).path, found.source, found.name) == (str(nano), "file", "nano")
    assert found.file("F16").sha256
    assert not (tmp_path / "models").exists()


def test_a_repository_goes_before_a_shape_and_the_hubs_variables_are_heard(tmp_path, nano):
    code = (
        "import json, sys; from pathlib import Path; from sweeper.model.obtain import ModelConfig, obtain\n"
        "shape = json.loads(sys.argv[2])\n"
        "wanted = ModelConfig(repo='owner/model', file='nano.gguf', revision='v1', shape=shape)\n"
        "record = obtain(wanted, Path(sys.argv[1]))\n"
        "print(record.source, record.repo, record.revision, record.file('F16').path)"
    )
    with hub_serving(Hub("owner/model", {"nano.gguf": nano.read_bytes()})) as hub:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), json.dumps(SHAPE)],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    source, repo, revision, path = done.stdout.split(maxsplit=3)
    assert (source, repo, revision) == ("hub", "owner/model", COMMIT)
    assert path.startswith(str(tmp_path / "home"))


def test_further_files_must_be_of_the_same_model(tmp_path, nano, nano_q4, nano_moe):
    found = obtain(ModelConfig(path=str(nano), files={"Q4_K_M": str(nano_q4)}), tmp_path)
    assert set(found.files) == {"F16", "Q4_K_M"}
    other = obtain(ModelConfig(shape=SHAPE | {"n_layer": 1}, name="one"), tmp_path).file(None).path
    with pytest.raises(ConfigError, match=r"model\.files\.Q8_0: .* is a different model"):
        obtain(ModelConfig(path=str(nano), files={"Q8_0": other}), tmp_path)


def test_nothing_asked_for_and_wrong_words(tmp_path):
    with pytest.raises(ConfigError, match=r"give model\.path=FILE"):
        obtain(ModelConfig(), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.shape: .*n_layers"):
        obtain(ModelConfig(shape=SHAPE | {"n_layers": 2}), tmp_path)
    with pytest.raises(ModelMissingError):
        obtain(ModelConfig(path=str(tmp_path / "no.gguf")), tmp_path)
