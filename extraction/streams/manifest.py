"""The manifest of a set of streams: their files and rows, pinned.

In: the bytes of a `manifest.json`. Out: `Manifest`. A stream is always a list of pieces (runs of rows) of Parquet
files: of materialised files next to the manifest, or of the source's own files. The manifest holds no text; its size
follows the number of files, and of row groups where rows are left out or content is pinned by row group (about 11 bytes
for each column of each).

Guarantee: a manifest was checked field by field. Its streams hold no row twice and, unless it records that a part of
the source was requested, every row of every file. Cost: one pass over its entries.
"""

import itertools
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from ..core import strict_json
from ..core.errors import DamagedData
from ..format.digests import digest_of
from .columns import columns_of
from .row_filter import RowFilter, for_ids, parse_filter

SCHEMA = 2
MANIFEST_NAME = "manifest.json"
PARTS = ("filter", "max_records", "max_tokens")  # options that leave rows of the source out
_MOST = (1 << 63) - 1


@dataclass(frozen=True)
class ParquetFacts:
    """A Parquet file as pinned: size in bytes, rows, and the sha256 of its footer, which describes all its pages.

    `etag` is the store's checksum or tag of the whole content, or None where a store has none. Without an etag,
    `content` pins the file: {column: the crc32c of its bytes in each row group}, None for a row group that no stream
    needs. `skipped` lists (row group, row in it), in order, of the rows that are no records since they are unreadable.
    """

    name: str
    size: int
    num_rows: int
    footer: str
    etag: str | None = None
    content: Mapping[str, tuple[int | None, ...]] | None = None
    skipped: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of a manifest; empty fields are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ()}

    def skipped_in(self, row_group: int) -> list[int]:
        """Return the rows of a row group that are left out because they cannot be read."""
        first, last = (bisect_left(self.skipped, (group, 0)) for group in (row_group, row_group + 1))
        return [row for _, row in self.skipped[first:last]]


class Piece(NamedTuple):
    """`rows` rows from `first_row` of row group `row_group` on, in file number `file` of the manifest.

    `records` of them are records. Where all are, the rows may continue in the following row groups; where some are
    not, they are of one row group, so that the manifest alone gives the row group of record k.
    """

    file: int
    row_group: int
    first_row: int
    rows: int
    records: int

    def to_json(self) -> list[int]:
        """Return the JSON of a manifest: four numbers, and the records as the fifth where they are fewer."""
        return list(self[:4] if self.records == self.rows else self)


@dataclass(frozen=True)
class StreamEntry:
    """The manifest's entry of one stream. The digest covers everything that its records are made of."""

    num_records: int
    digest: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """A set of streams, pinned. `digest` is the sha256 of the manifest's own bytes.

    Extended streams have several `parts`, whose files, streams and counts are joined here; `digest` is that of the last
    part, and the options are those of the first. A piece names a file of its own part.
    """

    dataset: str
    source: str
    revision: str | None
    options: Mapping[str, Any]
    num_streams: int
    num_records: int
    files: tuple[ParquetFacts, ...]
    streams: tuple[StreamEntry, ...]
    digest: str
    parts: tuple["StreamsPart", ...] = ()

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the streams as they were at first and after each extension; the last one is `digest`."""
        return tuple(part.digest for part in self.parts) or (self.digest,)

    @property
    def filter(self) -> RowFilter:
        """The rows of the pieces that are records."""
        return for_ids(parse_filter(self.options.get("filter", {}), "the manifest"), columns_of(self.options).id)

    @property
    def is_part(self) -> bool:
        """Whether rows of the source were left out on purpose."""
        return any(name in self.options for name in PARTS) or any(file.skipped for file in self.files)


class StreamsPart(NamedTuple):
    """Streams that were added in one step: the manifest in `folder`, "" for the first ones.

    `digest` covers these streams and all before them.
    """

    folder: str
    manifest: Manifest
    digest: str


def canonical_json(value: object) -> bytes:
    """Return one line of JSON that is the same bytes for equal values."""
    return (json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()


# ---------------------------------------------------------------------------------------------- the manifest


class _Fields:
    """Reads typed fields of one JSON object; an error names the manifest, the field and the problem."""

    def __init__(self, where: str, path: str, value: object) -> None:
        self.where, self.path = where, path
        if not isinstance(value, dict):
            raise self.wrong("", "is not an object")
        self.value: dict[str, Any] = value

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
        if not 0 <= number <= _MOST:
            raise self.wrong(key, f"is {number}, below zero" if number < 0 else "is more than can be counted")
        return number

    def digest(self, key: str) -> str:
        text = self.text(key)
        if len(text) != 71 or not text.startswith("sha256:") or set(text[7:]) - set("0123456789abcdef"):
            raise self.wrong(key, "is not sha256: and 64 hexadecimal digits")
        return text

    def objects(self, key: str) -> Iterator["_Fields"]:
        for number, value in enumerate(self.typed(key, list, "a list")):
            yield _Fields(self.where, f"{self.path}.{key}[{number}]".strip("."), value)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse the bytes of a manifest; `where` names it in messages. Raises DamagedData naming the field."""
    try:
        value = strict_json.loads(data)
    except ValueError as error:
        raise DamagedData(f"{where} is not JSON: {error}") from None
    top = _Fields(where, "", value)
    if (schema := top.count("schema")) != SCHEMA:
        raise top.wrong("schema", f"is {schema}; this version reads schema {SCHEMA}: make the streams again")
    files = tuple(_parse_file(fields) for fields in top.objects("files"))
    manifest = Manifest(
        dataset=top.text("dataset"),
        source=top.text("source"),
        revision=None if top.value.get("revision", "") is None else top.text("revision"),
        options=_parse_options(top),
        num_streams=top.count("num_streams"),
        num_records=top.count("num_records"),
        files=files,
        streams=tuple(_parse_stream(fields, len(files)) for fields in top.objects("streams")),
        digest=digest_of(data),
    )
    _check_whole(manifest, top)
    return manifest


