"""The commit chain: what makes a batch exist, and where a worker goes on.

In: finished data objects with the cursor before and after them. Out: create-only commits
`worker-NNNNN/commits/NNNNNNNN.json`, numbered without gaps. The checkpoint of a worker *is* this chain; there is no
other state, so nothing can disagree with it.

Why it cannot lose or repeat a token, killed at any instruction:

1. The data object is stored and checked by size and crc32c, then the commit is created, then the cursor in memory
   moves. A commit therefore never names data that is not there, and data without a commit is never read.
2. Every write is create-only and whole. Of two workers that try to write commit n, the store lets one win; the other
   is *fenced* and stops. Nothing committed can be replaced.
3. After an answer that was lost or odd, storage reads back and compares: the same bytes are ours and are adopted.
4. A data object of a killed attempt is adopted if its bytes are the same. Other bytes without a commit are left where
   they are, and ours go under `NNNNNNNN-<attempt>`.
5. A batch is a pure function of stream, configuration and cursor, and each commit's `cursor_before` is its
   predecessor's `cursor_after`: a gap-free chain from (0, 0) to the end of the stream covers each token once.
6. Resuming lists the commits and reads only the last. A gap, damage, or another fingerprint stops the worker;
   nothing is deleted or overwritten to get past it.

Cost: one listing and two reads to resume; two create requests for each batch.
"""

import hashlib
import json
import math
import platform
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from extraction.config import differences
from extraction.errors import ConfigurationMismatch, DamagedData, Fenced, ObjectExists, ObjectNotFound
from extraction.faults import kill_point
from extraction.packing import PackedBatch
from extraction.records import Cursor
from extraction.storage import ObjectInfo, Storage
from extraction.strict_json import loads
from extraction.versions import software_versions

SCHEMA = 1
RUN = "run.json"
MAX_COMMIT = 1 << 20  # bytes; a commit has about 1,000
_MAX_COUNT = 1 << 63
_COMMIT_NAME = re.compile(r"([0-9]{8})\.json")


def worker_folder(worker_id: int) -> str:
    return f"worker-{worker_id:05d}"


def worker_number(folder: str) -> int | None:
    """The number in the name of a worker's folder, None for another folder."""
    match = re.fullmatch(r"worker-(\d{5,})", folder)
    return int(match[1]) if match and worker_folder(int(match[1])) == folder else None


def commit_name(worker_id: int, batch: int) -> str:
    return f"{worker_folder(worker_id)}/commits/{batch:08d}.json"


@dataclass(frozen=True)
class Instance:
    """One start of a worker: what a rival is told about who won."""

    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=lambda: "".join(c if c.isprintable() else "?" for c in platform.node()))
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    versions: dict[str, str] = field(default_factory=software_versions)


@dataclass(frozen=True)
class DataObject:
    """The stored object of a batch; `name` is relative to the worker's folder, `size` in bytes."""

    name: str
    size: int
    crc32c: str
    generation: int | None


@dataclass(frozen=True)
class Totals:
    """Sums over a chain up to and with one commit, so that its last commit tells of all: data in bytes, the number of
    attempts that committed something, seconds by stage."""

    tokens: int = 0
    bytes: int = 0
    attempts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def plus(self, num_tokens: int, num_bytes: int, seconds: dict[str, float], is_new_attempt: bool) -> "Totals":
        stages = {key: round(self.seconds.get(key, 0.0) + seconds.get(key, 0.0), 3) for key in self.seconds | seconds}
        return Totals(self.tokens + num_tokens, self.bytes + num_bytes, self.attempts + is_new_attempt, stages)


@dataclass(frozen=True)
class Commit:
    """The content of a commit; names and units are those of the JSON."""

    worker_id: int
    batch: int
    cursor_before: Cursor
    cursor_after: Cursor
    data: DataObject | None
    num_records: int
    num_tokens: int
    end_of_stream: bool
    attempt: str
    fingerprint: str
    record_ids_digest: str
    host: str
    started: str
    versions: dict[str, str]
    seconds: dict[str, float]
    totals: Totals

    def to_bytes(self) -> bytes:
        return (json.dumps({"schema": SCHEMA} | asdict(self), sort_keys=True) + "\n").encode()


