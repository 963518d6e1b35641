"""A commit as values and as JSON, and the names of the objects of a stream.

In: values, or the bytes of a commit that anybody may have changed. Out: JSON, or values. Guarantee: a commit that is
parsed has every field with its type and range, and its data has the name of a batch file of the same batch in the
folder of the stream; anything else raises DamagedData that names the object. Unknown keys are ignored. Cost: memory of
at most 64 bytes for each byte that is parsed.
"""

import math
import platform
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from ..core.errors import DamagedData
from ..core.strict_json import dumps, loads
from ..core.versions import software_versions
from ..storage import Storage
from .digests import digest_of
from .not_finite import KINDS, NotFinite, added
from .records import Cursor
from .run_config import FORMAT

MAX_COMMIT = 1 << 20  # bytes; a commit has about 1,000
_MAX_COUNT = 1 << 63
_COMMIT_NAME = re.compile(r"([0-9]{8})\.json")


def worker_folder(stream: int) -> str:
    """Return the folder of a stream in the output."""
    return f"worker-{stream:05d}"


def worker_number(folder: str) -> int | None:
    """Return the stream of a folder in the output, None for a folder of another name."""
    match = re.fullmatch(r"worker-(\d{5,})", folder)
    return int(match[1]) if match and worker_folder(int(match[1])) == folder else None


def commit_name(stream: int, batch: int) -> str:
    """Return the name of a commit in the output."""
    return f"{worker_folder(stream)}/commits/{batch:08d}.json"


def batch_of(name: str) -> int | None:
    """Return the batch of a commit's name, None for any other name."""
    match = _COMMIT_NAME.fullmatch(name.rpartition("/")[2])
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Attempt:
    """The lifetime of one process that works on a stream, as its commits name it."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=lambda: "".join(c if c.isprintable() else "?" for c in platform.node()))
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    versions: dict[str, str] = field(default_factory=software_versions)


class BatchToCommit(Protocol):
    """The part of a packed batch that its commit describes: R records, N rows."""

    @property
    def cursor_before(self) -> Cursor:
        """The cursor that the batch begins at."""
        ...

    @property
    def cursor_after(self) -> Cursor:
        """The cursor after the batch."""
        ...

    @property
    def end_of_stream(self) -> bool:
        """Whether the stream ends with this batch."""
        ...

    @property
    def record_ids(self) -> tuple[str, ...]:
        """The ids of the R records that the batch covers."""
        ...

    @property
    def num_rows(self) -> int:
        """N, the rows that are stored."""
        ...

    @property
    def num_tokens(self) -> int:
        """The tokens that the batch covers, stored or not."""
        ...


@dataclass(frozen=True)
class DataObject:
    """The batch file of a commit; `name` is relative to the folder of the stream, `size` is in bytes."""

    name: str
    size: int
    crc32c: str
    generation: int | None


@dataclass(frozen=True)
class Totals:
    """Sums over a chain up to and including one commit, so that the last commit describes the whole chain.

    `rows` are stored, `tokens` read, `bytes` those of the batch files, `attempts` those that committed something.
    """

    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    attempts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    not_finite: NotFinite = field(default_factory=dict)

    def plus(
        self,
        batch: BatchToCommit,
        num_bytes: int,
        seconds: dict[str, float],
        is_new_attempt: bool,
        not_finite: NotFinite,
    ) -> "Totals":
        """Return the sums with one more batch."""
        return Totals(
            rows=self.rows + batch.num_rows,
            tokens=self.tokens + batch.num_tokens,
            bytes=self.bytes + num_bytes,
            attempts=self.attempts + is_new_attempt,
            seconds={
                stage: round(self.seconds.get(stage, 0.0) + seconds.get(stage, 0.0), 3)
                for stage in self.seconds | seconds
            },
            not_finite=added(self.not_finite, not_finite),
        )


@dataclass(frozen=True)
class Commit:
    """The content of a commit; names and units are those of the JSON.

    `previous` is the digest of the commit before it, of `run.json` for the first of a stream. `num_rows` are the stored
    rows, `num_tokens` the tokens of the records that the batch covers, stored or not.
    """

    stream: int
    batch: int
    previous: str
    cursor_before: Cursor
    cursor_after: Cursor
    data: DataObject | None
    num_records: int
    num_rows: int
    num_tokens: int
    end_of_stream: bool
    attempt: str
    fingerprint: str
    seconds: dict[str, float]
    record_ids_digest: str
    reconstruction_error: dict[str, float]
    not_finite: NotFinite
    host: str
    started: str
    versions: dict[str, str]
    totals: Totals

    def to_bytes(self) -> bytes:
        """Return the bytes of the commit."""
        return dumps({"format": FORMAT} | asdict(self))

    @property
    def data_bytes(self) -> int:
        """The size of the batch file, 0 without one."""
        return self.data.size if self.data else 0


def data_name(commit: Commit) -> str:
    """Return the name of a commit's batch file in the output. Raises ValueError for a commit without one."""
    if commit.data is None:
        raise ValueError(f"batch {commit.batch} of stream {commit.stream} has no batch file")
    return f"{worker_folder(commit.stream)}/{commit.data.name}"


