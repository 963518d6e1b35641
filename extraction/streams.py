"""The manifest of a set of streams, and the records of one stream from any position.

In: a streams folder (local or gs://bucket/prefix) that holds `manifest.json`. Out: `Manifest`, and `Record`s of one
stream in order, starting anywhere. A stream is always a list of pieces (runs of rows within one row group) of Parquet
files: of our own files beside the manifest, or of the source's files where those lie.

Guarantee: every record comes from the bytes that the manifest pinned. A file that is missing, cut, replaced or not
readable, and a text that is null or not UTF-8, raises `DamagedData` naming the file and the row; nothing is skipped.

Cost: a file's footer is read when the first of its records is wanted. Starting at record k costs one row group,
whatever k is. Memory: one row group of the columns asked for.
"""

import contextlib
import hashlib
import io
import itertools
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from .errors import DamagedData, InvalidRequest, ObjectNotFound, TryAgain
from .records import Record
from .storage import Storage, open_storage

if TYPE_CHECKING:
    import pyarrow.parquet

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
ROWS_AT_A_TIME = 256
MAGIC = b"PAR1"
TAIL_BYTES = 8


@dataclass(frozen=True)
class ParquetFacts:
    """A Parquet file as pinned: size in bytes, rows, and the sha256 of its footer, which describes all its pages."""

    name: str
    size: int
    num_rows: int
    footer: str


class Piece(NamedTuple):
    """`rows` rows from `first_row` on in row group `row_group` of file number `file` of the manifest."""

    file: int
    row_group: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class StreamEntry:
    """What the manifest says about one stream. The digest covers what the stream's records are made of."""

    num_records: int
    digest: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """A set of streams, pinned. `digest` is the sha256 of the manifest's own bytes."""

    dataset: str
    source: str
    revision: str | None
    options: Mapping[str, Any]
    num_streams: int
    num_records: int
    files: tuple[ParquetFacts, ...]
    streams: tuple[StreamEntry, ...]
    digest: str