def parse_commit(data: bytes, name: str) -> Commit:
    """The commit stored under `name`. Raises DamagedData naming it if it is not a commit this version can read.

    Memory: at most 64 bytes for each byte of `data`, of which more than MAX_COMMIT are refused unread.
    """
    try:
        if len(data) > MAX_COMMIT:
            raise ValueError(f"{len(data):,} bytes are too many")
        value = loads(data)
        _check_schema(value.pop("schema"), f"{name}: commit")
        known = {key: value[key] for key in Commit.__dataclass_fields__}
        kinds = {"cursor_before": Cursor, "cursor_after": Cursor, "data": DataObject, "totals": Totals}
        for key, kind in kinds.items():
            if key != "data" or known[key] is not None:
                known[key] = kind(**{part: known[key][part] for part in kind.__dataclass_fields__})
        commit = Commit(**known)
        _check_types(commit)
        return commit
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DamagedData(f"{name}: not a readable commit ({error or type(error).__name__})") from error


def _check_schema(schema: object, what: str) -> None:
    if type(schema) is not int:
        raise ValueError("its schema is not a number")
    if schema != SCHEMA:
        raise DamagedData(f"{what} of schema {schema}, this version reads {SCHEMA}; use a newer version")


def _check_types(commit: Commit) -> None:
    totals = commit.totals
    counts = [commit.worker_id, commit.batch, commit.num_records, commit.num_tokens]
    counts += [totals.tokens, totals.bytes, totals.attempts]
    for cursor in (commit.cursor_before, commit.cursor_after):
        counts += [cursor.record, cursor.token_offset]
    strings = [commit.attempt, commit.fingerprint, commit.record_ids_digest, commit.host, commit.started]
    if commit.data is not None:
        counts += [commit.data.size, 0 if commit.data.generation is None else commit.data.generation]
        strings += [commit.data.name, commit.data.crc32c]
        if not re.fullmatch(rf"batches/{commit.batch:08d}(-[0-9a-f]{{1,64}})?\.safetensors", commit.data.name):
            raise ValueError(f"data object {commit.data.name!r} is not one of this batch in the batches folder")
    if any(type(count) is not int or not 0 <= count < _MAX_COUNT for count in counts):
        raise ValueError("a count is not a number from 0 to 2**63")
    if any(type(text) is not str or not text.isprintable() for text in strings):
        raise ValueError("a text is not a string that can be printed")
    if type(commit.end_of_stream) is not bool:
        raise ValueError("end_of_stream is not true or false")
    for table, kinds in ((commit.seconds, (int, float)), (totals.seconds, (int, float)), (commit.versions, (str,))):
        if type(table) is not dict or any(
            type(value) not in kinds or (kinds != (str,) and not math.isfinite(value)) for value in table.values()
        ):
            raise ValueError("seconds or versions are not an object of numbers or strings")


def digest_ids(ids: Iterable[str]) -> str:
    """`sha256:` of the record ids in order; each ends with a zero byte."""
    digest = hashlib.sha256()
    for record_id in ids:
        digest.update(record_id.encode() + b"\0")
    return f"sha256:{digest.hexdigest()}"


