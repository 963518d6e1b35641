"""Reading what a run stored: by batch, by record, by hook point, and the statistics of all of it.

In: OUTPUT, a folder or gs://bucket/prefix, finished or not. Out: NumPy arrays in the stored dtype; rows with
a scale (int8, float8) come as their values in float32.

    reader = ActivationReader("gs://bucket/run")
    for activations, tokens, record, position in reader.rows("blocks.6.hook_resid_post"): ...

Guarantee: only what is committed is seen, each token once, in the order of workers, batches and records; a chain with a
gap, a commit of another run or an object of another size raises DamagedData. Shuffled reading is in `shuffle`.

Cost: opening reads `run.json` and lists the workers. Commits are read as they are wanted, 16 ahead; a whole run costs a
listing for each worker and a request for each commit. Data is mapped from a local disk; from a bucket it comes in
parallel ranges, one batch ahead of its use.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

import checkpoint

from ..core.errors import DamagedData, InvalidRequest, ObjectNotFound
from ..core.threads import prefetch
from ..format.batch_file import BatchRef, StoredBatch
from ..format.commit import Commit
from ..format.records import Cursor
from ..format.statistics import SCALE
from ..storage import open_storage
from .statistics import Statistics, names_of_statistics, statistics_of

_THREADS = 16
_READ_AHEAD = 1

Values = TypeVar("Values", np.ndarray, dict[str, np.ndarray])


class Rows(NamedTuple, Generic[Values]):
    """n rows: activations [n, width], tokens int32 [n], record int64 [n, 2] (stream, index), position int32 [n].

    Positions count from 0 in the record; a mean has that of the last token of its window. Where several hook points
    were asked for, activations is a dict of them.
    """

    activations: Values
    tokens: np.ndarray
    record: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One commit: N rows of R records. A record that goes on in the next batch is in both.

    `activations`: {hook point: [N, width]}, `tokens`, `positions`: int32 [N], `record_index`: int64 [R],
    `record_offsets`: int64 [R+1] into the N rows, `record_ids`: the R ids, `record_meta`: what the streams say of them
    beside their text, or None. `mean_over`: int32 [N], of how many tokens each row is the mean; None if rows are
    tokens.
    """

    ref: BatchRef
    activations: dict[str, np.ndarray]
    tokens: np.ndarray
    positions: np.ndarray
    record_index: np.ndarray
    record_offsets: np.ndarray
    record_ids: list[str]
    record_meta: list[Any]
    mean_over: np.ndarray | None = None

    @property
    def record(self) -> np.ndarray:
        """int64 [N, 2]: stream and record index of each token."""
        index = np.repeat(self.record_index, np.diff(self.record_offsets))
        return np.stack([np.full(len(index), self.ref.worker_id, np.int64), index], axis=1)


@dataclass(frozen=True)
class RecordActivations:
    """What is stored of one whole record, n rows: `activations` {hook point: [n, width]}, `tokens` and `positions`
    int32 [n]. `mean_over`: int32 [n], of how many tokens each row is the mean; None if rows are tokens. `meta`: what
    the streams say of it beside its text, such as the answer key of a question, or None."""

    stream: int
    index: int
    id: str
    activations: dict[str, np.ndarray]
    tokens: np.ndarray
    positions: np.ndarray
    mean_over: np.ndarray | None = None
    meta: Any = None

    def mean(self, hook_point: str) -> np.ndarray:
        """float64 [width]: over the tokens of the record that rows were stored of. Raises ValueError without rows."""
        if not len(self.tokens):
            raise ValueError(f"record {self.id}: nothing of it is stored")
        return np.average(self.activations[hook_point].astype(np.float64), axis=0, weights=self.mean_over)