def parse_commit(data: bytes, name: str) -> Commit:
    """Return the commit stored under `name`. Raises DamagedData for bytes that are no commit of this format.

    Memory: at most 64 bytes for each byte of `data`; more than MAX_COMMIT bytes are not parsed.
    """
    try:
        if len(data) > MAX_COMMIT:
            raise ValueError(f"{len(data):,} bytes are too many")
        value: Any = loads(data)
        check_format(value["format"], f"{name}: commit")
        known = {key: value[key] for key in Commit.__dataclass_fields__}
        for key, kind in (
            ("cursor_before", Cursor),
            ("cursor_after", Cursor),
            ("data", DataObject),
            ("totals", Totals),
        ):
            if key != "data" or known[key] is not None:
                known[key] = kind(**{part: known[key][part] for part in kind.__dataclass_fields__})
        commit = Commit(**known)
        _check_types(commit)
        return commit
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DamagedData(f"{name}: not a readable commit ({error or type(error).__name__})") from error


class ReadCommit(NamedTuple):
    """A commit, and the digest of its bytes as they are stored."""

    commit: Commit
    digest: str


def read_commit(storage: Storage, name: str) -> ReadCommit:
    """Return the commit stored under `name`. Raises ObjectNotFound, and DamagedData as `parse_commit`."""
    data = storage.read_small(name, MAX_COMMIT)
    return ReadCommit(parse_commit(data, name), digest_of(data))


def check_format(number: object, what: str) -> None:
    """Raise DamagedData for another format than this version reads, ValueError for no number."""
    if type(number) is not int:
        raise ValueError("its format is not a number")
    if number != FORMAT:
        raise DamagedData(f"{what} of format {number}, this version reads {FORMAT}: use the version that wrote it")


def _check_types(commit: Commit) -> None:
    if any(type(count) is not int or not 0 <= count < _MAX_COUNT for count in _counts(commit)):
        raise ValueError("a count is not a number from 0 to 2**63")
    if any(type(text) is not str or not text.isprintable() for text in _strings(commit)):
        raise ValueError("a text is not a string that can be printed")
    if type(commit.end_of_stream) is not bool:
        raise ValueError("end_of_stream is not true or false")
    if commit.data is not None and not re.fullmatch(
        rf"batches/{commit.batch:08d}(-[0-9a-f]{{1,64}})?\.safetensors", commit.data.name
    ):
        raise ValueError(f"batch file {commit.data.name!r} is not one of this batch in the batches folder")
    numbers = (commit.seconds, commit.totals.seconds, commit.reconstruction_error)
    if not all(type(table) is dict and all(map(_is_number, table.values())) for table in numbers):
        raise ValueError("seconds or reconstruction_error are not an object of numbers")
    if type(commit.versions) is not dict or any(type(text) is not str for text in commit.versions.values()):
        raise ValueError("versions are not an object of strings")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _counts(commit: Commit) -> Iterator[Any]:
    totals = commit.totals
    yield from (commit.stream, commit.batch, commit.num_records, commit.num_rows, commit.num_tokens)
    yield from (totals.rows, totals.tokens, totals.bytes, totals.attempts)
    for cursor in (commit.cursor_before, commit.cursor_after):
        yield from (cursor.record, cursor.token_offset)
    if commit.data is not None:
        yield from (commit.data.size, 0 if commit.data.generation is None else commit.data.generation)
    for odd in (commit.not_finite, totals.not_finite):
        yield from (number[kind] for number in odd.values() for kind in KINDS)


def _strings(commit: Commit) -> Iterator[Any]:
    yield from (commit.previous, commit.attempt, commit.fingerprint, commit.host, commit.started)
    yield commit.record_ids_digest
    if commit.data is not None:
        yield from (commit.data.name, commit.data.crc32c)
    for odd in (commit.not_finite, commit.totals.not_finite):
        yield from odd
