"""Packing: tokenized records in, `PackedBatch`es out. Pure NumPy, no I/O.

In: tokenized records from the cursor on, in stream order. Out: batches of `rows` rows of `seq_len` slots. A row holds
whole sequences side by side, with `segment_ids` 1, 2, ... (0 is padding) and positions from 0 in each sequence.

Guarantee: a batch is a pure function of the stream, the shape and the cursor. It holds the longest prefix of the
remaining sequences that best-fit decreasing places in an empty batch, so every token is in exactly one batch and the
next cursor is known without state. A record longer than a row is split into windows of `seq_len` tokens (or cut). The
token selection does not change the places of tokens.

Cost: O(n log rows) for each prefix that is tried; a handful of prefixes for real document lengths.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..format.records import Cursor, TokenizedRecord
from .token_selection import EVERYTHING, Selector

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True)
class BatchShape:
    """`steps` jitted steps of `rows` rows (B) of `seq_len` slots (T) make one batch."""

    steps: int
    rows: int
    seq_len: int

    @property
    def total_rows(self) -> int:
        """Rows of a batch."""
        return self.steps * self.rows

    @property
    def num_slots(self) -> int:
        """Places for tokens in a batch."""
        return self.total_rows * self.seq_len


@dataclass(frozen=True)
class PackedBatch:
    """The tokens and records that one commit covers. A record in two batches counts in both.

    Attributes:
        tokens, segment_ids, positions: int32 [steps, B, T].
        targets: int32 [steps, B, T], the next token of the same record, -1 where there is none.
        slots: int64 [N], the flat index in those arrays of each stored token, in record order; for means over windows
            that of the window's last token.
        record_positions: int32 [N], the position of each row in its record.
        record_index: int64 [R].
        record_offsets: int64 [R+1], the first row of each record.
        record_lengths: int64 [R], tokens of each record in this batch, stored or not.
        record_ids, record_meta: R ids, and for each its meta as JSON text or None.
        mean_over: int32 [N], the number of tokens in each mean, or None.
        pooled: bool [steps, B, T], the tokens that are part of a mean, or None.
    """

    tokens: Int[np.ndarray, "steps B T"]
    segment_ids: Int[np.ndarray, "steps B T"]
    positions: Int[np.ndarray, "steps B T"]
    targets: Int[np.ndarray, "steps B T"]
    slots: Int[np.ndarray, " N"]
    record_positions: Int[np.ndarray, " N"]
    record_index: Int[np.ndarray, " R"]
    record_offsets: Int[np.ndarray, " R+1"]
    record_lengths: Int[np.ndarray, " R"]
    record_ids: tuple[str, ...]
    record_meta: tuple[str | None, ...]
    cursor_before: Cursor
    cursor_after: Cursor
    end_of_stream: bool
    mean_over: Int[np.ndarray, " N"] | None = None
    pooled: Bool[np.ndarray, "steps B T"] | None = None

    @property
    def num_rows(self) -> int:
        """N, the rows that are stored."""
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        """Tokens that the batch covers."""
        return int(self.record_lengths.sum())

    @property
    def num_records(self) -> int:
        """Records that have tokens in the batch, R."""
        return len(self.record_ids)


@dataclass(frozen=True)
class _Window:
    """A sequence: tokens of `record` from `offset` on; `last` if it is the record's last window.

    `kept`: bool [length], the tokens that are stored or part of a mean; None for all.
    """

    record: TokenizedRecord
    offset: int
    length: int
    last: bool
    kept: np.ndarray | None

    @property
    def cursor_after(self) -> Cursor:
        return Cursor(self.record.index + 1, 0) if self.last else Cursor(self.record.index, self.offset + self.length)


def pack(lengths: Sequence[int], rows: int, seq_len: int) -> np.ndarray | None:
    """Place sequences into rows by best-fit decreasing.

    Empty sequences get row 0 and need no space. Of equal choices, the earlier sequence and the row opened first win.

    Returns:
        int64 [n, 2] of (row, first slot) for each length, or None if they do not fit.
    """
    places = np.zeros((len(lengths), 2), np.int64)
    free: list[tuple[int, int]] = []  # (free slots, row), sorted: the first that is large enough is the best fit
    opened = 0
    for index in np.argsort(-np.asarray(lengths, np.int64), kind="stable"):
        length = int(lengths[index])
        if length == 0:
            break
        at = bisect_left(free, (length, -1))
        if at < len(free):
            room, row = free.pop(at)
        elif opened < rows:
            room, row = seq_len, opened
            opened += 1
        else:
            return None
        places[index] = row, seq_len - room
        if room > length:
            insort(free, (room - length, row))
    return places


def longest_prefix(lengths: Sequence[int], rows: int, seq_len: int) -> tuple[int, Int[np.ndarray, "n 2"]]:
    """Return the largest n such that `lengths[:n]` packs, and its places.

    Tries from above. The first n tried is bounded by the tokens of the rows, and by the sequences over half a row, of
    which a row holds one, over a third, of which it holds two, and so on.
    """
    sizes = np.asarray(lengths, np.int64)
    bounds = [np.searchsorted(np.cumsum(sizes), rows * seq_len, side="right")]
    for held in range(1, 8):
        larger = np.cumsum(sizes > seq_len // (held + 1))
        bounds.append(np.searchsorted(larger, held * rows, side="right"))
    for n in range(int(min(bounds)), 0, -1):
        places = pack(lengths[:n], rows, seq_len)
        if places is not None:
            return n, places
    return 0, np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class Cut:
    """The rule that cuts records into sequences of at most `seq_len` tokens, with the token selection."""

    seq_len: int
    long_documents: str
    selector: Selector = EVERYTHING

    @property
    def most_tokens(self) -> int | None:
        """The tokens of a record that are used, None for all."""
        return self.seq_len if self.long_documents == "truncate" else None

    def windows(self, record: TokenizedRecord, first: int) -> Iterator[_Window]:
        """Yield the sequences of `record` from token `first` on: at least one, empty if no tokens are left."""
        end = len(record.tokens) if self.long_documents == "split" else min(len(record.tokens), self.seq_len)
        kept = self.selector.kept(record, end)
        starts = range(first, end, self.seq_len) if first < end else (first,)
        for offset in starts:
            length = min(self.seq_len, max(end - offset, 0))
            here = None if kept is None else kept[offset : offset + length]
            yield _Window(record, offset, length, offset + length >= end, here)

    def count(self, record: TokenizedRecord) -> tuple[int, int]:
        """Return the number of tokens of a record, and of its stored rows."""
        windows = list(self.windows(record, 0))
        kept = [int(np.count_nonzero(_all_or(window.kept, window.length))) for window in windows]
        rows = sum(map(bool, kept)) if self.selector.selection.pools else sum(kept)
        return sum(window.length for window in windows), rows


def pack_batches(
    records: Iterable[TokenizedRecord],
    start: Cursor,
    shape: BatchShape,
    long_documents: str,
    selector: Selector = EVERYTHING,
) -> Iterator[PackedBatch]:
    """Yield the batches from `start` to the end of the stream; `records` begin at record `start.record`.

    The last batch has `end_of_stream` set; a stream with no records left gives one empty batch with it set. No more
    sequences are read ahead than might fit into a batch.
    """
    cut = Cut(shape.seq_len, long_documents, selector)
    source = (
        window
        for record in records
        for window in cut.windows(record, start.token_offset if record.index == start.record else 0)
    )
    waiting: list[_Window] = []
    num_waiting_tokens = 0
    exhausted = ended = False
    cursor = start
    while not ended:
        # One window beyond the capacity is enough to know that the prefix cannot be longer. The second bound keeps a
        # stream of empty records from filling the memory.
        while not exhausted and num_waiting_tokens <= shape.num_slots and len(waiting) <= shape.num_slots:
            window = next(source, None)
            exhausted = window is None
            if window is not None:
                waiting.append(window)
                num_waiting_tokens += window.length
        candidates = waiting[: shape.num_slots]
        count, places = longest_prefix([w.length for w in candidates], shape.total_rows, shape.seq_len)
        taken, waiting = waiting[:count], waiting[count:]
        num_waiting_tokens -= sum(window.length for window in taken)
        ended = exhausted and not waiting
        after = taken[-1].cursor_after if taken else cursor
        batch = _fill(taken, places, shape, (cursor, after, ended))
        yield _pooled(batch, taken, places) if selector.selection.pools else batch
        cursor = after


def _fill(
    taken: list[_Window], places: np.ndarray, shape: BatchShape, span: tuple[Cursor, Cursor, bool]
) -> PackedBatch:
    tokens, segment_ids, positions = np.zeros((3, shape.total_rows, shape.seq_len), np.int32)
    targets = np.full_like(tokens, -1)
    segments_in_row = np.zeros(shape.total_rows, np.int32)
    slots = [np.zeros(0, np.int64)]
    for window, (row, column) in zip(taken, places, strict=True):
        slots.append(np.flatnonzero(_all_or(window.kept, window.length)) + (row * shape.seq_len + column))
        if window.length == 0:
            continue
        segments_in_row[row] += 1
        here = slice(column, column + window.length)
        tokens[row, here] = window.record.tokens[window.offset : window.offset + window.length]
        segment_ids[row, here] = segments_in_row[row]
        positions[row, here] = np.arange(window.length)
        following = window.record.tokens[window.offset + 1 : window.offset + window.length + (not window.last)]
        targets[row, column : column + len(following)] = following
    records, lengths = _by_record(taken, [window.length for window in taken])
    rows = [len(part) for part in slots[1:]]
    stored = np.concatenate(slots)
    step_shape = (shape.steps, shape.rows, shape.seq_len)
    before, after, end_of_stream = span
    return PackedBatch(
        tokens=tokens.reshape(step_shape),
        segment_ids=segment_ids.reshape(step_shape),
        positions=positions.reshape(step_shape),
        targets=targets.reshape(step_shape),
        slots=stored,
        record_positions=_in_record(taken, rows, positions, stored),
        record_index=np.array([record.index for record in records], np.int64),
        record_offsets=_offsets(_by_record(taken, rows)[1]),
        record_lengths=np.array(lengths, np.int64),
        record_ids=tuple(record.id for record in records),
        record_meta=tuple(record.meta for record in records),
        cursor_before=before,
        cursor_after=after,
        end_of_stream=end_of_stream,
    )


def _in_record(taken: list[_Window], rows: list[int], positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Return int32 [N], the position in its record of each slot. `rows` are the rows of each window."""
    offsets = np.array([window.offset for window in taken], np.int32)
    return positions.reshape(-1)[slots] + np.repeat(offsets, np.array(rows, np.int64))


