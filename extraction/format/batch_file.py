"""One committed data object, read in part or whole, from a folder or a bucket.

In: a storage and a `BatchRef`, what a commit says about its data. Out: NumPy arrays of any of its rows; they are views
of the mapped file on a local disk, unless a scale is applied. Guarantee: size and header are checked against the commit
before an array is made; what the bytes say is `verify --deep`'s matter. Cost: one request for the header, one for each
array or run of rows, or one for arrays that lie side by side; large ones are split and come in parallel.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import DamagedData
from ..storage import Storage
from .records import Cursor
from .safetensors import Entry, decode_header, entries_of
from .statistics import SCALE, SUMS, unscaled

_HEAD = 256 << 10  # bytes of the first request; holds the header of some thousand records
_GAP = 64 << 10  # bytes that are read and left sooner than another request is made


class BatchRef(NamedTuple):
    """What a commit says: which batch, where its data lies, how many tokens it has and which part of the stream."""

    stream: int
    batch: int
    name: str
    size: int
    num_rows: int
    begin: Cursor
    end: Cursor


class StoredBatch:
    """The data object of one commit."""

    def __init__(self, storage: Storage, ref: BatchRef):
        self._storage, self.ref = storage, ref
        head = storage.view(ref.name, 0, min(_HEAD, ref.size))
        needed = 8 + int.from_bytes(head[:8], "little")
        if len(head) < needed <= ref.size:
            head = storage.view(ref.name, 0, needed)
        self._start, header = decode_header(head, ref.name)
        self._entries = entries_of(header, ref.size - self._start, ref.name)
        self._metadata = header.get("__metadata__", {})
        self._held = [(0, head)]  # what was got: (first byte, bytes)

    @property
    def widths(self) -> dict[str, int]:
        """{hook point: width}"""
        sums = [name.removesuffix(SUMS[0]) for name in self._entries if name.endswith(SUMS[0])]
        return {name: self._entries[name].shape[1] for name in sums}

    @cached_property
    def record_ids(self) -> list[str]:
        """The ids of its R records, in order."""
        ids = self._listed("record_ids")
        if all(type(text) is str for text in ids):
            return ids
        raise DamagedData(f"{self.ref.name}: its header has a record id that is no text")

    @cached_property
    def record_meta(self) -> list[Any]:
        """What the streams say of its R records beside their text, None for those of which they say nothing."""
        return self._listed("record_meta") if "record_meta" in self._metadata else [None] * len(self.record_ids)

    def _listed(self, key: str) -> list[Any]:
        """The JSON list of R entries under this key of the header."""
        try:
            found = json.loads(self._metadata[key])
            if type(found) is list and len(found) == self._entry("record_index").shape[0]:
                return found
        except (KeyError, ValueError, RecursionError):
            pass
        raise DamagedData(f"{self.ref.name}: its header has no list {key} of its records")

    @property
    def record_lengths(self) -> np.ndarray:
        """int64 [R]: how many tokens of each record the batch covers, stored or not."""
        return self.array("record_lengths")

    def fetch(self, names: Iterable[str]) -> None:
        """Get these arrays, to be handed out by `array`; those that lie side by side in one piece."""
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
        """Rows [first, last) of an array. Raises DamagedData if there is no such array or the object is cut."""
        entry = self._entry(name)
        last = entry.shape[0] if last is None else min(last, entry.shape[0])
        row = (entry.last - entry.first) // max(entry.shape[0], 1)
        begin, end = self._start + entry.first + first * row, self._start + entry.first + last * row
        data = self._piece(begin, end)
        if data is None:
            data = self._view(begin, end)
        return np.frombuffer(data, entry.dtype).reshape(last - first, *entry.shape[1:])

    def activations(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Rows [first, last) of a hook point as values; float32 where they are stored with a scale."""
        scale = self.array(name + SCALE, first, last) if name + SCALE in self._entries else None
        return unscaled(self.array(name, first, last), scale)

    def has(self, *names: str) -> bool:
        """Whether it has these arrays."""
        return all(name in self._entries for name in names)

    def records_of(self, first: int, last: int) -> np.ndarray:
        """int64 [last - first, 2]: stream and record index of the tokens [first, last)."""
        offsets, index = self.array("record_offsets"), self.array("record_index")
        places = np.searchsorted(offsets, np.arange(first, last), side="right") - 1
        return np.stack([np.full(last - first, self.ref.stream, np.int64), index[places]], axis=1)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries or not self._entries[name].shape:
            raise DamagedData(f"{self.ref.name}: it has no array {name}")
        return self._entries[name]

    def _piece(self, begin: int, end: int) -> memoryview | None:
        """Bytes [begin, end) of what was got."""
        for first, held in self._held:
            if first <= begin and end <= first + len(held):
                return held[begin - first : end - first]
        return None

    def _view(self, begin: int, end: int) -> memoryview:
        data = self._storage.view(self.ref.name, begin, end)
        if len(data) != end - begin:
            raise DamagedData(f"{self.ref.name}: it ends before byte {end}, {self.ref.size} bytes were committed")
        return data