def sha256(data: bytes) -> str:
    """The digest of some bytes as the manifest spells it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def canonical_json(value: object) -> bytes:
    """One line of JSON that is the same bytes for equal values."""
    return (json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()


# ---------------------------------------------------------------------------------------------- the manifest


class _Fields:
    """Takes typed fields out of one JSON object; the error names the manifest, the field and what is wrong."""

    def __init__(self, where: str, path: str, value: object) -> None:
        self.where, self.path, self.value = where, path, value
        if not isinstance(value, dict):
            raise self.wrong("", "is not an object")

    def wrong(self, key: str, what: str) -> DamagedData:
        field = f"{self.path}.{key}".strip(".") or "the top level"
        return DamagedData(f"{self.where}: {field} {what}")

    def typed(self, key: str, kind: type, what: str) -> Any:
        if key not in self.value:
            raise self.wrong(key, "is missing")
        if type(self.value[key]) is not kind:
            raise self.wrong(key, f"is not {what}")
        return self.value[key]

    def text(self, key: str) -> str:
        return self.typed(key, str, "a string")

    def count(self, key: str) -> int:
        number = self.typed(key, int, "a whole number")
        if number < 0:
            raise self.wrong(key, f"is {number}, below zero")
        return number

    def digest(self, key: str) -> str:
        text = self.text(key)
        if len(text) != 71 or not text.startswith("sha256:") or set(text[7:]) - set("0123456789abcdef"):
            raise self.wrong(key, "is not sha256: and 64 hexadecimal digits")
        return text

    def objects(self, key: str) -> Iterator["_Fields"]:
        for number, value in enumerate(self.typed(key, list, "a list")):
            yield _Fields(self.where, f"{self.path}.{key}[{number}]".strip("."), value)


def load_manifest(location: Storage | str) -> Manifest:
    """Read and check `manifest.json` of a streams folder.

    Raises InvalidRequest when the folder has none, DamagedData when it is not a manifest of this schema.
    """
    try:
        data = _storage(location).read(MANIFEST_NAME)
    except ObjectNotFound:
        raise InvalidRequest(f"{location} holds no {MANIFEST_NAME}: not a folder of finished streams") from None
    return parse_manifest(data, f"{location}/{MANIFEST_NAME}")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Bytes of a manifest to values; `where` names it in messages. Raises DamagedData naming the field."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{where} is not JSON: {error}") from None
    top = _Fields(where, "", value)
    if top.count("schema") != SCHEMA:
        raise top.wrong("schema", f"is {value['schema']}; this version reads schema {SCHEMA}")
    files = tuple(_parse_file(fields) for fields in top.objects("files"))
    manifest = Manifest(
        dataset=top.text("dataset"),
        source=top.text("source"),
        revision=None if value.get("revision", "") is None else top.text("revision"),
        options=top.typed("options", dict, "an object"),
        num_streams=top.count("num_streams"),
        num_records=top.count("num_records"),
        files=files,
        streams=tuple(_parse_stream(fields, len(files)) for fields in top.objects("streams")),
        digest=sha256(data),
    )
    _check_whole(manifest, top)
    return manifest


def _parse_file(fields: _Fields) -> ParquetFacts:
    name = fields.text("name")
    if "\0" in name or (not is_outside(name) and not {"", ".", ".."}.isdisjoint(name.split("/"))):
        raise fields.wrong("name", f"is {name!r}: not a name inside the streams folder, an absolute path or a URL")
    return ParquetFacts(name, fields.count("size"), fields.count("num_rows"), fields.digest("footer"))


def _parse_stream(fields: _Fields, num_files: int) -> StreamEntry:
    pieces = []
    for number, value in enumerate(fields.typed("pieces", list, "a list")):
        key = f"pieces[{number}]"
        if type(value) is not list or [type(part) for part in value] != [int] * 4:
            raise fields.wrong(key, "is not [file, row group, first row, rows]")
        piece = Piece(*value)
        if min(piece) < 0 or piece.rows == 0 or piece.file >= num_files:
            raise fields.wrong(key, f"is {value}: negative, empty or of a file that is not listed")
        pieces.append(piece)
    entry = StreamEntry(fields.count("num_records"), fields.digest("digest"), tuple(pieces))
    if entry.num_records != sum(piece.rows for piece in pieces):
        raise fields.wrong("num_records", "is not the sum of the rows of its pieces")
    return entry


def _check_whole(manifest: Manifest, top: _Fields) -> None:
    """The streams together are every row of every file, once."""
    if manifest.num_streams != len(manifest.streams):
        raise top.wrong("num_streams", f"is {manifest.num_streams}, but {len(manifest.streams)} streams are listed")
    rows = [0] * len(manifest.files)
    pieces = sorted(piece for stream in manifest.streams for piece in stream.pieces)
    for piece in pieces:
        rows[piece.file] += piece.rows
    for one, other in itertools.pairwise(pieces):
        if one[:2] == other[:2] and one.first_row + one.rows > other.first_row:
            raise top.wrong("streams", f"hold rows twice: {list(one)} and {list(other)}")
    for number, (file, held) in enumerate(zip(manifest.files, rows, strict=True)):
        if file.num_rows != held:
            raise top.wrong(f"files[{number}].num_rows", f"is {file.num_rows}, but the streams hold {held} of them")
    if manifest.num_records != sum(rows):
        raise top.wrong("num_records", f"is {manifest.num_records}, but the streams hold {sum(rows)}")


# ---------------------------------------------------------------------------------------------- Parquet files


def is_outside(name: str) -> bool:
    """Whether a file name of a manifest is a place of its own (absolute or URL) and not one in the streams folder."""
    return name.startswith("/") or "://" in name


def _storage(location: Storage | str) -> Storage:
    return open_storage(location) if isinstance(location, str) else location


def open_file(name: str, home: Storage | None = None) -> BinaryIO:
    """Open a Parquet file for reading: a relative name in `home`, an absolute path or URL where it is.

    The one place where stream and source files are opened. Raises DamagedData when there is none.
    """
    try:
        if not is_outside(name):
            return home.open(name)
        folder, _, base = name.rpartition("/")
        return open_storage(folder or "/").open(base)
    except ObjectNotFound:
        raise DamagedData(f"{name}: the file is missing") from None


@contextlib.contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turn what Arrow raises on bad bytes into DamagedData that says where; a failing disk becomes TryAgain."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise TryAgain(f"{what} cannot be read now: {error}") from error
        raise DamagedData(f"{what} cannot be read: {error}") from error


def read_footer(handle: BinaryIO, name: str) -> tuple[ParquetFacts, "pyarrow.parquet.FileMetaData"]:
    """What pins a Parquet file, and its parsed footer. Raises DamagedData when it is cut or not Parquet."""
    import pyarrow.parquet

    with damage_named(name):
        size = handle.seek(0, io.SEEK_END)
        handle.seek(max(0, size - TAIL_BYTES))
        tail = handle.read(TAIL_BYTES)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC or length > size - TAIL_BYTES - len(MAGIC):
            raise DamagedData(f"{name} ({size} bytes) does not end as a Parquet file does: cut, or not Parquet")
        handle.seek(size - TAIL_BYTES - length)
        footer = handle.read(length)
        metadata = pyarrow.parquet.read_metadata(io.BytesIO(MAGIC + footer + tail))
    return ParquetFacts(name, size, metadata.num_rows, sha256(footer)), metadata


def _check_pinned(found: ParquetFacts, pinned: ParquetFacts) -> None:
    for fact, unit in (("size", "bytes"), ("num_rows", "rows")):
        now, then = getattr(found, fact), getattr(pinned, fact)
        if now != then:
            raise DamagedData(f"{pinned.name} has {now} {unit}, the manifest says {then}: the file was changed")
    if found.footer != pinned.footer:
        raise DamagedData(f"{pinned.name} has another footer than the manifest says: the file was replaced")


# ---------------------------------------------------------------------------------------------- reading


class Stream:
    """One stream of a manifest. Reading keeps no state here: every call opens its files anew and closes them."""

    def __init__(self, manifest: Manifest, home: Storage, index: int) -> None:
        self.index = index
        self._files, self._entry, self._home = manifest.files, manifest.streams[index], home
        self._ends = list(itertools.accumulate(piece.rows for piece in self._entry.pieces))

    @property
    def num_records(self) -> int:
        """How many records the stream has."""
        return self._entry.num_records

    @property
    def digest(self) -> str:
        """The digest that the manifest gives for this stream."""
        return self._entry.digest

    def read_records(self, start: int = 0) -> Iterator[Record]:
        """The records from number `start` on. Raises InvalidRequest at once when the stream does not reach there."""
        self._check_range(start, self.num_records)
        rows = self._rows(("id", "text"), start, self.num_records)
        return (Record(index, *row) for index, row in enumerate(rows, start))

    def read_ids(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """The ids of records [start, stop), from the id column alone."""
        stop = self.num_records if stop is None else stop
        self._check_range(start, stop)
        return (row[0] for row in self._rows(("id",), start, stop))

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_records:
            raise InvalidRequest(f"stream {self.index} has {self.num_records} records: no range {start} to {stop}")

    def _rows(self, columns: tuple[str, ...], start: int, stop: int) -> Iterator[tuple[str, ...]]:
        """Rows [start, stop) as strings in the order of `columns`."""
        number, parquet = None, None
        with contextlib.ExitStack() as opened:
            for position in range(bisect_right(self._ends, start), len(self._ends)):
                piece, end = self._entry.pieces[position], self._ends[position]
                begin = end - piece.rows
                if begin >= stop:
                    return
                if piece.file != number:
                    opened.close()
                    number, parquet = piece.file, self._open(piece.file, columns, opened)
                table = self._row_group(parquet, piece, columns)
                for row in range(max(start, begin), min(stop, end), ROWS_AT_A_TIME):
                    rows = min(ROWS_AT_A_TIME, min(stop, end) - row)
                    yield from self._strings(table, piece, row - begin, rows)
                del table  # or two row groups would be in memory while the next one is read

    def _open(self, number: int, columns: tuple[str, ...], opened: contextlib.ExitStack) -> Any:
        import pyarrow.parquet

        pinned = self._files[number]
        handle = opened.enter_context(open_file(pinned.name, self._home))
        facts, metadata = read_footer(handle, pinned.name)
        _check_pinned(facts, pinned)
        for column in columns:
            if metadata.schema.to_arrow_schema().names.count(column) != 1:
                raise DamagedData(f"{pinned.name} has no single column {column!r}")
        return pyarrow.parquet.ParquetFile(handle, metadata=metadata, page_checksum_verification=True)

    def _row_group(self, parquet: Any, piece: Piece, columns: tuple[str, ...]) -> Any:
        """The rows of a piece as an Arrow table."""
        place = f"{self._files[piece.file].name}: row group {piece.row_group}"
        groups = parquet.metadata.num_row_groups
        if piece.row_group >= groups:
            raise DamagedData(f"{place} is asked for by the manifest, the file has {groups}")
        with damage_named(place):
            # Threads would let go of their decoding buffers later: up to three times the memory.
            table = parquet.read_row_group(piece.row_group, columns=list(columns), use_threads=False)
        if piece.first_row + piece.rows > table.num_rows:
            asked = f"{piece.rows} from row {piece.first_row} on"
            raise DamagedData(f"{place} has {table.num_rows} rows, the manifest asks for {asked}")
        return table.slice(piece.first_row, piece.rows).select(list(columns))

    def _strings(self, table: Any, piece: Piece, offset: int, rows: int) -> Iterator[tuple[str, ...]]:
        """`rows` rows of a piece's table from row `offset` on."""
        part = table.slice(offset, rows)
        try:
            values = list(zip(*(column.to_pylist() for column in part.columns), strict=True))
        except UnicodeDecodeError:
            values = [tuple(_decoded(column[row]) for column in part.columns) for row in range(rows)]
        for row, strings in enumerate(values, offset):
            for name, value in zip(table.column_names, strings, strict=True):
                if not isinstance(value, str):
                    raise self._bad_value(piece, row, name, value)
            yield strings

    def _bad_value(self, piece: Piece, row: int, column: str, value: object) -> DamagedData:
        what = "null" if value is None else str(value) if isinstance(value, UnicodeDecodeError) else "not a string"
        record = self._ends[self._entry.pieces.index(piece)] - piece.rows + row
        return DamagedData(
            f"{self._files[piece.file].name}: row {piece.first_row + row} of row group {piece.row_group} "
            f"(record {record} of stream {self.index}): {column} is {what}"
        )


def _decoded(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def open_stream(manifest: Manifest, location: Storage | str, index: int) -> Stream:
    """Stream number `index` of the manifest read from `location`. Raises InvalidRequest when there is no such stream."""
    if not 0 <= index < manifest.num_streams:
        raise InvalidRequest(f"there is no stream {index}: {location} has {manifest.num_streams}, numbered from 0")
    return Stream(manifest, _storage(location), index)
