"""The batch file of a commit: which arrays it has, and reading it in part or whole from a folder or a bucket.

In: a storage and a `BatchRef`, the part of a commit that describes its batch file. Out: NumPy arrays of any of its
rows; views of the mapped file on a local disk, unless a scale is applied. Guarantee: before an array is made the size
of the file, and format, stream, batch, N and R of its header are compared with the commit; record ids are where they
are read. A storage whose answers do not say how large the object is (all of `storage` do) has the size unchecked, and
a longer file is read as far as was committed. `verify` checks the bytes, `verify --deep` the values. Cost: one request
for the header, one for each array or run of rows, or one for adjacent arrays; large ones are split and fetched in
parallel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import DamagedData
from ..storage import Storage
from .digests import digest_ids
from .dtypes import has_scale, stored_dtype
from .records import Cursor
from .run_config import FORMAT
from .safetensors import ArrayEntry, ArrayLayout, decode_header, entries_of
from .statistics import SCALE, SUMS, statistics_layout, unscaled

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Num

_HEAD = 256 << 10  # bytes of the first request; holds the header of some thousand records
_GAP = 64 << 10  # unwanted bytes that are read rather than making another request


def batch_arrays(
    widths: Mapping[str, int], dtype: np.dtype, num_rows: int, num_records: int, has_means: bool
) -> ArrayLayout:
    """Return the arrays of a batch file, in their order.

    Args:
        widths: the width of each hook point.
        dtype: of the stored rows, but for hook points of `FIXED_DTYPES`.
        num_rows: N.
        num_records: R.
        has_means: whether rows are means over windows.
    """
    n, r = num_rows, num_records
    int32, int64, float32 = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32)
    dtypes = {name: stored_dtype(name, dtype) for name in widths}
    statistics = {
        f"{name}{suffix}": array for name, width in widths.items() for suffix, array in statistics_layout(width).items()
    }
    return {
        "record_index": ((r,), int64),
        "record_offsets": ((r + 1,), int64),
        "record_lengths": ((r,), int64),
        **dict(sorted(statistics.items(), key=lambda item: -item[1][1].itemsize)),  # so that each is aligned
        "tokens": ((n,), int32),
        "positions": ((n,), int32),
        **({"mean_over": ((n,), int32)} if has_means else {}),
        **{f"{name}{SCALE}": ((n,), float32) for name in widths if has_scale(dtypes[name])},
        **{name: ((n, width), dtypes[name]) for name, width in widths.items()},
    }


def ends_of_records(arrays: Mapping[str, np.ndarray], begin: Cursor, end: Cursor) -> Bool[np.ndarray, " N"]:
    """Return bool [N], whether a row is of the last token of its record.

    Args:
        arrays: `record_offsets`, `record_lengths` and `positions` of a batch file.
        begin: the cursor before the batch.
        end: the cursor after it.
    """
    last = arrays["record_lengths"] - 1
    if len(last):
        last[0] += begin.token_offset
        if end.token_offset:
            last[-1] = -1  # the record goes on in the next batch
    return arrays["positions"] == np.repeat(last, np.diff(arrays["record_offsets"]))


class BatchRef(NamedTuple):
    """The part of a commit that describes its batch file: which batch, name, size, N, and the part of the stream.

    With R and the digest of the record ids the header is compared with the commit. They are None for `verify`, which
    compares it itself and reads on.
    """

    stream: int
    batch: int
    name: str
    size: int
    num_rows: int
    begin: Cursor
    end: Cursor
    num_records: int | None = None
    record_ids_digest: str | None = None


class StoredBatch:
    """The batch file of one commit. Raises DamagedData if it is another file than was committed."""

    def __init__(self, storage: Storage, ref: BatchRef):
        self._storage, self.ref = storage, ref
        part = storage.read_part(ref.name, 0, min(_HEAD, ref.size))
        if part.size not in (None, ref.size):
            raise DamagedData(f"{ref.name}: {part.size} bytes, but {ref.size} were committed; restore it")
        head = memoryview(part.data)
        needed = 8 + int.from_bytes(head[:8], "little")
        if len(head) < needed <= ref.size:
            head = storage.view(ref.name, 0, needed)
        self._start, header = decode_header(head, ref.name)
        self._entries = entries_of(header, ref.size - self._start, ref.name)
        self._metadata = header.get("__metadata__", {})
        self._held = [(0, head)]  # fetched: (first byte, bytes)
        for problem in () if ref.num_records is None else self._problems(ref.num_records):
            raise DamagedData(f"{ref.name}: {problem}; restore it")

    def _problems(self, r: int) -> Iterator[str]:
        """Yield what its header says of another batch than the committed one."""
        ref = self.ref
        for key, value in (("format", FORMAT), ("stream", ref.stream), ("batch", ref.batch)):
            if self._metadata.get(key) != str(value):
                yield f"its header says {key} {self._metadata.get(key)!r}, not {value}"
        lengths = {"record_index": r, "record_offsets": r + 1, "record_lengths": r}
        lengths |= {name: ref.num_rows for name in ("tokens", "positions", "mean_over")}
        for name, entry in self._entries.items():
            is_of_rows = name + SUMS[0] in self._entries or name.endswith(SCALE)
            wanted = ref.num_rows if is_of_rows else lengths.get(name)
            if wanted is not None and entry.shape[:1] != (wanted,):
                yield f"{name} has the shape {list(entry.shape)}, {wanted} were committed"

    @property
    def widths(self) -> dict[str, int]:
        """The width of each hook point."""
        sums = [name.removesuffix(SUMS[0]) for name in self._entries if name.endswith(SUMS[0])]
        return {name: self._entries[name].shape[1] for name in sums}

    @cached_property
    def record_ids(self) -> list[str]:
        """The ids of its R records, in order. Raises DamagedData for others than were committed."""
        ids = self._listed("record_ids")
        if not all(type(text) is str for text in ids):
            raise DamagedData(f"{self.ref.name}: its header has a record id that is not a string")
        if self.ref.record_ids_digest not in (None, digest_ids(ids)):
            raise DamagedData(f"{self.ref.name}: its record ids are not the committed ones; restore it")
        return ids

    @cached_property
    def record_meta(self) -> list[Any]:
        """The meta of its R records, None for those without. Raises DamagedData."""
        return self._listed("record_meta") if "record_meta" in self._metadata else [None] * len(self.record_ids)

    def _listed(self, key: str) -> list[Any]:
        """Return the JSON list of R entries under this key of the header."""
        try:
            found = json.loads(self._metadata[key])
            if type(found) is list and len(found) == self._entry("record_index").shape[0]:
                return found
        except (KeyError, ValueError, RecursionError):
            pass
        raise DamagedData(f"{self.ref.name}: its header has no list {key} of its records")

    @property
    def record_lengths(self) -> Int[np.ndarray, " R"]:
        """int64 [R]: how many tokens of each record the batch covers, stored or not."""
        return self.array("record_lengths")

    def fetch(self, names: Iterable[str]) -> None:
        """Fetch these arrays for later calls of `array`, adjacent ones in one request."""
        spans = sorted((self._start + entry.first, self._start + entry.last) for entry in map(self._entry, names))
        pieces = spans[:1]
        for begin, end in spans[1:]:
            if begin - pieces[-1][1] > _GAP:
                pieces.append((begin, end))
            else:
                pieces[-1] = (pieces[-1][0], end)
        for begin, end in pieces:
            if self._piece(begin, end) is None:
                self._held.append((begin, self._view(begin, end)))

    def array(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return rows [first, last) of an array. Raises DamagedData if it is missing or the file is cut."""
        entry = self._entry(name)
        last = entry.shape[0] if last is None else min(last, entry.shape[0])
        row = (entry.last - entry.first) // max(entry.shape[0], 1)
        begin, end = self._start + entry.first + first * row, self._start + entry.first + last * row
        data = self._piece(begin, end)
        if data is None:
            data = self._view(begin, end)
        return np.frombuffer(data, entry.dtype).reshape(last - first, *entry.shape[1:])

    def activations(self, name: str, first: int = 0, last: int | None = None) -> Num[np.ndarray, "n width"]:
        """Return rows [first, last) of a hook point as values; float32 where they are stored with a scale."""
        scale = self.array(name + SCALE, first, last) if name + SCALE in self._entries else None
        return unscaled(self.array(name, first, last), scale)

    def has(self, *names: str) -> bool:
        """Return whether it has these arrays."""
        return all(name in self._entries for name in names)

    def records_of(self, first: int, last: int) -> Int[np.ndarray, "n 2"]:
        """Return int64 [last - first, 2]: stream and record index of the rows [first, last)."""
        offsets, index = self.array("record_offsets"), self.array("record_index")
        places = np.searchsorted(offsets, np.arange(first, last), side="right") - 1
        return np.stack([np.full(last - first, self.ref.stream, np.int64), index[places]], axis=1)

    def _entry(self, name: str) -> ArrayEntry:
        if name not in self._entries or not self._entries[name].shape:
            raise DamagedData(f"{self.ref.name}: it has no array {name}")
        return self._entries[name]

    def _piece(self, begin: int, end: int) -> memoryview | None:
        """Return bytes [begin, end) if they were fetched."""
        for first, held in self._held:
            if first <= begin and end <= first + len(held):
                return held[begin - first : end - first]
        return None

    def _view(self, begin: int, end: int) -> memoryview:
        data = self._storage.view(self.ref.name, begin, end)
        if len(data) != end - begin:
            raise DamagedData(f"{self.ref.name}: it ends before byte {end}, {self.ref.size} bytes were committed")
        return data