def _all_or(kept: np.ndarray | None, length: int) -> np.ndarray:
    return np.ones(length, bool) if kept is None else kept


def _pooled(batch: PackedBatch, taken: list[_Window], places: np.ndarray) -> PackedBatch:
    """Return the batch with one row for each window that has a token in its mean, at its last token."""
    seq_len = batch.tokens.shape[-1]
    pooled = np.zeros(batch.tokens.size, bool)
    pooled[batch.slots] = True
    counts = [int(np.count_nonzero(_all_or(window.kept, window.length))) for window in taken]
    lasts = [
        row * seq_len + column + window.length - 1
        for window, (row, column), count in zip(taken, places.tolist(), counts, strict=True)
        if count
    ]
    slots, rows = np.array(lasts, np.int64), [min(count, 1) for count in counts]
    return replace(
        batch, slots=slots, record_positions=_in_record(taken, rows, batch.positions, slots),
        record_offsets=_offsets(_by_record(taken, rows)[1]),
        mean_over=np.array([count for count in counts if count], np.int32), pooled=pooled.reshape(batch.tokens.shape),
    )  # fmt: skip


def _offsets(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _by_record(taken: list[_Window], sizes: list[int]) -> tuple[list[TokenizedRecord], list[int]]:
    """Return each record of the windows, in order, and the sum of the sizes of its windows."""
    records: list[TokenizedRecord] = []
    sums: list[int] = []
    for window, size in zip(taken, sizes, strict=True):
        if not records or records[-1].index != window.record.index:
            records.append(window.record)
            sums.append(0)
        sums[-1] += size
    return records, sums
