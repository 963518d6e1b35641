"""Rows of files of all kinds, in any storage and compression, as Python values.

In: a `ReadLog`, and the requested columns. Out: each row with its place, in order. Other columns are ignored: they may
change their type, be null or appear later.

Guarantee: no row is skipped; a row that cannot be read is a `Located` with the problem, and a file that is cut or not
of its kind raises `DamagedData` naming it. Cost: in memory are a few rows of Parquet, or a line; a `.json` file that is
not lines of objects is in memory whole.
"""

import csv
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import DamagedData
from ..columns import is_token_ids, python_values, token_arrays, unreadable
from ..parquet import Files, damage_named, read_footer, row_group_sizes
from ..row_filter import RowFilter
from .read_log import MissingColumn, ReadLog, file_sha256
from .sources import SourceFile
from .unpacked import unpacked

ROWS_AT_A_TIME = 64
READ_AHEAD = 8 << 20  # bytes of one request
LINES = "text"  # the column of a text file
ARROW_MARK = b"ARROW1"
_FIELD = re.compile(r'(?:^|\t)(?:"([^"]*(?:""[^"]*)*)"|[^\t]*)')  # of TSV
_NEEDS_QUOTES = re.compile(r'[\t\r\n"]')
_QUOTES = "write it with all fields in quotes, the names too, or as JSON lines"


class Located(NamedTuple):
    """A row, `where` it is, and its split where several are read; or the `problem` that makes it unreadable.

    `row` has the requested columns that exist, `names` are all columns. `number` counts the rows of all files from 0.
    """

    where: str
    row: dict[str, Any]
    names: Sequence[str] = ()
    split: str | None = None
    problem: DamagedData | None = None
    number: int = 0

    def value(self, column: str) -> Any:
        """Return the value of a column. Raises MissingColumn, and DamagedData for one that cannot be read."""
        if column not in self.row:
            raise MissingColumn(f"{self.where} has no column {column!r}; it has {', '.join(self.names) or 'none'}")
        if why := unreadable(self.row[column]):
            raise DamagedData(f"{self.where}: {column} is {why}")
        return self.row[column]

    def first_of(self, columns: Sequence[str]) -> str:
        """Return the first of these columns that the row has. Raises MissingColumn."""
        found = next((column for column in columns if column in self.row), None)
        if found is None:
            raise MissingColumn(f"{self.where} has no column {' or '.join(columns)}; it has {', '.join(self.names)}")
        return found

    def text(self, column: str) -> str:
        """Return the value of a column if it is Unicode text. Raises DamagedData."""
        return checked_text(self.value(column), f"{self.where}: {column}")


LocatedRows = Generator[Located, None, None]


def checked_text(value: Any, what: str) -> str:
    """Return the value if it is Unicode text. Raises DamagedData."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise DamagedData(f"{what} is {'null' if value is None else 'not a string'}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DamagedData(f"{what} is not Unicode text") from None
    return value


class WantedRows(NamedTuple):
    """The columns that are read, and which rows have to be.

    The columns `tokens` hold lists of token ids: of Parquet and Arrow files their values are arrays, int32 [n]. Row
    groups of which the footer says that `filter` keeps none are not read.
    """

    columns: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    filter: RowFilter = RowFilter()


def read_rows(log: ReadLog, wanted: WantedRows) -> LocatedRows:
    """Yield the rows of all files, one file after the other, with these columns."""
    files, source, columns = Files(), log.source, wanted.columns
    before = 0  # rows of the files before this one
    for file in source.files:
        opened = files.open(file.name, file.info)
        checked: Sequence[str] = ()
        with opened.handle as handle:
            is_parquet, count = file.kind == "Parquet", 0
            if is_parquet:
                _, metadata = read_footer(opened)
                rows, count = _parquet_rows(opened, metadata, wanted), metadata.num_rows
            else:
                rows = _plain_rows(file, handle, log, wanted)
            for at, located in enumerate(rows):
                if located.names is not checked:
                    checked = _each_once(file.name, located.names, columns)
                number = located.number if is_parquet else at
                row = {name: located.row[name] for name in columns if name in located.row}
                split, names = file.split if source.is_mixed else None, located.names or list(located.row)
                yield Located(located.where, row, names, split, located.problem, before + number)
                count = max(count, number + 1)
            before += count
            log.num_rows += count
        if is_parquet:
            log.finish(file, "" if file.info else _digest(file.name))


def _each_once(file: str, names: Sequence[str], columns: Sequence[str]) -> Sequence[str]:
    """Return the names of a file's columns. Raises DamagedData if two of them have one of the requested names."""
    for column in columns:
        if names.count(column) > 1:
            raise DamagedData(f"{file} has no single column {column!r}; it has {', '.join(names)}: rename one of them")
    return names


