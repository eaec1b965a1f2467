"""GGUF files that are wrong in one to three places: in a field, a type, a length, an offset or any byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import MODEL_ARCH_NAMES

_STRING, _ARRAY = 8, 9
_FORMS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {10: "<Q", 11: "<q", 12: "<d"}
_SIZES = {kind: struct.calcsize(form) for kind, form in _FORMS.items()}
# Where arithmetic goes wrong: zero, the ends of types, and numbers that llama.cpp may take for a size.
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    255,
    4096,
    65_536,
    10**6,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63,
    2**64 - 1,
)
_FLOATS = (0.0, -0.0, 1e-30, -1.0, 1e30, float("inf"), float("-inf"), float("nan"))
_TEXTS = (b"", b"\xff\xfe\x00", b"a" * 70_000, b"{{ bad template", b"../..", b"\n\r\t", "日本".encode())
_ADDED = (
    *(b"split.count", b"split.no", b"general.type", b"general.alignment", b"general.file_type"),
    *(b"general.sampling.top_k", b"general.sampling.temp", b"general.sampling.penalty_repeat"),
    *(b"llama.attention.causal", b"llama.attention.sliding_window", b"llama.attention.key_length"),
    *(b"llama.attention.value_length", b"llama.rope.scaling.type", b"llama.rope.scaling.factor"),
    *(b"llama.expert_count", b"llama.expert_used_count", b"llama.expert_shared_count", b"llama.vocab_size"),
    *(
        b"llama.leading_dense_block_count",
        b"llama.pooling_type",
        b"llama.logit_scale",
        b"llama.nextn_predict_layers",
    ),
    *(
        b"tokenizer.ggml.pre",
        b"tokenizer.ggml.merges",
        b"tokenizer.ggml.eot_token_id",
        b"tokenizer.chat_template",
    ),
)


# Sizes that a header may state, of which llama.cpp makes buffers and loops.
_SIZES_OF_MODEL = (
    *(b"llama.attention.key_length", b"llama.attention.value_length", b"llama.attention.sliding_window"),
    *(b"llama.context_length", b"llama.vocab_size", b"llama.expert_count", b"llama.expert_used_count"),
    *(
        b"llama.block_count",
        b"llama.embedding_length",
        b"llama.feed_forward_length",
        b"llama.rope.dimension_count",
    ),
    *(b"llama.attention.head_count", b"llama.attention.head_count_kv", b"llama.expert_feed_forward_length"),
    *(b"llama.nextn_predict_layers", b"llama.leading_dense_block_count", b"llama.expert_group_count"),
    *(b"llama.expert_shared_count", b"llama.rope.scaling.original_context_length", b"split.count"),
    *(
        b"general.alignment",
        b"general.file_type",
        b"general.sampling.penalty_last_n",
        b"general.sampling.top_k",
    ),
    *(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.eot_token_id"),
    *(
        b"tokenizer.ggml.fim_pre_token_id",
        b"tokenizer.ggml.padding_token_id",
        b"tokenizer.ggml.unknown_token_id",
    ),
)


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _some_payload(rng: random.Random) -> tuple[int, bytes]:
    """Any value of any type."""
    kind = rng.choice((*_FORMS, _STRING, _ARRAY))
    if kind == _STRING:
        return kind, _text(rng.choice((*_TEXTS, *(name.encode() for name in MODEL_ARCH_NAMES.values()))))
    if kind == _ARRAY:
        element, count = rng.choice(tuple(_FORMS)), rng.choice((0, 1, 3, 64))
        return kind, struct.pack("<IQ", element, count) + rng.randbytes(count * _SIZES[element])
    return kind, _scalar(kind, rng)


def _scalar(kind: int, rng: random.Random) -> bytes:
    if kind in (6, 12):
        value = rng.choice(_FLOATS)
        return struct.pack(_FORMS[kind], min(value, 3e38) if kind == 6 and value < float("inf") else value)
    return (rng.choice(_NUMBERS) & (2 ** (8 * _SIZES[kind]) - 1)).to_bytes(_SIZES[kind], "little")


@dataclass(slots=True)
class Key:
    """A key of the header, with its value as in the file."""

    name: bytes
    kind: int
    payload: bytes


@dataclass(slots=True)
class TensorInfo:
    """What the header says of a tensor."""

    name: bytes
    shape: list[int]
    kind: int
    offset: int


@dataclass(slots=True)
class Gguf:
    """A whole file in its parts. ``tensor_count`` and ``key_count`` are None where they are true."""

    keys: list[Key]
    tensors: list[TensorInfo]
    data: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None

    def dump(self) -> bytes:
        """The file's bytes."""
        raw = bytearray(self.magic + struct.pack("<I", self.version))
        for given, true in ((self.tensor_count, self.tensors), (self.key_count, self.keys)):
            raw += struct.pack("<Q", len(true) if given is None else given)
        for key in self.keys:
            raw += _text(key.name) + struct.pack("<I", key.kind) + key.payload
        for t in self.tensors:
            raw += _text(t.name) + struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *t.shape)
            raw += struct.pack("<IQ", t.kind, t.offset)
        return bytes(raw + bytes(-len(raw) % 32) + self.data)


