"""GGUF headers byte by byte, so that they can be wrong in any way."""

import struct

STRING, ARRAY, UINT32, UINT64, FLOAT32, BOOL = 8, 9, 4, 10, 6, 7


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def string(name, value):
    return key(name, STRING, text(value))


def number(name, value):
    return key(name, UINT32, struct.pack("<I", value))


def flag(name, value):
    return key(name, BOOL, struct.pack("<?", value))


def array(name, element, count, payload=b""):
    return key(name, ARRAY, struct.pack("<IQ", element, count) + payload)


def tensor(name, shape, kind=0, offset=0):
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + b"".join(struct.pack("<Q", length) for length in shape)
        + struct.pack("<IQ", kind, offset)
    )


def head(tensors, keys, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, keys)


LLAMA = (string("general.architecture", "llama"), number("llama.block_count", 1))


def whole(keys=LLAMA, tensors=(), data=b"", version=3, alignment=32):
    raw = head(len(tensors), len(keys), version) + b"".join(keys) + b"".join(tensors)
    return raw + bytes(-len(raw) % alignment) + data