def _digest(name: str) -> str:
    with Path(name).open("rb") as file:
        return file_sha256(file)


# ---------------------------------------------------------------------------------------------- Parquet


def _parquet_rows(opened: Any, metadata: Any, wanted: WantedRows) -> Iterator[Located]:
    import pyarrow.parquet

    parquet = pyarrow.parquet.ParquetFile(opened.handle, metadata=metadata)
    names = parquet.schema_arrow.names
    present = [name for name in wanted.columns if name in names]
    first = 0
    for group, rows in enumerate(row_group_sizes(metadata)):
        if not wanted.filter.columns or wanted.filter.by_statistics(metadata.row_group(group)) is not False:
            batches = parquet.iter_batches(ROWS_AT_A_TIME, [group], present, use_threads=False)
            yield from _rows_of_batches(opened.name, batches, names, wanted, first)
        first += rows


def _rows_of_batches(
    file: str, batches: Iterator[Any], names: Sequence[str], wanted: WantedRows, number: int = 0
) -> Iterator[Located]:
    """Yield the rows of Arrow record batches; `names` are all columns of the file, `number` is the first row's."""
    while True:
        with damage_named(file):
            batch = next(batches, None)
        if batch is None:
            return
        named = zip(batch.schema.names, batch.columns, strict=True)  # by number: a name may be repeated
        present = [(name, column) for name, column in named if name in wanted.columns]
        values = [_values(column, name in wanted.tokens) for name, column in present]
        for row in zip(*values, strict=True) if values else [()] * batch.num_rows:
            found = {name: value for (name, _), value in zip(present, row, strict=True)}
            yield Located(f"{file}: row {number}", found, names, number=number)
            number += 1


def _values(column: Any, are_tokens: bool) -> list[Any]:
    import pyarrow

    if are_tokens and is_token_ids(column.type):
        return token_arrays(pyarrow.chunked_array([column]))
    return python_values(column)


# ---------------------------------------------------------------------------------------------- other kinds


class _Digested(io.RawIOBase):
    """A file whose bytes go into a sha256 as they are read."""

    def __init__(self, file: Any):
        self._file, self.digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        """Do nothing: the caller closes the file, and not the readers around this one."""


def _plain_rows(file: SourceFile, handle: Any, log: ReadLog, wanted: WantedRows) -> Iterator[Located]:
    raw = _Digested(handle)
    read = partial(_arrow, wanted=wanted) if file.kind == "Arrow" else _READERS[file.kind]
    with damage_named(file.name):
        yield from read(file.name, unpacked(file.name, io.BufferedReader(raw, READ_AHEAD)))
        while raw.read(READ_AHEAD):  # bytes after the end of a compressed file
            pass
    log.finish(file, f"sha256:{raw.digest.hexdigest()}")


def _json_lines(name: str, handle: io.BufferedReader) -> Iterator[Located]:
    yield from _json_rows(((f"{name}: line {number}", line) for number, line in enumerate(handle, 1)))


def _json_rows(lines: Iterable[tuple[str, bytes]]) -> Iterator[Located]:
    for where, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=no_key_twice)
        except (ValueError, RecursionError) as error:
            yield Located(where, {}, problem=DamagedData(f"{where} is not valid JSON: {error}"))
        else:
            yield _object(where, row)


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if a key is repeated."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is repeated")
    return value


def _object(where: str, row: Any) -> Located:
    if isinstance(row, dict):
        return Located(where, row)
    return Located(where, {}, problem=DamagedData(f"{where} is not a JSON object"))


def _json(name: str, handle: io.BufferedReader) -> Iterator[Located]:
    """Yield the rows of one list of objects, of one object, or of lines of objects."""
    head = next((line for line in handle if line.strip()), b"")
    if not isinstance(_parsed(head), dict):
        head += handle.read()
        if _parsed(head) is not None:
            try:
                value = json.loads(head, object_pairs_hook=no_key_twice)
            except ValueError as error:
                raise DamagedData(f"{name} is not valid JSON: {error}") from None
            rows = value if isinstance(value, list) else [value]
            yield from (_object(f"{name}: item {number}", row) for number, row in enumerate(rows))
            return
    lines = itertools.chain(io.BytesIO(head), handle)
    yield from _json_rows((f"{name}: row {number}", line) for number, line in enumerate(lines))