def parse(path: Path) -> Gguf:
    """The parts of a good file of version 3."""
    raw, at = path.read_bytes(), 24

    def number(form: str) -> int:
        nonlocal at
        at += struct.calcsize(form)
        value: int = struct.unpack_from(form, raw, at - struct.calcsize(form))[0]
        return value

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return raw[at - count : at]

    def skip(kind: int) -> None:
        if kind == _STRING:
            take(number("<Q"))
        elif kind == _ARRAY:
            element, count = number("<I"), number("<Q")
            for _ in range(count):
                skip(element)
        else:
            take(_SIZES[kind])

    tensor_count, key_count = struct.unpack_from("<QQ", raw, 8)
    keys = []
    for _ in range(key_count):
        name, kind, began = take(number("<Q")), number("<I"), at
        skip(kind)
        keys.append(Key(name, kind, raw[began:at]))
    tensors = []
    for _ in range(tensor_count):
        name, dimensions = take(number("<Q")), number("<I")
        shape = [number("<Q") for _ in range(dimensions)]
        tensors.append(TensorInfo(name, shape, number("<I"), number("<Q")))
    return Gguf(keys, tensors, raw[at + -at % 32 :])


# -- mutations of the parts ---------------------------------------------------------------------------------------


def _field(g: Gguf, rng: random.Random) -> None:
    name = rng.choice(("magic", "version", "tensor_count", "key_count"))
    if name == "magic":
        g.magic = rng.choice((b"GGUG", b"GGML", b"\0\0\0\0", b"FUGG"))
    elif name == "version":
        g.version = rng.choice((0, 1, 2, 4, 0x03000000, 2**32 - 1))
    else:
        true = len(g.tensors if name == "tensor_count" else g.keys)
        setattr(g, name, rng.choice((0, 1, true - 1, true + 1, 2 * true, 2**31, 2**63, 2**64 - 1)))


def _number_of_key(g: Gguf, rng: random.Random) -> None:
    key = rng.choice([key for key in g.keys if key.kind in _FORMS])
    key.payload = _scalar(key.kind, rng)


def _value_of_key(g: Gguf, rng: random.Random) -> None:
    key = rng.choice(g.keys)
    key.kind, key.payload = _some_payload(rng)


def _type_of_key(g: Gguf, rng: random.Random) -> None:
    rng.choice(g.keys).kind = rng.choice((*range(13), 13, 99, 2**31, 2**32 - 1))


def _string_of_key(g: Gguf, rng: random.Random) -> None:
    key = rng.choice([key for key in g.keys if key.kind == _STRING])
    names = tuple(name.encode() for name in MODEL_ARCH_NAMES.values())
    key.payload = _text(rng.choice(_TEXTS if rng.random() < 0.5 else names))


def _architecture(g: Gguf, rng: random.Random) -> None:
    """The same sizes and tensors under the name of another architecture."""
    name = rng.choice(tuple(MODEL_ARCH_NAMES.values())).encode()
    for key in g.keys:
        if key.name == b"general.architecture":
            key.payload = _text(name)
        key.name = key.name.replace(b"llama.", name + b".")


def _length_in_key(g: Gguf, rng: random.Random) -> None:
    key = rng.choice([key for key in g.keys if key.kind in (_STRING, _ARRAY)])
    at = 0 if key.kind == _STRING else 4
    (true,) = struct.unpack_from("<Q", key.payload, at)
    wrong = rng.choice((0, max(0, true - 1), true + 1, 2 * true, 2**31, 2**62, 2**64 - 1))
    key.payload = key.payload[:at] + struct.pack("<Q", wrong) + key.payload[at + 8 :]