def join_run(storage: Storage, configuration: dict, details: dict) -> dict:
    """Create `run.json`, or check that this start has the configuration of the run that is there; its content.

    `details` are further keys (the fingerprint, the manifest's digest, where the streams are). Raises
    ConfigurationMismatch with the old and the new value of each field that differs, DamagedData if `run.json` is
    unreadable.
    """
    content = {"schema": SCHEMA, "configuration": configuration, "versions": software_versions()} | details
    kill_point("before-run")
    try:
        storage.create(RUN, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    except ObjectExists:
        content = read_run(storage)
        if content["configuration"] != configuration:
            lines = differences(content["configuration"], configuration)
            raise ConfigurationMismatch(f"{storage.location}/{RUN} was made otherwise: " + "; ".join(lines)) from None
    kill_point("after-run")
    return content


def read_run(storage: Storage) -> dict:
    """The content of `run.json`. Raises ObjectNotFound or DamagedData."""
    return parse_run(storage.read(RUN), f"{storage.location}/{RUN}")


def parse_run(data: bytes, name: str) -> dict:
    """The run description stored under `name`. Raises DamagedData. Memory: at most 64 bytes for each byte of `data`."""
    try:
        run = loads(data)
        _check_schema(run["schema"], f"{name}: run description")
        if not isinstance(run["configuration"], dict) or not isinstance(run["fingerprint"], str):
            raise ValueError("wrong types")
        return run
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedData(f"{name}: not a readable run description ({error})") from error


def batch_of(name: str) -> int | None:
    """The batch of a commit's name, or None if it is not the name of a commit."""
    match = _COMMIT_NAME.fullmatch(name.rpartition("/")[2])
    return int(match[1]) if match else None


def list_commits(storage: Storage, worker_id: int) -> list[str]:
    """Names of a worker's commits in order. Raises DamagedData if one is missing in the middle or does not belong."""
    folder = f"{worker_folder(worker_id)}/commits/"
    numbers = set()
    for info in storage.list(folder):
        batch = batch_of(info.name)
        if batch is None or info.name != commit_name(worker_id, batch):
            raise DamagedData(f"{info.name}: no commit has such a name; move it out of the folder")
        numbers.add(batch)
    for number in range(max(numbers, default=-1)):
        if number not in numbers:
            _find_missing(storage, commit_name(worker_id, number), commit_name(worker_id, max(numbers)))
    return [commit_name(worker_id, number) for number in range(max(numbers, default=-1) + 1)]


def _find_missing(storage: Storage, missing: str, later: str) -> None:
    """A folder that is listed while a worker commits may show a commit without the one before it: look for that."""
    try:
        storage.stat(missing)
    except ObjectNotFound:
        raise DamagedData(f"{missing} is missing, but {later} is there: restore it") from None


class CommitChain:
    """The chain of one worker, positioned after its last commit. One thread commits at a time."""

    def __init__(self, storage: Storage, worker_id: int, fingerprint: str):
        self.storage, self.worker_id, self.fingerprint = storage, worker_id, fingerprint
        self.instance = Instance()
        self.cursor, self.next_batch, self.end_of_stream = Cursor(0, 0), 0, False
        self.totals, self._last_attempt = Totals(), ""

    @classmethod
    def load(cls, storage: Storage, worker_id: int, fingerprint: str) -> "CommitChain":
        """Where this worker stands. Raises DamagedData (rule 6) or ConfigurationMismatch."""
        chain = cls(storage, worker_id, fingerprint)
        names = list_commits(storage, worker_id)
        if names:
            last = parse_commit(storage.read(names[-1]), names[-1])
            chain._check(last, names[-1], len(names) - 1)
            chain._advance(last)
        return chain

    def _check(self, commit: Commit, name: str, batch: int) -> None:
        if (commit.worker_id, commit.batch) != (self.worker_id, batch):
            raise DamagedData(f"{name}: it says worker {commit.worker_id}, batch {commit.batch}")
        if commit.fingerprint != self.fingerprint:
            raise ConfigurationMismatch(
                f"{name}: committed with fingerprint {commit.fingerprint}, this start has {self.fingerprint}"
            )
        if commit.data is not None:
            check_data(self.storage, commit)

    def _advance(self, commit: Commit) -> None:
        self.cursor, self.next_batch, self.end_of_stream = commit.cursor_after, commit.batch + 1, commit.end_of_stream
        self.totals, self._last_attempt = commit.totals, commit.attempt

    def commit(self, batch: PackedBatch, data: memoryview | None, seconds: dict[str, float]) -> Commit:
        """Store `data` (None if the batch has no tokens), then the commit; move the cursor.

        Raises Fenced if another worker committed this batch; storage's errors pass through, with nothing committed.
        """
        if batch.cursor_before != self.cursor:
            raise ValueError(f"batch begins at {batch.cursor_before}, the chain stands at {self.cursor}")
        begin = time.perf_counter()
        stored = None if data is None else self._store(data)
        seconds = {key: round(value, 3) for key, value in (seconds | {"upload": time.perf_counter() - begin}).items()}
        commit = Commit(
            worker_id=self.worker_id,
            batch=self.next_batch,
            cursor_before=batch.cursor_before,
            cursor_after=batch.cursor_after,
            data=stored,
            num_records=batch.num_records,
            num_tokens=batch.num_tokens,
            end_of_stream=batch.end_of_stream,
            fingerprint=self.fingerprint,
            record_ids_digest=digest_ids(batch.record_ids),
            seconds=seconds,
            totals=self.totals.plus(
                batch.num_tokens, stored.size if stored else 0, seconds, self._last_attempt != self.instance.attempt
            ),
            **asdict(self.instance),
        )
        kill_point("before-commit", commit.batch)
        stored = self._publish(commit)
        kill_point("after-commit", commit.batch)
        self._advance(stored)
        return stored

    def _store(self, data: memoryview) -> DataObject:
        kill_point("before-data", self.next_batch)
        folder, name = worker_folder(self.worker_id), f"batches/{self.next_batch:08d}"
        try:
            info = self.storage.create(f"{folder}/{name}.safetensors", data)
        except ObjectExists:  # and nobody has committed it: what it is does not matter, it stays
            name = f"{name}-{self.instance.attempt}"
            info = self._store_as_ours(f"{folder}/{name}.safetensors", data)
        kill_point("after-data", self.next_batch)
        return DataObject(f"{name}.safetensors", info.size, info.crc32c, info.generation)

    def _store_as_ours(self, name: str, data: memoryview) -> ObjectInfo:
        try:
            return self.storage.create(name, data)
        except ObjectExists:
            raise DamagedData(f"{name}: only this worker writes it, and it holds other bytes than were sent") from None

    def _publish(self, commit: Commit) -> Commit:
        """Create the commit. Returns the one that is stored: this one, or what an earlier request of this attempt that
        landed late has made of the same batch. Raises Fenced if it is another's."""
        name = commit_name(self.worker_id, commit.batch)
        try:
            self.storage.create(name, commit.to_bytes())
            return commit
        except ObjectExists:
            winner = parse_commit(self.storage.read(name), name)
        if winner.attempt != self.instance.attempt:  # which nobody else can have written
            raise Fenced(
                f"{name} was committed by another worker: attempt {winner.attempt} on host {winner.host}, "
                f"started {winner.started}"
            )
        return winner


def check_data(storage: Storage, commit: Commit) -> ObjectInfo:
    """Compare a committed data object with what the store has. Raises DamagedData naming the object."""
    try:
        info = storage.stat(data_name(commit))
    except ObjectNotFound:
        info = None
    return compare_data(commit, info)


def data_name(commit: Commit) -> str:
    """The name of a commit's data object, in the run."""
    return f"{worker_folder(commit.worker_id)}/{commit.data.name}"


def compare_data(commit: Commit, info: ObjectInfo | None) -> ObjectInfo:
    """As `check_data`, with what is known of the object; None if it is not there."""
    name = data_name(commit)
    if info is None:
        raise DamagedData(f"{name}: committed by batch {commit.batch}, but it is not there; restore it")
    if not info.holds(commit.data.size, commit.data.crc32c):
        raise DamagedData(
            f"{name}: {info.size} bytes with crc32c {info.crc32c}, but {commit.data.size} bytes with "
            f"{commit.data.crc32c} were committed; restore it"
        )
    return info