def _parsed(data: bytes) -> Any:
    """Return the value that is written as JSON, None if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _table(name: str, handle: io.BufferedReader, delimiter: str = ",") -> Iterator[Located]:
    """Yield the rows of CSV or TSV below its line of names. An empty field is an empty text.

    Raises DamagedData for quotes that are not closed, not doubled, or in a TSV perhaps part of a text.
    """
    csv.field_size_limit(sys.maxsize)
    taken: list[str] = []  # the lines of the row that is read
    rows = csv.reader(_noted(_characters(handle), taken), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        may_be_bare = delimiter == "\t" and not "".join(taken).startswith('"')
        taken.clear()
        for row in rows:
            where = f"{name}: line {rows.line_num}"
            if may_be_bare and _may_be_text(taken, len(names)):
                raise DamagedData(f"{where} has quotes that may belong to the text: {_QUOTES}")
            taken.clear()
            if len(row) == len(names):
                yield Located(where, dict(zip(names, row, strict=True)), names)
            elif row:
                problem = f"{where} has {len(row)} fields, its first line has {len(names)}"
                yield Located(where, {}, problem=DamagedData(problem))
    except csv.Error as error:
        where = f"{name}: the row that begins in line {rows.line_num - len(taken) + 1}"
        said = str(error).replace("\t", "tab")
        raise DamagedData(f"{where}: {said}: the file is cut, or its quotes are not those of CSV: {_QUOTES}") from None


def _noted(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _may_be_text(lines: Sequence[str], width: int) -> bool:
    """Return whether the quotes around a field of a TSV row may belong to its text.

    Writers that do not quote all fields, the names included, quote those with a quote, a tab or a line break, and empty
    ones. A field of several lines may be several rows if each line has the fields of a row.
    """
    row = "".join(lines).rstrip("\r\n")
    quoted = [found[1] for found in _FIELD.finditer(row) if found[1] is not None] if '"' in row else []
    if any(inner and not _NEEDS_QUOTES.search(inner) for inner in quoted):
        return True
    return len(lines) > 1 and all(line.count("\t") == width - 1 for line in lines)


def _lines(name: str, handle: io.BufferedReader) -> Iterator[Located]:
    for number, line in enumerate(_characters(handle, None), 1):
        yield Located(f"{name}: line {number}", {LINES: line.removesuffix("\n")})


def _arrow(name: str, handle: io.BufferedReader, wanted: WantedRows) -> Iterator[Located]:
    """Yield the rows of an Arrow stream, or of an Arrow file: a stream between a mark and a footer."""
    import pyarrow

    is_file = handle.peek(len(ARROW_MARK))[: len(ARROW_MARK)] == ARROW_MARK
    if is_file:
        handle.read(8)
    noted = _EndNoted(handle)
    with pyarrow.ipc.open_stream(noted) as stream:
        yield from _rows_of_batches(name, iter(stream), stream.schema.names, wanted)
    if noted.at_end:  # Arrow takes the end of the bytes as that of the stream
        raise DamagedData(f"{name} has no mark of its end: it is cut, or its writer was not closed; make it again")
    count, tail = 0, b""
    while data := handle.read(READ_AHEAD):
        count, tail = count + len(data), (tail + data)[-4 - len(ARROW_MARK) :]
    footer = int.from_bytes(tail[:4], "little") + 4 + len(ARROW_MARK)
    if not (tail[4:] == ARROW_MARK and count == footer) if is_file else count:
        expected = "a footer" if is_file else "none"
        raise DamagedData(f"{name} has {count:,} bytes behind its rows, not {expected}: it is cut, or is several files")


class _EndNoted(io.BufferedIOBase):
    """A file that notes whether it was read beyond its end."""

    def __init__(self, file: io.BufferedReader):
        self._file, self.at_end = file, False

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(size)
        self.at_end |= size is None or size < 0 or len(data) < size
        return data


def _characters(handle: io.BufferedReader, newline: str | None = "") -> io.TextIOWrapper:
    """Return a text file; bytes that are not UTF-8 become surrogates, so that `checked_text` can name their row."""
    return io.TextIOWrapper(handle, "utf-8-sig", errors="surrogateescape", newline=newline)


_READERS = {"JSONL": _json_lines, "JSON": _json, "CSV": _table, "TSV": partial(_table, delimiter="\t"), "text": _lines}
