"""The audit of one stream: its commits in order, its batch files, and the ids of its records.

In: the stream's number, the facts of the run, its records, a pool to read in. Out: a `StreamAudit`. Guarantee: objects
that a running worker adds meanwhile are not reported as damage. The commits are listed first and the batch files after
them, so the second list has the batch file of each listed commit; a commit that is missing in the middle was created
before the one after it, so a second listing must show it.

Cost: a request for each 1,000 commits and each 1,000 batch files, one for each commit, and one column of the stream.
Where a listing has no checksums, one more for each batch file; where the store knows none either (a local folder, the
hub, objects of S3 that another tool wrote), each batch file is read. With `deep` each is read once. Memory: `AHEAD`
commits, a line for each problem, and for each thread of the pool 8 MiB of a batch file, with `deep` all of it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from ..core.errors import DamagedData, ObjectNotFound
from ..core.threads import prefetch
from ..format.chain import check_data, compare_data, list_folder
from ..format.commit import (
    MAX_COMMIT,
    Commit,
    Totals,
    batch_of,
    commit_name,
    data_name,
    read_commit,
    worker_folder,
)
from ..format.digests import digest_ids
from ..format.not_finite import added
from ..format.records import Cursor
from ..format.run_config import RUN
from ..models.hooks import BY_SUFFIX, suffix_of
from ..storage import ObjectInfo, Storage
from .audited_run import AuditedRun
from .check_batch_file import Contents, check_contents
from .check_record_coverage import check_cover
from .findings import StreamAudit

AHEAD = 256
ReadIds = Callable[[int, int], Iterator[str]]


@dataclass(frozen=True)
class Expected:
    """The number of records of a stream, and a function that reads their ids from one record up to another."""

    num_records: int
    read_ids: ReadIds


@dataclass(frozen=True)
class Reading:
    """The means of an audit: the storage, its threads, whether to read batch files, and calls for each commit."""

    storage: Storage
    pool: ThreadPoolExecutor
    deep: bool = False
    expect: Callable[[int], None] = lambda count: None
    advance: Callable[[int], None] = lambda count: None


@dataclass(frozen=True)
class _Seen:
    """A commit as found, None if it is not readable, and its digest; problems of it and its batch file; contents."""

    name: str
    commit: Commit | None
    digest: str = ""
    problems: tuple[str, ...] = ()
    contents: Contents = field(default_factory=lambda: Contents(()))

    @property
    def batch(self) -> int:
        """The batch of its name."""
        return batch_of(self.name) or 0


def audit_stream(reading: Reading, stream: int, run: AuditedRun, expected: Expected) -> StreamAudit:
    """Return the audit of one stream. Storage errors pass through; damage is listed, not raised."""
    audit = StreamAudit(stream, expected.num_records)
    commits = _list_commits(reading.storage, stream, audit.problems)
    stored = {info.name: info for info in reading.storage.list(f"{worker_folder(stream)}/batches/")}
    uncommitted = dict.fromkeys(stored)
    reading.expect(len(commits))
    walk = _Walk(audit, run, expected)
    for seen in prefetch(commits, lambda info: _look(reading, info, stored, run), AHEAD, reading.pool):
        walk.step(seen)
        if seen.commit and seen.commit.data:
            uncommitted.pop(data_name(seen.commit), None)
        reading.advance(1)
    walk.end()
    audit.uncommitted += uncommitted
    return audit


def _list_commits(storage: Storage, stream: int, problems: list[str]) -> list[ObjectInfo]:
    """Return the commits in order; gaps between them and other names go into `problems`."""
    found, strays = list_folder(storage, stream)
    last = max(found, default=-1)
    if len(found) <= last:
        found |= {batch: info for batch, info in list_folder(storage, stream).commits.items() if batch < last}
    problems += [f"{name}: no commit has such a name; move it out of the folder" for name in strays]
    expected = 0
    for batch in sorted(found):
        if batch > expected:
            more = f" and the {batch - expected - 1:,} after it are" if batch - expected > 1 else " is"
            problems.append(
                f"{commit_name(stream, expected)}{more} missing, but {found[batch].name} is there: restore it"
            )
        expected = batch + 1
    return [found[batch] for batch in sorted(found)]


def _look(reading: Reading, info: ObjectInfo, stored: dict[str, ObjectInfo], run: AuditedRun) -> _Seen:
    """Read a commit and compare its batch file with it."""
    try:
        if info.size > MAX_COMMIT:
            raise DamagedData(f"{info.name}: not a readable commit ({info.size:,} bytes are too many)")
        commit, digest = read_commit(reading.storage, info.name)
    except DamagedData as error:
        return _Seen(info.name, None, problems=(str(error),))
    except ObjectNotFound:
        return _Seen(info.name, None, problems=(f"{info.name}: it was listed, and then it was missing; restore it",))
    if commit.data is None or info.name != commit_name(commit.stream, commit.batch):
        return _Seen(info.name, commit, digest)
    try:
        contents = _look_at_data(reading, commit, stored.get(data_name(commit)), run)
        return _Seen(info.name, commit, digest, contents.problems, contents)
    except (DamagedData, ObjectNotFound) as error:
        return _Seen(info.name, commit, digest, (str(error),))


def _look_at_data(reading: Reading, commit: Commit, data: ObjectInfo | None, run: AuditedRun) -> Contents:
    """Return what is in a batch file, nothing unless `deep`. Raises DamagedData for other bytes than were committed."""
    if data is None or data.crc32c:
        data = compare_data(commit, data)
    elif not reading.deep:
        check_data(reading.storage, commit)
    if not reading.deep:
        return Contents(())
    return check_contents(reading.storage.read(data.name), commit, run)


class _Walk:
    """Walks along the commits of one stream and lists in `audit` what does not follow from the one before."""

    def __init__(self, audit: StreamAudit, run: AuditedRun, expected: Expected):
        self._audit, self._run, self._expected = audit, run, expected
        # Where the next commit has to begin and what it has to sum up; None when the one before it is not known.
        self._batch: int = 0
        self._digest: str | None = run.root(audit.stream)
        self._cursor: Cursor | None = Cursor(0, 0)
        self._totals: Totals | None = Totals()
        self._ids: _StreamIds | None = _StreamIds(expected)

    def step(self, seen: _Seen) -> None:
        audit, commit = self._audit, seen.commit
        audit.problems += seen.problems
        batch = seen.batch
        if batch != self._batch:
            self._cursor = self._totals = self._digest = None
        self._batch = batch + 1
        if commit is None:
            self._cursor = self._totals = self._digest = None
            return
        problems = [*self._check_identity(commit, batch), *self._check_cursors(commit), *self._check_sums(commit)]
        if audit.finished:
            problems.append("comes after the commit that ended the stream")
        problems = problems or list(self._check_ids(commit))
        audit.problems += [f"{seen.name}: {problem}" for problem in problems]
        self._cursor, self._totals, self._digest = commit.cursor_after, commit.totals, seen.digest
        audit.digest = seen.digest
        audit.num_batches += 1
        audit.num_rows += commit.num_rows
        audit.num_tokens += commit.num_tokens
        audit.num_bytes += commit.data_bytes
        audit.num_records = max(audit.num_records, commit.cursor_after.record)
        audit.finished = commit.end_of_stream
        audit.non_finite += seen.contents.non_finite
        self._check_widths(seen)

    def end(self) -> None:
        audit, total = self._audit, self._expected.num_records
        if self._cursor and (self._cursor > Cursor(total, 0) or (audit.finished and self._cursor != Cursor(total, 0))):
            folder = worker_folder(audit.stream)
            audit.problems.append(f"{folder}: ends at {self._cursor}, its stream has {total} records")

    def _check_identity(self, commit: Commit, batch: int) -> Iterator[str]:
        if (commit.stream, commit.batch) != (self._audit.stream, batch):
            yield f"says stream {commit.stream}, batch {commit.batch}"
        if commit.fingerprint != self._run.fingerprint:
            yield f"is of another run: fingerprint {commit.fingerprint}, that of run.json is {self._run.fingerprint}"
        elif self._digest is not None and commit.previous != self._digest:
            first = RUN if self._run.root(commit.stream) == self._run.digest else "extension of the run"
            before = commit_name(commit.stream, batch - 1) if batch else first
            yield f"follows another {before} than the one that is there: one of the two was rewritten"

    def _check_cursors(self, commit: Commit) -> Iterator[str]:
        before, after = commit.cursor_before, commit.cursor_after
        if self._cursor and before != self._cursor:
            which = "twice" if before < self._cursor else "not at all"
            yield f"begins at {before}, the batch before ended at {self._cursor}: records between are stored {which}"
        if after < before or (after == before and commit.num_tokens):
            yield "its cursor does not move forward"
        if after.record + (after.token_offset > 0) - before.record != commit.num_records:
            yield f"counts {commit.num_records} records from {before} to {after}"
        offsets, window = {before.token_offset, after.token_offset}, self._run.config.seq_len
        if any(offset if self._run.config.truncates else offset % window for offset in offsets):
            yield f"a cursor is inside a window of {window} tokens, from {before} to {after}"

    def _check_sums(self, commit: Commit) -> Iterator[str]:
        if (commit.data is None) != (commit.num_rows == 0):
            yield f"{commit.num_rows} rows do not go with data {commit.data}"
        stored, read = commit.num_rows, commit.num_tokens
        if max(stored, read) > self._run.config.num_slots:
            yield f"counts {max(stored, read):,} tokens, and a batch has room for {self._run.config.num_slots:,}"
        if stored > read or (stored < read and self._run.selection.is_everything):
            yield f"stores {stored:,} rows of {read:,} tokens"
        else:
            yield from check_cover(commit, self._run)
        if self._totals is not None:
            num_bytes = self._totals.bytes + commit.data_bytes
            ours = (self._totals.rows + stored, self._totals.tokens + read, num_bytes)
            theirs = (commit.totals.rows, commit.totals.tokens, commit.totals.bytes)
            if theirs != ours:
                yield (
                    f"its totals say {theirs[0]:,} rows of {theirs[1]:,} tokens and {theirs[2]:,} bytes; "
                    f"the commits up to it add up to {ours[0]:,}, {ours[1]:,} and {ours[2]:,}"
                )
            if commit.totals.not_finite != added(self._totals.not_finite, commit.not_finite):
                yield "its totals of not_finite are not the sums of the commits up to it"

    def _check_ids(self, commit: Commit) -> Iterator[str]:
        first = commit.cursor_before.record
        if first + commit.num_records > self._expected.num_records:
            yield f"reaches beyond the {self._expected.num_records} records of its stream"
        elif self._ids:
            try:
                ids = self._ids.take(first, first + commit.num_records)
            except DamagedData as error:
                self._ids = None
                yield f"its record ids, and those after it, cannot be compared with the stream: {error}"
            else:
                if digest_ids(ids) != commit.record_ids_digest:
                    yield f"its record ids are not those of records {first} and on of the stream"

    def _check_widths(self, seen: _Seen) -> None:
        for hook_point, width in seen.contents.widths.items():
            known = self._audit.widths.setdefault(width_kind(hook_point), width)
            if width != known and seen.commit is not None:
                what = f"{hook_point} is {width} wide, and such are {known} wide elsewhere"
                self._audit.problems.append(f"{data_name(seen.commit)}: {what}")


def width_kind(hook_point: str) -> str:
    """Return what hook points of one width share: those that are D wide, or the hook point itself."""
    kind = BY_SUFFIX.get(suffix_of(hook_point))
    return "residual stream" if kind is None or kind.width == "width" else hook_point


class _StreamIds:
    """The ids of a stream, in one pass while each request begins where the last one ended, or in its last record."""

    def __init__(self, expected: Expected):
        self._expected = expected
        self._source: Iterator[str] = iter(())
        self._next, self._last = -1, ""

    def take(self, first: int, stop: int) -> list[str]:
        """Return the ids of records [first, stop). Raises DamagedData for a stream that is not readable."""
        if first == stop:
            return []
        ids = [self._last] if first == self._next - 1 else []
        if first + len(ids) != self._next:
            self._source = self._expected.read_ids(first, self._expected.num_records)
        ids += islice(self._source, stop - first - len(ids))
        self._next, self._last = stop, ids[-1]
        return ids
