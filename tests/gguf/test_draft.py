"""Which draft model suits which model, by the rules of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_bytes as raw
import pytest
from nano_models import NANO

from sweeper.errors import ConfigError
from sweeper.model.draft import MOST_MORE_TOKENS, demand_alike, kind_of, read_draft
from sweeper.model.header import read_header
from sweeper.model.metadata import BadHeader, read_raw
from sweeper.model.obtain import ModelConfig, obtain

WORDS = [f"word{number}" for number in range(300)]


def written(
    folder: Path, name: str, words: list[str] = WORDS, tokenizer: str = "llama", **stated: Any
) -> Path:
    """A model without weights, with this vocabulary."""
    keys = [
        *raw.LLAMA,
        raw.string("tokenizer.ggml.model", tokenizer),
        raw.array("tokenizer.ggml.tokens", raw.STRING, len(words), b"".join(map(raw.text, words))),
    ]
    for key, value in stated.items():
        kind = raw.flag if isinstance(value, bool) else raw.number
        keys.append(kind(f"tokenizer.ggml.{key}", value))
    path = folder / name
    path.write_bytes(raw.whole(keys))
    return path


@pytest.mark.parametrize(
    ("model", "draft", "why"),
    [
        ({}, {}, None),
        ({}, {"words": [*WORDS, *("pad",) * MOST_MORE_TOKENS]}, None),
        ({}, {"words": ["other", *WORDS[1:]]}, None),  # the first tokens are special ones
        ({"tokenizer": "gpt2"}, {"tokenizer": "gemma4"}, None),  # llama.cpp runs both as BPE
        ({"add_bos_token": True, "bos_token_id": 1}, {}, None),  # what is not stated has llama.cpp's default
        ({"add_bos_token": False, "bos_token_id": 1}, {"add_bos_token": False, "bos_token_id": 2}, None),
        ({}, {"tokenizer": "gpt2"}, "its tokenizer is gpt2, and that of the model is llama"),
        (
            {},
            {"words": [*WORDS, *("pad",) * (MOST_MORE_TOKENS + 1)]},
            "its vocabulary has 429 tokens, and that of the model has 300",
        ),
        (
            {},
            {"words": [*WORDS[:200], "neu", *WORDS[201:]]},
            "its token 200 is 'neu', and that of the model is 'word200'",
        ),
        ({"add_bos_token": True}, {"add_bos_token": False}, "only one of them adds a BOS token to prompts"),
        (
            {"add_eos_token": True, "eos_token_id": 2},
            {"add_eos_token": True, "eos_token_id": 7},
            "its EOS token is number 7, and that of the model is 2",
        ),
    ],
)
def test_vocabularies_are_compared_as_llama_cpp_does(
    tmp_path: Path, model: dict[str, Any], draft: dict[str, Any], why: str | None
) -> None:
    headers = [read_header(written(tmp_path, name, **given)) for name, given in (("m", model), ("d", draft))]
    if why is None:
        demand_alike(headers[1], headers[0])
        return
    with pytest.raises(ConfigError) as caught:
        demand_alike(headers[1], headers[0])
    assert str(caught.value) == (
        f"model.draft: d cannot draft for m, because {why}; give a small model with the same vocabulary"
    )


def test_the_record_holds_the_draft(tmp_path: Path, nano: Path, nano_q4: Path) -> None:
    found = obtain(ModelConfig(path=str(nano), draft=str(nano_q4)), tmp_path)
    assert found.draft is not None
    assert (found.draft.spec_type, found.draft.file.path) == ("draft-simple", str(nano_q4))
    assert found.draft.file.size_bytes == nano_q4.stat().st_size
    assert obtain(ModelConfig(path=str(nano)), tmp_path).draft is None


def test_bad_drafts_are_one_line_with_exit_code_2(tmp_path: Path, nano: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no model")
    adapter = tmp_path / "lora.gguf"
    adapter.write_bytes(raw.whole([*raw.LLAMA, raw.string("general.type", "adapter")]))
    other = (
        obtain(ModelConfig(shape=vars_of(NANO) | {"vocab_size": 2048}, name="o"), tmp_path).file(None).path
    )
    for path, says in (
        (tmp_path / "none.gguf", "there is no file"),
        (text, "it is not a GGUF file"),
        (tmp_path, "is a folder"),
        (adapter, "is an adapter (LoRA)"),
        (other, "its vocabulary has 2048 tokens, and that of the model has 1024"),
    ):
        with pytest.raises(ConfigError) as caught:
            obtain(ModelConfig(path=str(nano), draft=str(path)), tmp_path)
        message = str(caught.value)
        assert message.startswith("model.draft: ")
        assert says in message
        assert "\n" not in message
        assert caught.value.exit_code == 2


def test_random_weights_take_no_draft(tmp_path: Path, nano: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.draft: this model's weights are random, .*model\.path=FILE"
    ):
        obtain(ModelConfig(shape=vars_of(NANO), name="n", draft=str(nano)), tmp_path)
    assert not (tmp_path / "models").exists()


def vars_of(shape: Any) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in type(shape).__slots__}


def test_the_kind_of_a_draft_is_in_its_tensors(tmp_path: Path) -> None:
    def model(architecture: str, *names: str, **numbers: int) -> Path:
        keys = [
            raw.string("general.architecture", architecture),
            raw.number(f"{architecture}.block_count", 2),
        ]
        keys += [raw.number(f"{architecture}.{key}", value) for key, value in numbers.items()]
        tensors = [raw.tensor(name, (1,), offset=32 * place) for place, name in enumerate(names)]
        path = tmp_path / "x.gguf"
        path.write_bytes(raw.whole(keys, tensors, bytes(32 * len(names))))
        return path

    nextn = "blk.1.nextn.eh_proj.weight"
    assert kind_of(read_draft(model("eagle3"))) == "draft-eagle3"
    assert kind_of(read_draft(model("dflash"))) == "draft-dflash"
    assert kind_of(read_draft(model("dflash", "markov_w1.weight"))) == "draft-dspark"
    assert kind_of(read_draft(model("glm4moe", nextn))) == "draft-mtp"
    assert kind_of(read_draft(model("llama", "output.weight"))) == "draft-simple"
    assert read_header(model("glm4moe", nextn, nextn_predict_layers=1)).mtp_layers == 1
    assert read_header(model("glm4moe", nextn_predict_layers=1)).mtp_layers == 0  # its tensors were left out


def test_a_vocabulary_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.model.metadata.MAX_KEPT_BYTES", 100)
    path = written(tmp_path, "m")
    with path.open("rb") as stream, pytest.raises(BadHeader, match="takes more than 100 bytes"):
        read_raw(stream, path.stat().st_size, keep=("tokenizer.ggml.tokens",))
