"""How much text quality is measured on, and in what time; the user's own text is checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.config import compose
from sweeper.errors import ConfigError, ModelMissingError

TEXT = "A letter to nobody, which is why it is so long. " * 100


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ([], 600),
        (["minutes=30"], 300),
        (["minutes=600"], 600),
        (["search.minutes=3"], 30),
        (["minutes=12", "search.minutes=3"], 30),
        (["minutes=12", "model.quality_minutes=5"], 300),
        (["model.quality_minutes=90s"], 90),
    ],
)
def test_quality_takes_a_share_of_the_time(words: list[str], seconds: float) -> None:
    assert compose(words).settings.quality_seconds() == pytest.approx(seconds)


def test_the_defaults_are_documented() -> None:
    model = compose().settings.model
    assert (model.quality_tokens, model.quality_minutes, model.text) == (4096, None, None)
    assert compose(["model.quality_tokens=16k"]).settings.model.quality_tokens == 16384


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("model.quality_tokens=256", r"model\.quality_tokens: 256 is below the lowest allowed value, 512"),
        ("model.quality_tokens=many", r"model\.quality_tokens: 'many' is not a whole number"),
        ("model.quality_minutes=0", r"model\.quality_minutes: 0 is below"),
        ("model.text=[]", r"model\.text: \[\] is neither a file nor a list of files"),
        ("model.text={a: b}", r"model\.text: "),
    ],
)
def test_a_wrong_value_names_its_key(word: str, says: str) -> None:
    with pytest.raises((ConfigError, ModelMissingError), match=says):
        compose([word])


def test_own_texts_are_one_file_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a b.txt", "c,d.txt"):
        (tmp_path / name).write_text(TEXT)
    text = compose(["model.text=~/a b.txt"]).settings.model.text
    assert text == f"{tmp_path}/a b.txt"
    both = compose([f"model.text=['~/a b.txt','{tmp_path}/c,d.txt']"]).settings.model.text
    assert both == [f"{tmp_path}/a b.txt", f"{tmp_path}/c,d.txt"]


def test_a_text_that_cannot_be_used_ends_the_command(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("not much to read")
    with pytest.raises(ConfigError, match=r"model\.text: short\.txt has 16 bytes: give at least 4,096 bytes"):
        compose([f"model.text={short}"])
    with pytest.raises(ModelMissingError, match=r"model\.text: cannot read .*gone\.txt"):
        compose([f"model.text={tmp_path}/gone.txt"])
