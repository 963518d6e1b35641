"""The safetensors container: named arrays and string metadata as the bytes of one file. No I/O.

In: names with shapes and dtypes, and metadata; or the bytes of a file that anybody may have changed. Out: a
`SafetensorsFile` whose arrays are views into one buffer, which is the finished file: filling the arrays makes the file
without a copy. The format is the public one (github.com/huggingface/safetensors): 8 bytes little-endian header size,
JSON header, data.

Guarantee: equal layout and values give equal bytes. Reading checks sizes, names, dtypes and offsets before it makes an
array. Cost: at most 64 bytes of memory for each byte of the header.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..core.errors import DamagedData, InvalidRequest
from ..core.strict_json import loads

MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_ALIGNMENT = 64
_MAX_AXES, _MAX_SIZE = 8, 1 << 48  # of an array, in numbers
_DTYPES: dict[str, np.dtype] = {
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

ArrayLayout = Mapping[str, tuple[tuple[int, ...], np.dtype]]  # {name: (shape, dtype)}


@dataclass(frozen=True)
class SafetensorsFile:
    """A file in memory: `data` is the whole file, `arrays` are views into it, `metadata` is that of its header."""

    data: memoryview
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


class Header(NamedTuple):
    """The header of a file, and where its arrays begin, in bytes."""

    start: int
    value: dict[str, Any]


class ArrayEntry(NamedTuple):
    """An array of a file: its bytes are [first, last) after the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    first: int
    last: int


def allocate(layout: ArrayLayout, metadata: Mapping[str, str]) -> SafetensorsFile:
    """Return a file with zeroed arrays in the order of `layout`, to be filled in place.

    Raises InvalidRequest for a header above the limit of readers.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (shape, dtype) in layout.items():
        dtype = np.dtype(dtype)
        size = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise InvalidRequest(
            f"--steps-per-batch: the ids and metas of one batch file take {len(text):,} bytes; ask for fewer"
        )
    buffer = np.zeros(8 + len(text) + offset, np.uint8).data.cast("B")
    buffer[:8] = len(text).to_bytes(8, "little")
    buffer[8 : 8 + len(text)] = text
    return _view(buffer, 8 + len(text), header, "batch file")


def decode(data: bytes | memoryview, name: str = "batch file") -> SafetensorsFile:
    """Return the file with these bytes, without a copy. Raises DamagedData that names `name`."""
    view = memoryview(data).cast("B")
    start, header = decode_header(view, name)
    return _view(view, start, header, name)


def decode_header(data: bytes | memoryview, name: str = "batch file") -> Header:
    """Return the header of a file whose first bytes, up to its end, are in `data`. Raises DamagedData."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > MAX_HEADER or 8 + size > len(data):
        raise DamagedData(f"{name}: cut off inside its header")
    try:
        header: Any = loads(bytes(data[8 : 8 + size]))
        metadata = header.get("__metadata__", {})
        strings = all(isinstance(item, str) for pair in metadata.items() for item in pair)
    except (ValueError, AttributeError) as error:
        raise DamagedData(f"{name}: its header is not a JSON object") from error
    if not strings:
        raise DamagedData(f"{name}: its metadata is not strings")
    return Header(8 + size, header)


def entries_of(header: dict[str, Any], length: int, name: str = "batch file") -> dict[str, ArrayEntry]:
    """Return where each array is in the `length` bytes after the header. Raises DamagedData unless they fill it."""
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
            entries[key] = ArrayEntry(_DTYPES[value["dtype"]], shape, first, last)
            # An axis of length 0 hides the lengths of the others, which NumPy limits.
            too_long = math.prod(n or 1 for n in shape) > _MAX_SIZE
            if too_long or math.prod(shape) * entries[key].dtype.itemsize != last - first:
                raise ValueError(f"wrong size of {key!r}")
            end = last
        if end != length:
            raise ValueError("wrong length")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedData(f"{name}: its header does not describe its data ({error})") from error
    return entries


def _view(buffer: memoryview, start: int, header: dict[str, Any], name: str) -> SafetensorsFile:
    arrays = {
        key: np.frombuffer(buffer[start + entry.first : start + entry.last], entry.dtype).reshape(entry.shape)
        for key, entry in entries_of(header, len(buffer) - start, name).items()
    }
    return SafetensorsFile(buffer, arrays, dict(header.get("__metadata__", {})))
