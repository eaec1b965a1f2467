import json
import re
import struct
import time
import tracemalloc

import gguf_bytes as raw
import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nano_models import NANO

from sweeper.errors import ModelFileError, ModelMissingError
from sweeper.model.digest import sha256_of
from sweeper.model.ggml_types import FILE_TYPES, TYPE_BY_NUMBER
from sweeper.model.header import parts_of, read_header, split_names
from sweeper.model.obtain import ModelConfig, obtain


def write(folder, content, name="bad.gguf"):
    path = folder / name
    path.write_bytes(content)
    return path


def refused(folder, content):
    """The one line with which a file is refused."""
    with pytest.raises(ModelFileError) as caught:
        read_header(write(folder, content))
    message = str(caught.value)
    assert "\n" not in message
    assert "bad.gguf" in message
    return message


def test_states_what_was_written(nano):
    header = read_header(nano)
    assert header.architecture == "llama"
    assert header.n_layer == NANO.n_layer
    assert header.n_ctx_train == NANO.n_ctx_train
    assert header.embedding_length == NANO.embedding_length
    assert header.vocab_size == NANO.vocab_size
    assert header.expert_count == 0
    assert header.file_type == "F16"
    assert header.parameters == NANO.parameters
    assert header.size_bytes == nano.stat().st_size


@pytest.mark.parametrize("name", ["nano", "nano_moe", "nano_q4"])
def test_agrees_with_the_gguf_package_on_every_tensor(name, request):
    path = request.getfixturevalue(name)
    theirs = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    ours = {tensor.name: tensor for tensor in read_header(path).tensors}
    assert ours.keys() == theirs.keys()
    for name_, tensor in ours.items():
        assert tensor.shape == tuple(int(n) for n in theirs[name_].shape)
        assert tensor.type == theirs[name_].tensor_type.name
        assert tensor.bytes == theirs[name_].n_bytes


def test_the_tables_of_types_agree_with_the_gguf_package():
    for kind, (elements, size) in GGML_QUANT_SIZES.items():
        ours = TYPE_BY_NUMBER[int(kind)]
        assert (ours.name, ours.block_elements) == (kind.name, elements)
        if kind.name != "Q8_1":  # gguf's 40 bytes are those of an older ggml, where the scales were floats
            assert ours.block_bytes == size
    theirs = {int(kind): kind.name.removeprefix("ALL_").removeprefix("MOSTLY_") for kind in LlamaFileType}
    assert {number: FILE_TYPES[number] for number in theirs if number < 1024} == {
        number: name for number, name in theirs.items() if number < 1024
    }


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(ModelMissingError, match=r"no model at .*nowhere\.gguf: give model\.path"):
        read_header(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_header(tmp_path)
    assert "is empty" in refused(tmp_path, b"")
    assert "not a GGUF" in refused(tmp_path, b"PK\x03\x04" + bytes(100))
    assert "not a GGUF" in refused(tmp_path, b"GG")
    assert "version is 1" in refused(tmp_path, raw.whole(version=1))
    assert "big-endian" in refused(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (raw.head(0, 1 << 60), "claims 1152921504606846976 keys"),
        (raw.head(1 << 60, 0), "claims 1152921504606846976 tensors"),
        (raw.head(0, 1) + struct.pack("<Q", 1 << 63) + bytes(64), "a key of"),
        (raw.head(0, 1) + raw.text("k") + struct.pack("<IQ", 8, 1 << 63) + bytes(64), "truncated"),
        (raw.head(0, 1) + raw.array("k", raw.STRING, 1 << 62, bytes(64)), "an array"),
        (raw.head(0, 1) + raw.array("k", raw.UINT64, 1 << 62, bytes(64)), "truncated"),
        (raw.head(0, 1) + raw.array("k", 77, 1, bytes(64)), "unknown type 77"),
        (raw.head(0, 1) + raw.key("k", 77, bytes(64)), "unknown type 77"),
        (raw.head(0, 1) + raw.array("k", 9, 1, struct.pack("<IQ", 9, 1) * 50), "nested"),
        (raw.whole((*raw.LLAMA, raw.number("llama.block_count", 2))), "twice"),
        (raw.whole((raw.number("llama.block_count", 2),)), "no architecture"),
        (raw.whole((raw.string("general.architecture", "llama"),)), "no layers"),
        (raw.whole((raw.string("general.architecture", "a\nb"),)), "an impossible architecture, 'a\\nb'"),
        (raw.whole((raw.string("general.architecture", "a" * 70),)), f"architecture, '{'a' * 40}' ("),
        (raw.whole((raw.LLAMA[0], raw.number("llama.block_count", 4_000_000_000))), "4000000000 layers"),
        (raw.whole(tensors=(raw.tensor("t", ()),)), "0 dimensions"),
        (raw.whole(tensors=(raw.tensor("t", (1,) * 9),)), "9 dimensions"),
        (raw.whole(tensors=(raw.tensor("t", (1 << 40, 1 << 40)),)), "impossible shape"),
        (raw.whole(tensors=(raw.tensor("t", (0,)),)), "impossible shape"),
        (raw.whole(tensors=(raw.tensor("t", (33,), kind=8),)), "not a multiple"),
        (raw.whole(tensors=(raw.tensor("t", (32,), kind=5),)), "unknown type 5"),
        (raw.whole(tensors=(raw.tensor("t", (8,)), raw.tensor("t", (8,))), data=bytes(64)), "twice"),
        (raw.whole(tensors=(raw.tensor("t", (8,)),), data=bytes(31)), "truncated"),
        (raw.whole(tensors=(raw.tensor("t", (8,), offset=1 << 63),), data=bytes(64)), "truncated"),
        (raw.whole((*raw.LLAMA, raw.number("general.alignment", 0))), "power of two"),
        (raw.whole((*raw.LLAMA, raw.number("general.alignment", 48))), "power of two"),
    ],
)
def test_what_cannot_be_true_is_refused_in_one_line(tmp_path, content, words):
    assert words in refused(tmp_path, content)