def _array_of_key(g: Gguf, rng: random.Random) -> None:
    key = rng.choice([key for key in g.keys if key.kind == _ARRAY])
    element, count = struct.unpack_from("<IQ", key.payload)
    if element == _STRING:
        few = rng.choice((0, 1, 2, 7))
        strings = b"".join(_text(rng.choice((b"", b"<unk>", b"a", b"\xff", b"<0x41>"))) for _ in range(few))
        key.payload = struct.pack("<IQ", _STRING, few) + strings
    else:
        few = rng.choice((0, 1, count // 2))
        key.payload = struct.pack("<IQ", element, few) + rng.randbytes(few * _SIZES[element])


def _without_key(g: Gguf, rng: random.Random) -> None:
    g.keys.remove(rng.choice(g.keys))


def _key_twice(g: Gguf, rng: random.Random) -> None:
    g.keys.insert(rng.randrange(len(g.keys)), rng.choice(g.keys))


def _name_of_key(g: Gguf, rng: random.Random) -> None:
    rng.choice(g.keys).name = rng.choice((b"", b"x", b"\xff\xfe", b"k" * 70_000, b"general.architecture"))


def _another_key(g: Gguf, rng: random.Random) -> None:
    g.keys.append(Key(rng.choice(_ADDED), *_some_payload(rng)))


def _size_of_model(g: Gguf, rng: random.Random) -> None:
    """A size of the right type and any value."""
    name = rng.choice(_SIZES_OF_MODEL)
    g.keys = [key for key in g.keys if key.name != name]
    value = rng.choice((*(number for number in _NUMBERS if number < 2**32), 5, 48, 100_000, 2**20, 2**27))
    g.keys.append(Key(name, 4, struct.pack("<I", value)))


def _shape_of_tensor(g: Gguf, rng: random.Random) -> None:
    shape = rng.choice(g.tensors).shape
    how = rng.randrange(4)
    if how == 0:
        shape[rng.randrange(len(shape))] = rng.choice((*_NUMBERS, 32, 256, 512))
    elif how == 1:
        shape.reverse()
    elif how == 2:
        shape.append(rng.choice((0, 1, 2, 2**40)))
    else:
        shape[:] = [1] * rng.choice((0, 1, 4, 5, 9))


def _type_of_tensor(g: Gguf, rng: random.Random) -> None:
    rng.choice(g.tensors).kind = rng.choice((*range(42), 99, 2**31, 2**32 - 1))


def _offset_of_tensor(g: Gguf, rng: random.Random) -> None:
    tensor = rng.choice(g.tensors)
    tensor.offset = rng.choice(
        (0, 1, tensor.offset + 32, tensor.offset - 32 & 2**64 - 1, len(g.data), *_NUMBERS)
    )


def _name_of_tensor(g: Gguf, rng: random.Random) -> None:
    others = [tensor.name for tensor in g.tensors]
    rng.choice(g.tensors).name = rng.choice((b"", b"blk.99.attn_q.weight", b"\xff", b"n" * 100, *others))


def _without_tensor(g: Gguf, rng: random.Random) -> None:
    g.tensors.remove(rng.choice(g.tensors))


def _swapped_tensors(g: Gguf, rng: random.Random) -> None:
    one, other = rng.choice(g.tensors), rng.choice(g.tensors)
    one.name, other.name = other.name, one.name


def _weights(g: Gguf, rng: random.Random) -> None:
    size = min(len(g.data), rng.choice((64, 4096, len(g.data))))
    at = rng.randrange(len(g.data) - size + 1)
    filled = rng.choice((b"\x00", b"\xff", b"\x7c\x00", None))
    new = rng.randbytes(size) if filled is None else (filled * size)[:size]
    g.data = g.data[:at] + new + g.data[at + size :]


# -- mutations of the bytes ---------------------------------------------------------------------------------------


def _same(raw: bytes, _: random.Random) -> bytes:
    return raw


def _bytes_of_header(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(min(len(raw), 20_000))] = rng.randrange(256)
    return bytes(changed)


def _early_bytes(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    changed[rng.randrange(min(len(raw), 1_200))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncated(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(rng.choice((30, 2_000, len(raw))))]


def _without_bytes(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(min(len(raw), 5_000))
    return raw[:at] + raw[at + rng.choice((1, 4, 8, 1_000)) :]


def _more_bytes(raw: bytes, rng: random.Random) -> bytes:
    at = rng.choice((len(raw), rng.randrange(min(len(raw), 5_000))))
    return raw[:at] + rng.randbytes(rng.choice((1, 8, 1_000))) + raw[at:]


OF_PARTS: tuple[Callable[[Gguf, random.Random], None], ...] = (
    *(_field, _number_of_key, _number_of_key, _number_of_key, _value_of_key, _type_of_key, _string_of_key),
    *(_architecture, _length_in_key, _array_of_key, _without_key, _key_twice, _name_of_key, _another_key),
    *(
        _size_of_model,
        _size_of_model,
        _size_of_model,
        _size_of_model,
        _another_key,
        _shape_of_tensor,
        _type_of_tensor,
        _offset_of_tensor,
        _name_of_tensor,
        _without_tensor,
    ),
    *(_swapped_tensors, _weights),
)
OF_BYTES = (_bytes_of_header, _early_bytes, _early_bytes, _truncated, _without_bytes, _more_bytes)


def mutants(models: list[Path], first: int, count: int) -> Iterator[tuple[int, str, bytes]]:
    """``count`` files, with their numbers from ``first`` and the names of their mutations.

    A number always gives the same file. Files change the models in turn.
    """
    for number in range(first, first + count):
        rng = random.Random(number)
        good = parse(models[number % len(models)])
        chosen = [rng.choice(OF_PARTS) for _ in range(rng.choice((1, 1, 2, 3)))]
        bytewise = rng.choice(OF_BYTES) if rng.random() < 0.25 else _same
        if bytewise is not _same and rng.random() < 0.7:
            chosen = []
        for mutation in chosen:
            try:
                mutation(good, rng)
            except IndexError:
                continue  # an earlier mutation left nothing to change
        raw = bytewise(good.dump(), rng)
        names = [f.__name__.strip("_") for f in (*chosen, bytewise) if f is not _same]
        yield number, "+".join(names), raw