def _parse_options(top: _Fields) -> dict[str, Any]:
    options = top.typed("options", dict, "an object")
    if "filter" in options:
        parse_filter(_Fields(top.where, "options.filter", options["filter"]).value, top.where)
    if "skipped" in options:
        skipped = _Fields(top.where, "options.skipped", options["skipped"])
        skipped.count("count")
        if not all(isinstance(place, str) for place in skipped.typed("first", list, "a list")):
            raise skipped.wrong("first", "is not a list of strings")
    return options


def _parse_file(fields: _Fields) -> ParquetFacts:
    name = fields.text("name")
    if "\0" in name or (not is_outside(name) and not {"", ".", ".."}.isdisjoint(name.split("/"))):
        raise fields.wrong("name", f"is {name!r}: not a name inside the streams folder, an absolute path or a URL")
    etag = fields.text("etag") if "etag" in fields.value else None
    content = _parse_content(fields) if "content" in fields.value else None
    if etag is None and content is None:
        raise fields.wrong("", "has neither etag nor content: nothing pins the content of the file")
    facts = ParquetFacts(name, fields.count("size"), fields.count("num_rows"), fields.digest("footer"), etag, content)
    return replace(facts, skipped=_parse_skipped(fields)) if "skipped" in fields.value else facts


def _parse_content(fields: _Fields) -> dict[str, tuple[int | None, ...]]:
    content = fields.typed("content", dict, "an object")
    for column, values in content.items():
        if type(values) is not list or not all(v is None or (type(v) is int and 0 <= v < 1 << 32) for v in values):
            raise fields.wrong(f"content.{column}", "is not a list of crc32c's")
    if len({len(values) for values in content.values()}) > 1:
        raise fields.wrong("content", "has lists of different lengths")
    return {column: tuple(values) for column, values in content.items()}


def _parse_skipped(fields: _Fields) -> tuple[tuple[int, int], ...]:
    pairs = fields.typed("skipped", list, "a list")
    if not all(type(pair) is list and [type(part) for part in pair] == [int] * 2 and min(pair) >= 0 for pair in pairs):
        raise fields.wrong("skipped", "is not a list of [row group, row]")
    skipped = tuple((group, row) for group, row in pairs)
    if any(one >= other for one, other in itertools.pairwise(skipped)):
        raise fields.wrong("skipped", "is not in order")
    return skipped


def _parse_stream(fields: _Fields, num_files: int) -> StreamEntry:
    pieces = []
    for number, value in enumerate(fields.typed("pieces", list, "a list")):
        key = f"pieces[{number}]"
        if type(value) is not list or [type(part) for part in value] not in ([int] * 4, [int] * 5):
            raise fields.wrong(key, "is not [file, row group, first row, rows]")
        file, row_group, first_row, rows = value[:4]
        piece = Piece(file, row_group, first_row, rows, records=value[4] if len(value) == 5 else rows)
        counts = min(piece) >= 0 and max(piece) <= _MOST and 0 < piece.records <= piece.rows
        if not counts or piece.file >= num_files:
            what = "negative, empty, too large or of a file that is not listed"
            raise fields.wrong(key, f"is {str(value)[:100]}: {what}")
        pieces.append(piece)
    entry = StreamEntry(fields.count("num_records"), fields.digest("digest"), tuple(pieces))
    if entry.num_records != sum(piece.records for piece in pieces):
        raise fields.wrong("num_records", "is not the sum of the records of its pieces")
    return entry


def _check_whole(manifest: Manifest, top: _Fields) -> None:
    """Raise DamagedData unless the streams have every row of every file once; of a part of a source, no row twice."""
    if manifest.num_streams != len(manifest.streams):
        raise top.wrong("num_streams", f"is {manifest.num_streams}, but {len(manifest.streams)} streams are listed")
    rows = [0] * len(manifest.files)
    pieces = sorted(piece for stream in manifest.streams for piece in stream.pieces)
    for piece in pieces:
        rows[piece.file] += piece.rows
    for one, other in itertools.pairwise(pieces):
        if one[:2] == other[:2] and one.first_row + one.rows > other.first_row:
            raise top.wrong("streams", f"hold rows twice: {one.to_json()} and {other.to_json()}")
    for number, (file, held) in enumerate(zip(manifest.files, rows, strict=True)):
        if held > file.num_rows or (held < file.num_rows and not manifest.is_part):
            raise top.wrong(f"files[{number}].num_rows", f"is {file.num_rows}, but the streams hold {held} of them")
    if manifest.num_records != (held := sum(stream.num_records for stream in manifest.streams)):
        raise top.wrong("num_records", f"is {manifest.num_records}, but the streams hold {held}")


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest, whose sha256 is its digest."""
    streams = [
        {
            "num_records": stream.num_records,
            "digest": stream.digest,
            "pieces": [piece.to_json() for piece in stream.pieces],
        }
        for stream in manifest.streams
    ]
    files = [file.to_json() for file in manifest.files]
    names = ("dataset", "source", "revision", "options", "num_streams", "num_records")
    return canonical_json(
        {"schema": SCHEMA, "files": files, "streams": streams} | {n: getattr(manifest, n) for n in names}
    )


def is_outside(name: str) -> bool:
    """Return whether a file name of a manifest is absolute or a URL, and not relative to the streams folder."""
    return name.startswith("/") or "://" in name