class ActivationReader:
    """A run, open for reading. What is committed after a worker's commits were first read is not seen."""

    def __init__(self, output: str):
        self.storage = open_storage(output)
        try:
            self.run = checkpoint.read_run(self.storage)
        except ObjectNotFound:
            raise InvalidRequest(f"{output} holds no {checkpoint.RUN}: not the output of a run") from None
        self.hook_points: tuple[str, ...] = tuple(self.run.config.hook_points)
        self.workers = tuple(
            number for folder in self.storage.folders() if (number := checkpoint.worker_number(folder)) is not None
        )
        self._refs: dict[int, tuple[BatchRef, ...]] = {}
        self._ends: dict[int, Cursor] = {}
        self._pool = ThreadPoolExecutor(_THREADS, "reader")

    # ------------------------------------------------------------------------------------------ what is there

    def refs(self, worker_id: int) -> Iterator[BatchRef]:
        """The batches of one worker that have data, in order."""
        return self.all_refs([worker_id])

    def all_refs(self, workers: Iterable[int] | None = None) -> Iterator[BatchRef]:
        """The batches of these workers, of all by default. Their commits are read ahead, over the ends of workers."""
        wanted = self.workers if workers is None else self._known(workers)
        known = {worker_id: self._refs[worker_id] for worker_id in wanted if worker_id in self._refs}
        found: list[BatchRef] = []
        number, cursor = 0, Cursor(0, 0)
        for worker_id, name, commit in prefetch(self._steps(wanted, known), self._take_step, _THREADS, self._pool):
            if commit is None:
                yield from known.get(worker_id, ())
                if worker_id not in known:
                    self._refs[worker_id], self._ends[worker_id] = tuple(found), cursor
                found, number, cursor = [], 0, Cursor(0, 0)
                continue
            if (commit.worker_id, commit.batch, commit.fingerprint) != (worker_id, number, self.run.fingerprint):
                raise DamagedData(f"{name}: says worker {commit.worker_id}, batch {commit.batch} of another run")
            if commit.cursor_before != cursor:
                raise DamagedData(f"{name}: begins at {commit.cursor_before}, the batch before it ended at {cursor}")
            number, cursor = number + 1, commit.cursor_after
            if commit.data is not None:
                data = f"{checkpoint.worker_folder(worker_id)}/{commit.data.name}"
                size, tokens, before = commit.data.size, commit.num_tokens, commit.cursor_before
                found.append(BatchRef(worker_id, commit.batch, data, size, tokens, before, cursor))
                yield found[-1]

    def _known(self, workers: Iterable[int]) -> tuple[int, ...]:
        """These streams. Raises InvalidRequest for one that the run does not have."""
        wanted, planned = tuple(workers), len(self.run.get("records_per_stream") or ())
        for number in wanted:
            if number not in self.workers and not 0 <= number < planned:
                there = ", ".join(map(str, self.workers)) or "none yet"
                raise InvalidRequest(f"{self.storage.location} has no stream {number}; it has {there}")
        return wanted

    def _steps(self, workers: Sequence[int], known: Collection[int]) -> Iterator[tuple[int, str | None]]:
        """(worker, name of a commit) for the commits of those that are not known, (worker, None) at the end of each."""
        unread = [worker_id for worker_id in workers if worker_id not in known]
        listed = prefetch(
            unread, lambda worker_id: checkpoint.list_commits(self.storage, worker_id), _THREADS, self._pool
        )
        for worker_id in workers:
            if worker_id not in known:
                yield from ((worker_id, name) for name in next(listed))
            yield worker_id, None

    def _take_step(self, step: tuple[int, str | None]) -> tuple[int, str | None, Commit | None]:
        worker_id, name = step
        return worker_id, name, None if name is None else checkpoint.parse_commit(self.storage.read(name), name)

    def num_tokens(self) -> int:
        """How many tokens are committed; reads every commit that was not read yet."""
        return sum(ref.num_tokens for ref in self.all_refs())

    # ------------------------------------------------------------------------------------------ reading

    def batches(
        self, hook_points: Sequence[str] | None = None, workers: Iterable[int] | None = None
    ) -> Iterator[Batch]:
        """Every batch, with these hook points (all by default). Raises InvalidRequest for one the run does not have."""
        return self.read(self.all_refs(workers), hook_points)

    def read(self, refs: Iterable[BatchRef], hook_points: Sequence[str] | None = None) -> Iterator[Batch]:
        """The batches of these refs, in their order: for those who share batches out themselves."""
        return self._load_batches(refs, self.checked(hook_points))

    def rows(self, hook_point: str, workers: Iterable[int] | None = None) -> Iterator[Rows[np.ndarray]]:
        """The tokens of every batch with their activations at one hook point."""
        for batch in self.batches([hook_point], workers):
            yield Rows(batch.activations[hook_point], batch.tokens, batch.record, batch.positions)

    def records(
        self, hook_points: Sequence[str] | None = None, workers: Iterable[int] | None = None
    ) -> Iterator[RecordActivations]:
        """Every record that is committed whole, joined where it goes over batches. One of which nothing is stored is
        there, without rows, if a batch that it is in has rows of others."""
        names = self.checked(hook_points)
        for worker_id in self.workers if workers is None else self._known(workers):
            yield from self._join(worker_id, self._load_batches(self.refs(worker_id), names))

    def record(self, record_id: str, hook_points: Sequence[str] | None = None) -> RecordActivations:
        """The record of this id. Raises ObjectNotFound, and InvalidRequest if several records have it, which
        `record_at` tells apart. The first call reads the header of every batch."""
        places = self._places.get(record_id, ())
        if not places:
            raise ObjectNotFound(f"{self.storage.location} holds no record {record_id!r}")
        if len(places) > 1:
            which = ", ".join(f"{index} of stream {stream}" for stream, index in places)
            what = f"{self.storage.location}: {len(places)} records have the id {record_id!r}: {which}"
            raise InvalidRequest(
                f"{what}; take the one you mean by stream and index: record_at({places[0][0]}, {places[0][1]})"
            )
        return self.record_at(*places[0], hook_points)

    def record_at(self, stream: int, index: int, hook_points: Sequence[str] | None = None) -> RecordActivations:
        """The record of this index in a stream. Raises ObjectNotFound if it is not there, or not yet whole, or if
        nothing is stored of all records beside it; InvalidRequest if there is no such stream."""
        names = self.checked(hook_points)
        refs = (ref for ref in self.refs(stream) if ref.begin.record <= index and ref.end > Cursor(index, 0))
        for record in self._join(stream, self._load_batches(refs, names)):
            if record.index == index:
                return record
        raise ObjectNotFound(f"{self.storage.location} does not hold all of record {index} of stream {stream}")

    @cached_property
    def _places(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """{id: stream and index of each record that has it}"""
        places: dict[str, tuple[tuple[int, int], ...]] = {}
        for stored in self.headers():
            for record_id, index in zip(stored.record_ids, stored.array("record_index").tolist(), strict=True):
                place, known = (stored.ref.worker_id, index), places.get(record_id, ())
                if place not in known:  # a record that goes over batches is in each
                    places[record_id] = (*known, place)
        return places

    def statistics(self, hook_points: Sequence[str] | None = None) -> dict[str, Statistics]:
        """{hook point: Statistics} of all rows, from each object's first bytes; of rows only those with a maximum are
        read. Raises InvalidRequest if nothing is stored yet."""
        names = self.checked(hook_points)
        found = statistics_of(self.headers(names), names)
        if not found:
            raise InvalidRequest(f"{self.storage.location} holds no tokens yet")
        return found

    def headers(self, hook_points: Sequence[str] = ()) -> Iterator[StoredBatch]:
        """The data object of every batch, opened: its header and the statistics of these hook points are there, the
        rows are not."""

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
        stored.fetch(["record_index", "record_offsets", "tokens", "positions", *more, *scales, *names])
        return Batch(
            ref,
            {name: stored.activations(name) for name in names},
            stored.array("tokens"),
            stored.array("positions"),
            stored.array("record_index"),
            stored.array("record_offsets"),
            stored.record_ids,
            stored.record_meta,
            *map(stored.array, more),
        )

    def _join(self, worker_id: int, batches: Iterator[Batch]) -> Iterator[RecordActivations]:
        """Whole records of consecutive batches of one worker. Batches without rows, and so without data, may lie
        between these, before and after them; of a first record that began earlier, what is here is given."""
        parts: list[RecordActivations] = []
        for batch in batches:
            last = len(batch.record_ids) - 1
            for at, record_id in enumerate(batch.record_ids):
                if parts and parts[0].index != batch.record_index[at]:
                    yield _concatenate(parts)
                    parts = []
                parts.append(_part(batch, at, record_id))
                if at < last or batch.ref.end.token_offset == 0:
                    yield _concatenate(parts)
                    parts = []
        if parts and self._ends[worker_id].record > parts[0].index:
            yield _concatenate(parts)

    def checked(self, hook_points: Sequence[str] | None) -> tuple[str, ...]:
        """These hook points, all of the run by default. Raises InvalidRequest for one that the run does not have."""
        names = self.hook_points if hook_points is None else tuple(hook_points)
        for name in names:
            if name not in self.hook_points:
                raise InvalidRequest(f"{name}: the run has the hook points {', '.join(self.hook_points)}")
        return names


def _part(batch: Batch, at: int, record_id: str) -> RecordActivations:
    here = slice(int(batch.record_offsets[at]), int(batch.record_offsets[at + 1]))
    activations = {name: values[here] for name, values in batch.activations.items()}
    index = int(batch.record_index[at])
    return RecordActivations(
        batch.ref.worker_id,
        index,
        record_id,
        activations,
        batch.tokens[here],
        batch.positions[here],
        None if batch.mean_over is None else batch.mean_over[here],
        batch.record_meta[at],
    )


def _concatenate(parts: list[RecordActivations]) -> RecordActivations:
    if len(parts) == 1:
        return parts[0]
    activations = {name: np.concatenate([part.activations[name] for part in parts]) for name in parts[0].activations}
    names = ("tokens", "positions") if parts[0].mean_over is None else ("tokens", "positions", "mean_over")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], activations=activations, **joined)