def test_the_least_header_that_is_true(tmp_path):
    header = read_header(write(tmp_path, raw.whole(tensors=(raw.tensor("t", (8,)),), data=bytes(32))))
    assert (header.n_layer, header.parameters, header.file_type) == (1, 8, "F32")


def test_absurd_counts_cost_neither_memory_nor_time(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw.head(0, 1) + raw.array("k", raw.STRING, 1 << 36))
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte of zeros, which are 2^37 empty strings
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(ModelFileError, match="claims 68719476736 elements"):
        read_header(path)
    assert time.monotonic() - began < 10  # walking them would take hours
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_or_read_but_never_more(nano_moe, tmp_path, data):
    content = bytearray(nano_moe.read_bytes())
    header_end = content.index(b"output.weight") + 40
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, header_end))] = data.draw(st.integers(0, 255))
    path = write(tmp_path, bytes(content))
    try:
        header = read_header(path)
    except ModelFileError:
        return
    assert sum(tensor.bytes for tensor in header.tensors) <= len(content)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_file_is_always_refused(nano, tmp_path, data):
    content = nano.read_bytes()
    length = data.draw(st.one_of(st.integers(0, 40_000), st.integers(0, len(content) - 1)))
    with pytest.raises(ModelFileError):
        read_header(write(tmp_path, content[:length]))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((*raw.LLAMA[:1], raw.string("general.type", "adapter")), r"is an adapter \(LoRA\): give the"),
        ((*raw.LLAMA, raw.string("general.type", "adapter")), r"is an adapter \(LoRA\): give the"),
        (
            (raw.string("general.type", "mmproj"), raw.string("general.architecture", "clip")),
            "vision or audio",
        ),
        ((raw.string("general.architecture", "clip"),), "vision or audio projector"),
        ((raw.string("general.type", "imatrix"),), "is an importance matrix"),
        ((raw.string("general.architecture", "controlvector"),), "is a control vector"),
        ((*raw.LLAMA, raw.flag("llama.attention.causal", False)), r"is an embedding model \(llama\)"),
    ],
)
def test_a_file_that_generates_no_text_is_named_for_what_it_is(tmp_path, keys, words):
    assert re.search(words, refused(tmp_path, raw.whole(keys)))


