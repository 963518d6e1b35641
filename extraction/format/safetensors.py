"""Data objects: named arrays <-> the bytes of one safetensors file. No I/O.

In: names with shapes and dtypes, and string metadata. Out: a `Shard` whose arrays are views into one buffer, which is
the finished file, so filling the arrays makes the object and nothing is copied afterwards. The format is the public
safetensors one (github.com/huggingface/safetensors): 8 bytes little-endian header size, JSON header, data.

Guarantee: same layout and values, same bytes. `decode` trusts nothing: sizes, names, dtypes and offsets are checked
before an array is made, and it allocates at most 64 bytes for each byte of the header.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ..core.errors import DamagedData, InvalidRequest
from ..core.strict_json import loads

_ALIGNMENT = 64
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_MAX_AXES, _MAX_SIZE = 8, 1 << 48  # of an array, in numbers
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class Shard:
    """A safetensors file in memory: `data` is the whole file, `arrays` are views into it, `metadata` its header's."""

    data: memoryview
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


class Entry(NamedTuple):
    """An array of a data object: its bytes are [first, last) after the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    first: int
    last: int


def allocate(layout: Layout, metadata: Mapping[str, str]) -> Shard:
    """An object of this layout with zeroed arrays, to be filled in place. Arrays lie in the order of `layout`.

    Raises InvalidRequest when the metadata is more than a reader would take.
    """
    header: dict = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (shape, dtype) in layout.items():
        dtype = np.dtype(dtype)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > _MAX_HEADER:
        raise InvalidRequest(
            f"--steps-per-batch: the ids and metas of one object take {len(text):,} bytes; ask for fewer"
        )
    buffer = memoryview(np.zeros(8 + len(text) + offset, np.uint8)).cast("B")
    buffer[:8] = len(text).to_bytes(8, "little")
    buffer[8 : 8 + len(text)] = text
    return _view(buffer, 8 + len(text), header, "data object")


def decode(data: bytes | memoryview, name: str = "data object") -> Shard:
    """Arrays and metadata of the bytes of a data object, without copying. Raises DamagedData naming `name`."""
    view = memoryview(data).cast("B")
    start, header = decode_header(view, name)
    return _view(view, start, header, name)


def decode_header(data: bytes | memoryview, name: str = "data object") -> tuple[int, dict]:
    """Where the arrays begin, in bytes, and the header; `data` holds at least the header. Raises DamagedData."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > _MAX_HEADER or 8 + size > len(data):
        raise DamagedData(f"{name}: cut off inside its header")
    try:
        header = loads(bytes(data[8 : 8 + size]))
        metadata = header.get("__metadata__", {})
        strings = all(isinstance(item, str) for pair in metadata.items() for item in pair)
    except (ValueError, AttributeError) as error:
        raise DamagedData(f"{name}: its header is not a JSON object") from error
    if not strings:
        raise DamagedData(f"{name}: its metadata is not strings")
    return 8 + size, header


def entries_of(header: dict, length: int, name: str = "data object") -> dict[str, Entry]:
    """Where each array lies in the `length` bytes after the header. Raises DamagedData if they do not fill them."""
    entries, end = {}, 0
    try:
        for key, value in header.items():
            if key == "__metadata__":
                continue
            shape, (first, last) = tuple(value["shape"]), value["data_offsets"]
            if (
                any(type(n) is not int or n < 0 for n in (*shape, first, last))
                or first != end
                or len(shape) > _MAX_AXES
            ):
                raise ValueError(f"bad shape or offsets of {key!r}")
            entries[key] = Entry(_DTYPES[value["dtype"]], shape, first, last)
            # An axis of no length hides how long the others are, and NumPy makes no such array.
            too_long = math.prod(n or 1 for n in shape) > _MAX_SIZE
            if too_long or math.prod(shape) * entries[key].dtype.itemsize != last - first:
                raise ValueError(f"wrong size of {key!r}")
            end = last
        if end != length:
            raise ValueError("wrong length")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedData(f"{name}: its header does not describe its data ({error})") from error
    return entries


def _view(buffer: memoryview, start: int, header: dict, name: str) -> Shard:
    arrays = {
        key: np.frombuffer(buffer[start + entry.first : start + entry.last], entry.dtype).reshape(entry.shape)
        for key, entry in entries_of(header, len(buffer) - start, name).items()
    }
    return Shard(buffer, arrays, dict(header.get("__metadata__", {})))
