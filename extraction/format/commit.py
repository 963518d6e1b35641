"""What a run and its commits are as names and as bytes; how they are kept and chained is checkpoint.py's.

In: values. Out: JSON, and from stored bytes the values again. Guarantee: what is parsed has every field, of its type
and in its range, and names data of its own batch inside the worker's folder; anything else raises DamagedData that says
where. Keys that are not known are left alone. Memory: at most 64 bytes for each byte that is parsed.
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

from ..core.errors import DamagedData
from ..core.strict_json import loads
from ..core.versions import software_versions
from .not_finite import KINDS, NotFinite, added
from .records import Cursor

SCHEMA = 1
MAX_COMMIT = 1 << 20  # bytes; a commit has about 1,000
_MAX_COUNT = 1 << 63
_COMMIT_NAME = re.compile(r"([0-9]{8})\.json")


def worker_folder(worker_id: int) -> str:
    """The folder of a worker in the output."""
    return f"worker-{worker_id:05d}"


def worker_number(folder: str) -> int | None:
    """The number in the name of a worker's folder, None for another folder."""
    match = re.fullmatch(r"worker-(\d{5,})", folder)
    return int(match[1]) if match and worker_folder(int(match[1])) == folder else None


def commit_name(worker_id: int, batch: int) -> str:
    """The name of a commit in the output."""
    return f"{worker_folder(worker_id)}/commits/{batch:08d}.json"


def batch_of(name: str) -> int | None:
    """The batch of a commit's name, or None if it is not the name of a commit."""
    match = _COMMIT_NAME.fullmatch(name.rpartition("/")[2])
    return int(match[1]) if match else None


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
    """Sums over a chain up to and with one commit, so that its last commit tells of all: rows that are stored, data in
    bytes, the number of attempts that committed something, seconds by stage, tokens that were read, values that are not
    finite."""

    tokens: int = 0
    bytes: int = 0
    attempts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    tokens_read: int = 0
    not_finite: NotFinite = field(default_factory=dict)

    def plus(
        self,
        tokens: tuple[int, int],
        num_bytes: int,
        seconds: dict[str, float],
        is_new_attempt: bool,
        not_finite: NotFinite,
    ) -> "Totals":
        """With one more batch; `tokens` are those stored and those read."""
        stages = {key: round(self.seconds.get(key, 0.0) + seconds.get(key, 0.0), 3) for key in self.seconds | seconds}
        stored, read = self.tokens + tokens[0], self.tokens_read + tokens[1]
        odd = added(self.not_finite, not_finite)
        return Totals(stored, self.bytes + num_bytes, self.attempts + is_new_attempt, stages, read, odd)


@dataclass(frozen=True)
class Commit:
    """The content of a commit; names and units are those of the JSON. A reader does without the keys with a default.

    `num_tokens` are the rows that are stored, `num_tokens_read` the tokens of its records that it covers, by default
    as many.
    """

    worker_id: int
    batch: int
    cursor_before: Cursor
    cursor_after: Cursor
    data: DataObject | None
    num_records: int
    num_tokens: int
    num_tokens_read: int
    end_of_stream: bool
    attempt: str
    fingerprint: str
    seconds: dict[str, float]
    record_ids_digest: str | None = None
    reconstruction_error: dict[str, float] = field(default_factory=dict)
    not_finite: NotFinite = field(default_factory=dict)
    host: str = "unknown"
    started: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)
    totals: Totals = Totals()

    def to_bytes(self) -> bytes:
        return (json.dumps({"schema": SCHEMA} | asdict(self), sort_keys=True, allow_nan=False) + "\n").encode()


_OPTIONAL = {
    "num_tokens_read",
    "record_ids_digest",
    "reconstruction_error",
    "not_finite",
    "host",
    "started",
    "versions",
    "totals",
}


def data_name(commit: Commit) -> str:
    """The name of a commit's data object, in the run."""
    return f"{worker_folder(commit.worker_id)}/{commit.data.name}"


def parse_commit(data: bytes, name: str) -> Commit:
    """The commit stored under `name`. Raises DamagedData naming it if it is not a commit this version can read.

    Memory: at most 64 bytes for each byte of `data`, of which more than MAX_COMMIT are refused unread.
    """
    try:
        if len(data) > MAX_COMMIT:
            raise ValueError(f"{len(data):,} bytes are too many")
        value = loads(data)
        _check_schema(value.pop("schema"), f"{name}: commit")
        known = {key: value[key] for key in Commit.__dataclass_fields__ if key in value or key not in _OPTIONAL}
        known.setdefault("num_tokens_read", value["num_tokens"])
        if "totals" in known:
            known["totals"] = {"tokens_read": known["totals"]["tokens"], "not_finite": {}} | known["totals"]
        kinds = {"cursor_before": Cursor, "cursor_after": Cursor, "data": DataObject, "totals": Totals}
        for key, kind in kinds.items():
            if key in known and (key != "data" or known[key] is not None):
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
    counts = [commit.worker_id, commit.batch, commit.num_records, commit.num_tokens, commit.num_tokens_read]
    counts += [totals.tokens, totals.bytes, totals.attempts, totals.tokens_read]
    for cursor in (commit.cursor_before, commit.cursor_after):
        counts += [cursor.record, cursor.token_offset]
    strings = [commit.attempt, commit.fingerprint, commit.host, commit.started]
    strings += [] if commit.record_ids_digest is None else [commit.record_ids_digest]
    if commit.data is not None:
        counts += [commit.data.size, 0 if commit.data.generation is None else commit.data.generation]
        strings += [commit.data.name, commit.data.crc32c]
        if not re.fullmatch(rf"batches/{commit.batch:08d}(-[0-9a-f]{{1,64}})?\.safetensors", commit.data.name):
            raise ValueError(f"data object {commit.data.name!r} is not one of this batch in the batches folder")
    for odd in (commit.not_finite, totals.not_finite):
        strings += list(odd)
        counts += [number[kind] for number in odd.values() for kind in KINDS]
    if any(type(count) is not int or not 0 <= count < _MAX_COUNT for count in counts):
        raise ValueError("a count is not a number from 0 to 2**63")
    if any(type(text) is not str or not text.isprintable() for text in strings):
        raise ValueError("a text is not a string that can be printed")
    if type(commit.end_of_stream) is not bool:
        raise ValueError("end_of_stream is not true or false")
    numbers = (commit.seconds, totals.seconds, commit.reconstruction_error)
    for table, kinds in (*((table, (int, float)) for table in numbers), (commit.versions, (str,))):
        if type(table) is not dict or any(
            type(value) not in kinds or (kinds != (str,) and not math.isfinite(value)) for value in table.values()
        ):
            raise ValueError("seconds, reconstruction_error or versions are not an object of numbers or strings")


def digest_ids(ids: Iterable[str]) -> str:
    """`sha256:` of the record ids in order; each ends with a zero byte."""
    digest = hashlib.sha256()
    for record_id in ids:
        digest.update(record_id.encode() + b"\0")
    return f"sha256:{digest.hexdigest()}"