def test_a_model_may_say_that_it_is_one(tmp_path):
    keys = (*raw.LLAMA, raw.string("general.type", "model"), raw.flag("llama.attention.causal", True))
    assert read_header(write(tmp_path, raw.whole(keys))).n_layer == 1


def split(folder, parts=2, count=None):
    """A model of one tensor a part."""
    names = split_names(f"big-00001-of-{parts:05d}.gguf")
    for index, name in enumerate(names):
        keys = [*raw.LLAMA] if index == 0 else []
        keys += [raw.number("split.count", count or parts), raw.number("split.no", index)]
        tensors = (raw.tensor(f"t{index}", (8,)),)
        write(folder, raw.whole(keys, tensors, bytes(32)), name)
    return [folder / name for name in names]


def test_a_split_model_is_read_as_one(tmp_path):
    parts = split(tmp_path, 3)
    header = read_header(parts[0])
    assert [tensor.name for tensor in header.tensors] == ["t0", "t1", "t2"]
    assert header.size_bytes == sum(part.stat().st_size for part in parts)


def test_a_split_model_wants_its_first_part_and_all_others(tmp_path):
    parts = split(tmp_path, 3)
    with pytest.raises(ModelFileError, match="give the first, big-00001-of-00003"):
        read_header(parts[1])
    parts[2].unlink()
    with pytest.raises(ModelMissingError, match="big-00003-of-00003"):
        read_header(parts[0])
    with pytest.raises(ModelFileError, match="rename it"):
        read_header(parts[0].rename(tmp_path / "other.gguf"))


def test_a_split_model_in_a_cache_of_links_keeps_the_names_of_its_links(tmp_path):
    blobs, links = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    links.mkdir()
    for index, part in enumerate(split(tmp_path, 2)):
        part.rename(blobs / f"blob{index}")
        (links / part.name).symlink_to(f"../blobs/blob{index}")
    record = obtain(ModelConfig(path=str(links / "big-00001-of-00002.gguf")), tmp_path / "root")
    file = record.file(None)
    assert file.path == str(links / "big-00001-of-00002.gguf")
    assert file.size_bytes == sum(path.stat().st_size for path in blobs.iterdir())
    with pytest.raises(ModelFileError, match="give the link of that name"):
        read_header(blobs / "blob0")


def test_every_part_of_a_split_model_belongs_to_its_digest(tmp_path):
    parts = split(tmp_path, 2)
    before = obtain(ModelConfig(path=str(parts[0])), tmp_path / "root").file(None)
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"x")
    after = obtain(ModelConfig(path=str(parts[0])), tmp_path / "root").file(None)
    assert after.size_bytes == before.size_bytes
    assert after.sha256 != before.sha256


def test_a_file_with_the_name_of_a_part_may_be_a_whole_model(tmp_path):
    alone = write(tmp_path, raw.whole(), "merged-00001-of-00003.gguf")
    assert parts_of(alone) == read_header(alone).parts == (alone,)


def test_a_digest_is_remembered_until_the_file_changes(tmp_path):
    path = write(tmp_path, b"one")
    first = sha256_of(path, tmp_path / "root")
    kept = tmp_path / "root" / "sha256.json"
    entries = json.loads(kept.read_text())
    entries[str(path)]["sha256"] = "remembered"
    kept.write_text(json.dumps(entries))
    assert sha256_of(path, tmp_path / "root") == "remembered"
    path.write_bytes(b"two, longer")
    assert sha256_of(path, tmp_path / "root") not in (first, "remembered")
    kept.write_text("{damaged")
    assert len(sha256_of(path, tmp_path / "root")) == 64
    with pytest.raises(ModelMissingError):
        sha256_of(tmp_path / "nowhere", tmp_path)
