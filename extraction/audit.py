"""The proof of exactly once: commits, data objects and the manifest in, a list of what is wrong out.

In: where a run and its streams lie. Out: a `RunAudit`, with a `WorkerAudit` for each stream. What is checked, from metadata and
the id column of the streams: the chain has no gap, each cursor begins where the one before ended, from (0, 0) to the
end of the stream; each data object is there with the committed size and crc32c; the ids of the records of each commit
are those of the stream; the counts are those of the manifest. Together this says that every token of every record was
committed exactly once. Cost: reads each commit and one column of the streams, and no data object (a local folder has
to be read to know its checksums).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import checkpoint
from checkpoint import Commit

from .errors import ConfigurationMismatch, DamagedData, TryAgain
from .records import Cursor
from .storage import Storage, open_storage
from .streams import load_manifest, open_stream

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


@dataclass(frozen=True)
class RunAudit:
    """What was found in a run: proven if every stream is finished and nothing is wrong."""

    output: str
    workers: tuple[WorkerAudit, ...]

    @property
    def problems(self) -> list[str]:
        return [problem for worker in self.workers for problem in worker.problems]

    @property
    def unfinished(self) -> list[int]:
        return [worker.worker_id for worker in self.workers if not worker.finished and not worker.problems]

    @property
    def verdict(self) -> str:
        return "damaged" if self.problems else "in progress" if self.unfinished else "proven"

    @property
    def exit_code(self) -> int:
        return {"damaged": DamagedData.exit_code, "in progress": TryAgain.exit_code, "proven": 0}[self.verdict]

    def totals(self) -> dict[str, int]:
        names = ("num_records", "num_tokens", "num_batches", "num_bytes")
        return {name: sum(getattr(worker, name) for worker in self.workers) for name in names}

    def to_json(self) -> dict:
        found = {"verdict": self.verdict, "problems": self.problems, "unfinished": self.unfinished}
        return found | {"workers": [asdict(worker) for worker in self.workers]} | self.totals()

    def to_text(self) -> str:
        """A line for each thing that is wrong or not finished, and the summary."""
        lines = [f"wrong: {problem}" for problem in self.problems]
        records = {worker.worker_id: worker.num_records for worker in self.workers}
        lines += [f"not finished: worker {number}, {records[number]:,} records so far" for number in self.unfinished]
        totals = self.totals()
        summary = (
            f"{self.output}: {self.verdict}. {len(self.workers)} streams, {totals['num_batches']:,} batches, "
            f"{totals['num_records']:,} records, {totals['num_tokens']:,} tokens, {totals['num_bytes']:,} bytes"
        )
        return "\n".join([*lines, summary + (", each record exactly once" if self.verdict == "proven" else "")])


def audit_run(output: str, streams: str | None = None) -> RunAudit:
    """Check a run against its streams, which lie where `run.json` says unless given.

    Raises ConfigurationMismatch if those are not the streams that the run was made from, and what storage raises.
    """
    storage = open_storage(output)
    run = checkpoint.read_run(storage)
    location = streams or run["streams"]
    manifest = load_manifest(location)
    if manifest.digest != run["configuration"]["manifest_digest"]:
        raise ConfigurationMismatch(f"{location}/manifest.json is not the manifest that {output} was made from")
    limit = run["configuration"]["max_records"]
    workers = []
    for index in range(manifest.num_streams):
        source = open_stream(manifest, location, index)
        total = source.num_records if limit is None else min(limit, source.num_records)
        workers.append(audit_worker(storage, index, run["fingerprint"], Expected(total, source.read_ids)))
    return RunAudit(output, tuple(workers))


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
