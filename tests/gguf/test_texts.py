"""The texts that quality is measured on: the bundled ones are long and varied; the user's are checked early."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from sweeper.errors import ConfigError, ModelMissingError
from sweeper.model.texts import BUNDLED, LEAST_BYTES, MOST_BYTES, Texts, interleaved, texts_of

REPOSITORY = Path(__file__).resolve().parents[2]
ENOUGH = "Seven ferries cross the sound. " * (1 + LEAST_BYTES // 30)


def test_the_bundled_texts_are_long_and_of_several_kinds() -> None:
    sizes = {path.stem: path.stat().st_size for path in BUNDLED}
    assert set(sizes) == {"prose", "code", "dialogue"}
    assert sum(sizes.values()) >= 64 * 1024
    assert all(0.28 < size / sum(sizes.values()) < 0.39 for size in sizes.values())
    for path in BUNDLED:
        letters = path.read_text(encoding="utf-8")
        assert 0 < sum(not letter.isascii() for letter in letters) < 0.01 * len(letters), path


def test_no_long_line_of_the_bundled_texts_stands_twice() -> None:
    lines = [line.strip() for path in BUNDLED for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line, times in Counter(lines).items() if times > 1 and len(line) >= 40] == []


def test_the_bundled_texts_do_not_repeat_themselves() -> None:
    for path in BUNDLED:
        data = path.read_bytes()
        # Novels and programs shrink to 40 or 45 %. A text from templates shrinks to a fraction of that.
        assert len(zlib.compress(data, 9)) > 0.38 * len(data), path


def test_the_wheel_has_the_texts_and_their_notice() -> None:
    shipped = {file.distribution_path for file in WheelBuilder(str(REPOSITORY)).recurse_included_files()}
    notice = BUNDLED[0].with_name("NOTICE")
    assert {str(path.relative_to(REPOSITORY)) for path in (*BUNDLED, notice)} <= shipped
    assert "CC0" in notice.read_text(encoding="utf-8")
    assert all("CC0" not in path.read_text(encoding="utf-8") for path in BUNDLED)  # outside the measured text


def test_any_beginning_of_the_mixed_text_holds_every_kind() -> None:
    mixed, whole = Texts().mixed(), "".join(Texts().read())
    assert sorted(mixed) == sorted(whole)
    beginning = mixed[:8192]
    for path in BUNDLED:
        assert path.read_text(encoding="utf-8")[:1000] in beginning


def test_parts_take_turns_until_each_ends() -> None:
    assert interleaved([[1, 2, 3], [10], [100, 200]]) == [1, 10, 100, 2, 200, 3]
    assert interleaved([]) == []


def test_the_users_own_texts_are_named_and_told_apart(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text(ENOUGH)
    b.write_text(ENOUGH + "!")
    one, both = texts_of(str(a)), texts_of([str(a), str(b)])
    assert (one.name, both.name, texts_of(None).name) == (
        "a.txt",
        "a.txt and b.txt",
        "prose, code and dialogue",
    )
    assert len({one.sha256(), both.sha256(), texts_of(str(b)).sha256(), Texts().sha256()}) == 4
    b.write_text(ENOUGH)
    assert texts_of(str(b)).sha256() == one.sha256()  # names do not count


@pytest.mark.parametrize("value", [5, [], ["a.txt", 5], {"a": "b"}, [""]])
def test_a_value_that_names_no_files_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^model\.text: .* is neither a file nor a list of files"):
        texts_of(value)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (None, ModelMissingError, "no such file"),
        (b"short", ConfigError, "has 5 bytes: give at least 4,096 bytes"),
        (b"\xff\xfe" + b"a" * 9000, ConfigError, r"is not UTF-8 text \(byte 0\)"),
        (b"a" * 9000 + b"\xe6", ConfigError, r"is not UTF-8 text \(byte 9,000\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, data: bytes | None, error: type[Exception], says: str
) -> None:
    path = tmp_path / "own.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(error, match=f"(?i)^model.text: .*{says}") as raised:
        texts_of(str(path)).read()
    assert "\n" not in str(raised.value)


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match=r"(?i)is a directory"):
        texts_of(str(tmp_path)).read()


def test_the_beginning_of_a_long_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(
        b"\xef\xbb\xbf" + b"a" * (MOST_BYTES - 5) + "日本".encode()
    )  # the limit cuts a letter in two
    assert texts_of(str(path)).read() == ["a" * (MOST_BYTES - 5)]
