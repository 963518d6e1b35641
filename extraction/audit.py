"""The proof of exactly once: commits, data objects and the manifest in, a list of what is wrong out.

In: the storage of a run and of its streams. Out: a `WorkerAudit` for each stream. What is checked, from metadata and
the id column of the streams: the chain has no gap, each cursor begins where the one before ended, from (0, 0) to the
end of the stream; each data object is there with the committed size and crc32c; the ids of the records of each commit
are those of the stream; the counts are those of the manifest. Together this says that every token of every record was
committed exactly once. Cost: reads each commit and one column of the streams, and no data object (a local folder has
to be read to know its checksums).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import checkpoint
from checkpoint import Commit

from .errors import DamagedData
from .records import Cursor
from .storage import Storage

THREADS = 16
ReadIds = Callable[[int, int], Iterator[str]]


@dataclass
class WorkerAudit:
    """What was found in one worker's folder. `finished`: the end of its stream is committed."""

    worker_id: int
    num_records: int = 0
    num_tokens: int = 0
    num_batches: int = 0
    num_bytes: int = 0
    finished: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Expected:
    """What a worker's stream holds: its number of records, and their ids from one record up to another."""

    num_records: int
    read_ids: ReadIds


def audit_worker(storage: Storage, worker_id: int, fingerprint: str, expected: Expected) -> WorkerAudit:
    """Check one worker against its stream. Storage errors pass through; damage is listed, not raised."""
    audit = WorkerAudit(worker_id)
    try:
        names = checkpoint.list_commits(storage, worker_id)
    except DamagedData as error:
        audit.problems.append(str(error))
        return audit
    with ThreadPoolExecutor(THREADS) as pool:
        checked = list(pool.map(lambda name: _read(storage, name), names))
    cursor = Cursor(0, 0)
    for name, (commit, problems) in zip(names, checked, strict=True):
        audit.problems += problems
        if commit is None:
            return audit
        audit.problems += _check_place(commit, name, (worker_id, audit.num_batches, fingerprint), cursor, audit.finished)
        cursor = commit.cursor_after
        audit.num_batches += 1
        audit.num_tokens += commit.num_tokens
        audit.num_bytes += commit.data.size if commit.data else 0
        audit.finished = commit.end_of_stream
    audit.num_records = cursor.record
    _check_end(audit, cursor, expected)
    if not audit.problems:
        audit.problems += _check_ids([commit for commit, _ in checked], names, expected.read_ids)
    return audit


def _read(storage: Storage, name: str) -> tuple[Commit | None, list[str]]:
    try:
        commit = checkpoint.parse_commit(storage.read(name), name)
    except DamagedData as error:
        return None, [str(error)]
    try:
        if commit.data is not None:
            checkpoint.check_data(storage, commit)
    except DamagedData as error:
        return commit, [str(error)]
    return commit, []


def _check_place(
    commit: Commit, name: str, place: tuple[int, int, str], cursor: Cursor, finished: bool
) -> Iterator[str]:
    if (commit.worker_id, commit.batch, commit.fingerprint) != place:
        yield f"{name}: says worker {commit.worker_id}, batch {commit.batch}, fingerprint {commit.fingerprint}"
    if commit.cursor_before != cursor:
        yield f"{name}: begins at {commit.cursor_before}, the batch before it ended at {cursor}"
    if commit.cursor_after < commit.cursor_before or (commit.cursor_after == cursor and commit.num_tokens):
        yield f"{name}: its cursor does not move forward"
    if (commit.data is None) != (commit.num_tokens == 0):
        yield f"{name}: {commit.num_tokens} tokens do not go with data {commit.data}"
    if _last_record(commit) - commit.cursor_before.record != commit.num_records:
        yield f"{name}: counts {commit.num_records} records from {commit.cursor_before} to {commit.cursor_after}"
    if finished:
        yield f"{name}: stands after the end of the stream"


def _last_record(commit: Commit) -> int:
    """One more than the last record that the commit has a part of."""
    return commit.cursor_after.record + (commit.cursor_after.token_offset > 0)


def _check_end(audit: WorkerAudit, cursor: Cursor, expected: Expected) -> None:
    if cursor.record > expected.num_records or (audit.finished and cursor != Cursor(expected.num_records, 0)):
        audit.problems.append(
            f"{checkpoint.worker_folder(audit.worker_id)}: ends at {cursor}, its stream has {expected.num_records} records"
        )


def _check_ids(commits: list[Commit], names: list[str], read_ids: ReadIds) -> Iterator[str]:
    """Compare the digests of record ids with the stream, in one pass over its id column."""
    source, carried = None, None
    for commit, name in zip(commits, names, strict=True):
        if source is None:
            source = read_ids(0, _last_record(commits[-1]))
        ids = [] if commit.cursor_before.token_offset == 0 else [carried]
        while len(ids) < commit.num_records:
            ids.append(next(source))
        carried = ids[-1] if ids else None
        if checkpoint.digest_ids(ids) != commit.record_ids_digest:
            yield f"{name}: its record ids are not those of records {commit.cursor_before.record} and on of the stream"
