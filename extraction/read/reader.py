"""Reading a run: by batch, by record, by hook point, and the statistics of all of it.

In: OUTPUT, a folder or gs://bucket/prefix, finished or not. Out: NumPy arrays in the stored dtype; rows with a scale
(int8, float8) come as their values in float32.

    reader = ActivationReader("gs://bucket/run")
    for activations, tokens, record, positions in reader.rows("blocks.6.hook_resid_post"): ...

Guarantee: only committed rows are read, each once, in the order of streams, batches and records; a chain with a gap, a
commit of another run or `run.json`, and a batch file of another size or with another header than was committed raise
DamagedData; `format.batch_file` says what is not compared. Shuffled reading is in `shuffle`.

Cost: opening reads `run.json` and lists the streams. Commits are read when they are needed, 16 ahead; a whole run costs
a listing for each stream and a request for each commit. Local files are mapped; those of a bucket come in parallel
ranges, one batch ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from ..core.errors import InvalidRequest, ObjectNotFound
from ..core.threads import prefetch
from ..format.batch_file import BatchRef, StoredBatch
from ..format.chain import StoredCommit, walk
from ..format.commit import Commit, data_name, worker_number
from ..format.records import Cursor
from ..format.run_config import read_existing_run
from ..format.statistics import SCALE
from ..storage import open_storage
from .display import shown_run
from .row_types import Batch, RecordActivations, Rows, concatenate, part_of
from .select import EVERYTHING, Select
from .statistics import Statistics, names_of_statistics, statistics_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from .texts import Texts
    from .top_rows import TopRow

_THREADS = 16
_READ_AHEAD = 1


class ActivationReader:
    """A run, open for reading. Batches that are committed after the commits of a stream were read are not seen.

    Only the rows of `select` are read, and only the records that its condition keeps.
    """

    def __init__(self, output: str, select: Select = EVERYTHING):
        self.storage, self.select = open_storage(output), select
        folders = self.storage.folders()  # before the run, which has the extensions of all of these then
        self.run = read_existing_run(self.storage)
        self.hook_points: tuple[str, ...] = tuple(self.run.config.hook_points)
        self.streams = tuple(number for folder in folders if (number := worker_number(folder)) is not None)
        if select.streams is not None:
            self.streams = self._known(select.streams)
        self._refs: dict[int, tuple[BatchRef, ...]] = {}
        self._lasts: dict[int, Commit | None] = {}
        self._pool = ThreadPoolExecutor(_THREADS, "reader")

    def __repr__(self) -> str:
        counted = self._lasts.keys() >= set(self.streams)
        rows = sum(ref.num_rows for stream in self.streams for ref in self._refs[stream]) if counted else None
        selection = "" if self.select == EVERYTHING else f", {self.select}"
        shown = shown_run(self.run, len(self.streams), rows)
        return f"ActivationReader({self.storage.location}{selection})\n{shown}"

    def __len__(self) -> int:
        """Return how many rows are read, as `num_rows` does."""
        return self.num_rows()

    def __bool__(self) -> bool:
        """Return True, so that `if reader` does not count rows."""
        return True

    # ------------------------------------------------------------------------------------------ what is there

    def refs(self, stream: int) -> Iterator[BatchRef]:
        """Yield the batches of one stream that have a batch file, in order."""
        return self.all_refs([stream])

    def all_refs(self, streams: Iterable[int] | None = None) -> Iterator[BatchRef]:
        """Yield the batches of these streams, of all by default, reading commits ahead over the ends of streams."""
        wanted = self.streams if streams is None else self._known(streams)
        unread = [stream for stream in wanted if stream not in self._refs]
        commits = walk(self.storage, unread, self.run, self._pool)
        for stream in wanted:
            if stream in unread:
                yield from self._read_refs(stream, commits)
            else:
                yield from self._refs[stream]

    def _read_refs(self, stream: int, commits: Iterator[StoredCommit | None]) -> Iterator[BatchRef]:
        """Yield the batches of the stream whose commits come next, and keep them."""
        found: list[BatchRef] = []
        last: Commit | None = None
        while (stored := next(commits)) is not None:
            last = stored.commit
            if last.data is not None:
                place = (stream, last.batch, data_name(last), last.data.size, last.num_rows)
                span = (last.cursor_before, last.cursor_after)
                found.append(BatchRef(*place, *span, last.num_records, last.record_ids_digest))
                yield found[-1]
        self._refs[stream], self._lasts[stream] = tuple(found), last

    def _known(self, streams: Iterable[int]) -> tuple[int, ...]:
        """Return these streams. Raises InvalidRequest for one that the run does not have."""
        wanted, planned = tuple(dict.fromkeys(streams)), len(self.run.records_per_stream)
        for number in wanted:
            if number not in self.streams and not 0 <= number < planned:
                there = ", ".join(map(str, self.streams)) or "none yet"
                raise InvalidRequest(f"{self.storage.location} has no stream {number}; it has {there}")
        return wanted

    def last_commit(self, stream: int) -> Commit | None:
        """Return the last commit of a stream, None if it has none."""
        deque(self.refs(stream), maxlen=0)
        return self._lasts.get(stream)

    def num_rows(self) -> int:
        """Return how many rows are committed; reads every commit that was not read yet."""
        return sum(count for _, count in self.row_counts())

    def row_counts(self) -> Iterator[tuple[BatchRef, int]]:
        """Yield each batch and how many of its rows are read; reads its header if not all are."""
        if self.select.keeps_all_rows:
            yield from ((ref, ref.num_rows) for ref in self.all_refs())
            return
        load = lambda ref: (ref, len(self.select.kept(StoredBatch(self.storage, ref)).rows))  # noqa: E731
        yield from prefetch(self.all_refs(), load, _THREADS, self._pool)

    def num_tokens(self) -> int:
        """Return how many tokens are committed, stored or not; reads every commit that was not read yet."""
        deque(self.all_refs(), maxlen=0)
        return sum(last.totals.tokens for last in self._lasts.values() if last)

    # ------------------------------------------------------------------------------------------ reading

    def batches(
        self, hook_points: str | Sequence[str] | None = None, streams: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """Yield every batch with these hook points, all by default. Raises InvalidRequest for an unknown one."""
        return self.read(self.all_refs(streams), hook_points)

    def read(self, refs: Iterable[BatchRef], hook_points: str | Sequence[str] | None = None) -> Iterator[Batch]:
        """Yield the batches of these refs in their order, for callers that distribute batches themselves."""
        return self._load_batches(refs, self.checked(hook_points))

    @overload
    def rows(  # pyright: ignore[reportOverlappingOverload]  # a str is a sequence of str
        self, hook_points: str, streams: Iterable[int] | None = None
    ) -> Iterator[Rows[np.ndarray]]: ...

    @overload
    def rows(
        self, hook_points: Sequence[str] | None = None, streams: Iterable[int] | None = None
    ) -> Iterator[Rows[dict[str, np.ndarray]]]: ...

    def rows(
        self, hook_points: str | Sequence[str] | None = None, streams: Iterable[int] | None = None
    ) -> Iterator[Rows[Any]]:
        """Yield the rows of every batch; `activations` is an array for one name, a dict for several, all by default."""
        for batch in self.batches(hook_points, streams):
            values = batch.activations[hook_points] if isinstance(hook_points, str) else batch.activations
            yield Rows(cast(Any, values), batch.tokens, batch.record, batch.positions)

    def records(
        self, hook_points: str | Sequence[str] | None = None, streams: Iterable[int] | None = None
    ) -> Iterator[RecordActivations]:
        """Yield every record that is committed whole, joined over batches.

        A record without stored rows is yielded, without rows, if its batch has rows of other records.
        """
        names = self.checked(hook_points)
        for stream in self.streams if streams is None else self._known(streams):
            yield from self._join(stream, self._load_batches(self.refs(stream), names))

    def record(self, record_id: str, hook_points: str | Sequence[str] | None = None) -> RecordActivations:
        """Return the record of this id. The first call reads the header of every batch file.

        Raises ObjectNotFound, and InvalidRequest if several records have the id: `record_at` tells them apart.
        """
        places = list(self._places.get(record_id, ()))
        if not places:
            raise ObjectNotFound(f"{self.storage.location} holds no record {record_id!r}")
        if len(places) > 1:
            which = ", ".join(f"{index} of stream {stream}" for stream, index in places)
            what = f"{self.storage.location}: {len(places)} records have the id {record_id!r}: {which}"
            raise InvalidRequest(
                f"{what}; take the one you mean by stream and index: record_at({places[0][0]}, {places[0][1]})"
            )
        return self.record_at(*places[0], hook_points)

    def record_at(self, stream: int, index: int, hook_points: str | Sequence[str] | None = None) -> RecordActivations:
        """Return the record of this index in a stream.

        Raises ObjectNotFound if it is missing, not yet whole, or in a batch without rows; InvalidRequest for an unknown
        stream.
        """
        names = self.checked(hook_points)
        refs = (ref for ref in self.refs(stream) if ref.begin.record <= index and ref.end > Cursor(index, 0))
        for record in self._join(stream, self._load_batches(refs, names)):
            if record.index == index:
                return record
        raise ObjectNotFound(f"{self.storage.location} does not hold all of record {index} of stream {stream}")

    @cached_property
    def _places(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """{id: stream and index of each record that has it}."""
        places: dict[str, tuple[tuple[int, int], ...]] = {}
        for stored in self.headers():
            for record_id, index in zip(stored.record_ids, stored.array("record_index").tolist(), strict=True):
                place, known = (stored.ref.stream, index), places.get(record_id, ())
                if place not in known:  # a record that continues over batches is in each
                    places[record_id] = (*known, place)
        return places

    def statistics(self, hook_points: str | Sequence[str] | None = None) -> dict[str, Statistics]:
        """Return {hook point: Statistics} of all rows, from the first bytes of each batch file and the maximal rows.

        Raises InvalidRequest if nothing is stored yet.
        """
        names = self.checked(hook_points)
        if not self.select.keeps_all_rows:
            raise InvalidRequest("statistics cover all rows: open the reader without `where` and `positions`")
        found = statistics_of(self.headers(names), names)
        if not found:
            raise InvalidRequest(f"{self.storage.location} holds no tokens yet")
        return found

    def text(self, record: RecordActivations) -> str:
        """Return the text of a record, from the streams that run.json names. Raises InvalidRequest if they are gone."""
        return self.texts.text(record.stream, record.index)

    @cached_property
    def texts(self) -> Texts:
        """The texts of records and tokens, from the streams and the tokenizer that run.json names."""
        from .texts import Texts

        return Texts(self.run)

    def top_rows(self, direction: Float[np.ndarray, " width"], k: int, hook_point: str | None = None) -> list[TopRow]:
        """Return the `k` rows with the largest products with a direction [width], in one pass over the run.

        Raises InvalidRequest for a direction of another width, or if a run of several hook points is given none.
        """
        from .top_rows import top_rows

        names = self.checked(None if hook_point is None else [hook_point])
        if len(names) != 1:
            raise InvalidRequest(f"name the hook point of the direction: {', '.join(names)}")
        return top_rows(self, names[0], direction, k)

    def headers(self, hook_points: Sequence[str] = ()) -> Iterator[StoredBatch]:
        """Yield every batch file with its header and the statistics of these hook points fetched, without its rows."""

        def load(ref: BatchRef) -> StoredBatch:
            stored = StoredBatch(self.storage, ref)
            if hook_points:
                stored.fetch(names_of_statistics(hook_points))
            return stored

        return prefetch(self.all_refs(), load, _THREADS, self._pool)

    def _load_batches(self, refs: Iterable[BatchRef], names: Sequence[str]) -> Iterator[Batch]:
        return prefetch(refs, lambda ref: self._load(ref, names), _READ_AHEAD, self._pool)

    def _load(self, ref: BatchRef, names: Sequence[str]) -> Batch:
        stored = StoredBatch(self.storage, ref)
        more = ["mean_over"] if self.run.config.positions == "mean" else []
        scales = [name + SCALE for name in names if stored.has(name + SCALE)]
        places = ["record_index", "record_offsets", "tokens", "positions", *more]
        if self.select.keeps_all_rows:
            stored.fetch([*places, *scales, *names])
            rows, records, offsets = slice(None), range(len(stored.record_ids)), stored.array("record_offsets")
        else:
            rows, records, counts = self.select.kept(stored)
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        ids, metas = stored.record_ids, stored.record_meta
        return Batch(
            ref,
            {name: self._values(stored, name, rows) for name in names},
            stored.array("tokens")[rows],
            stored.array("positions")[rows],
            stored.array("record_index")[records if isinstance(records, np.ndarray) else slice(None)],
            offsets,
            [ids[record] for record in records],
            [metas[record] for record in records],
            *(stored.array(name)[rows] for name in more),
        )

    @staticmethod
    def _values(stored: StoredBatch, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Return the values of some rows at a hook point; of a few, only the part of the file that has them is read."""
        if isinstance(rows, slice):
            return stored.activations(name)
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        return stored.activations(name, first, last)[rows - first]

    def _join(self, stream: int, batches: Iterator[Batch]) -> Iterator[RecordActivations]:
        """Yield the whole records of consecutive batches of one stream.

        Batches without rows have no batch file and may be missing between them. Of a first record that began earlier,
        its part in these batches is yielded.
        """
        parts: list[RecordActivations] = []
        for batch in batches:
            last = len(batch.record_ids) - 1
            for at, record_id in enumerate(batch.record_ids):
                if parts and parts[0].index != batch.record_index[at]:
                    yield concatenate(parts)
                    parts = []
                parts.append(part_of(batch, at, record_id))
                if at < last or batch.ref.end.token_offset == 0:
                    yield concatenate(parts)
                    parts = []
        last = self._lasts[stream]
        if parts and last is not None and last.cursor_after.record > parts[0].index:
            yield concatenate(parts)

    def checked(self, hook_points: str | Sequence[str] | None) -> tuple[str, ...]:
        """Return these hook points, all by default. Raises InvalidRequest for one that the run does not have."""
        given = (hook_points,) if isinstance(hook_points, str) else hook_points
        names = self.hook_points if given is None else tuple(given)
        for name in names:
            if name not in self.hook_points:
                raise InvalidRequest(f"{name}: the run has the hook points {', '.join(self.hook_points)}")
        return names
