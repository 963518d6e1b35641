"""What all datasets share: cutting a source into streams, writing stream files, publishing the manifest.

In: where the records come from (`Origin`) and either the footers of Parquet files (by reference) or numbered rows
(materialised). Out: `manifest.json`, and stream files when materialised, in the output folder; see `Published`.

Guarantee: the streams are disjoint, cover the source, and are the same bytes for the same inputs. The manifest is
written last and create-only, so a folder with a manifest is complete. What is already there is checked before the
first write: the same streams are left as they are, others are refused and nothing is touched.

Cost: by reference one manifest is written and no record is read. Materialised, one stream file is in memory at a time.
"""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InvalidRequest, ObjectExists, ObjectNotFound
from ..storage import Storage
from ..streams import (
    MANIFEST_NAME,
    SCHEMA,
    Manifest,
    ParquetFacts,
    Piece,
    StreamEntry,
    canonical_json,
    parse_manifest,
    read_footer,
    sha256,
)

if TYPE_CHECKING:
    import pyarrow.parquet

ROWS_PER_GROUP = 1000


class OtherStreams(InvalidRequest):
    """The output folder already holds other streams than those asked for. Nothing was written."""


@dataclass(frozen=True)
class Origin:
    """What the streams are made from. `options` holds whatever else decides their content."""

    dataset: str
    source: str
    revision: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """The manifest in the output folder, and whether it was there before this call."""

    manifest: Manifest
    already_there: bool


class Row(NamedTuple):
    """One row of a stream file; `meta` is JSON or None."""

    id: str
    text: str
    meta: str | None = None


# ---------------------------------------------------------------------------------------------- by reference


def publish_references(
    storage: Storage, origin: Origin, files: Sequence[tuple[ParquetFacts, Sequence[int]]], num_streams: int
) -> Published:
    """Publish streams that point into the source's files, each given with the rows of its row groups.

    Each stream is a contiguous run of row groups, as many as any other stream or one more.
    """
    pieces = [
        Piece(number, group, 0, rows)
        for number, (_, sizes) in enumerate(files)
        for group, rows in enumerate(sizes)
        if rows
    ]
    bounds = [len(pieces) * stream // num_streams for stream in range(num_streams + 1)]
    streams = []
    for begin, end in itertools.pairwise(bounds):
        mine = pieces[begin:end]
        digest = sha256(canonical_json([[asdict(files[piece.file][0]), *piece[1:]] for piece in mine]))
        streams.append(_stream_entry(mine, digest))
    manifest = _manifest(origin, [facts for facts, _ in files], streams)
    return _published_before(storage, manifest) or _publish_manifest(storage, manifest)


# ---------------------------------------------------------------------------------------------- materialised


def publish_rows(
    storage: Storage, origin: Origin, num_rows: int, row: Callable[[int], Row], num_streams: int
) -> Published:
    """Publish streams as files of our own: row i goes to stream i mod `num_streams`.

    `row(i)` gives row i, the same each time. What an interrupted call left behind is completed. Every file is made
    twice, once to compare with what is there and once to be written, so that only one is in memory at a time.
    """

    def stream_file(stream: int) -> tuple[str, bytes]:
        rows = (row(number) for number in range(stream, num_rows, num_streams))
        return f"stream-{stream:05d}.parquet", encode_rows(rows)

    files, streams = [], []
    for stream in range(num_streams):
        name, data = stream_file(stream)
        facts, metadata = read_footer(io.BytesIO(data), name)
        files.append(facts)
        sizes = enumerate(row_group_sizes(metadata))
        streams.append(_stream_entry([Piece(stream, group, 0, rows) for group, rows in sizes], sha256(data)))
    manifest = _manifest(origin, files, streams)
    if published := _published_before(storage, manifest):
        return published
    left = _leftovers(storage, manifest)
    for stream in range(num_streams):
        if files[stream].name not in left:
            _create(storage, *stream_file(stream))
    return _publish_manifest(storage, manifest)


def encode_rows(rows: Iterator[Row]) -> bytes:
    """Rows as the bytes of a Parquet file with checksummed pages and small row groups."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in Row._fields])
    sink = io.BytesIO()
    with pyarrow.parquet.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        while chunk := list(itertools.islice(rows, ROWS_PER_GROUP)):
            columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*chunk, strict=True)]
            writer.write_table(pyarrow.table(columns, schema=schema), row_group_size=ROWS_PER_GROUP)
    return sink.getvalue()


def _leftovers(storage: Storage, manifest: Manifest) -> set[str]:
    """Names of stream files that an interrupted call left here. Raises OtherStreams when one is not of this manifest."""
    digests = {file.name: stream.digest for file, stream in zip(manifest.files, manifest.streams, strict=True)}
    found = {info.name for info in storage.list("stream-")}
    for name in sorted(found):
        if name not in digests or sha256(storage.read(name)) != digests[name]:
            raise OtherStreams(f"the output holds {name} of other streams, which were never finished")
    return found


# ---------------------------------------------------------------------------------------------- the manifest


def row_group_sizes(metadata: "pyarrow.parquet.FileMetaData") -> list[int]:
    """The rows of each row group."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _stream_entry(pieces: Sequence[Piece], digest: str) -> StreamEntry:
    return StreamEntry(sum(piece.rows for piece in pieces), digest, tuple(pieces))


def _manifest(origin: Origin, files: Sequence[ParquetFacts], streams: Sequence[StreamEntry]) -> Manifest:
    num_records = sum(stream.num_records for stream in streams)
    draft = Manifest(**asdict(origin), num_streams=len(streams), num_records=num_records, files=tuple(files),
                     streams=tuple(streams), digest="")  # fmt: skip
    return replace(draft, digest=sha256(encode_manifest(draft)))


def _published_before(storage: Storage, manifest: Manifest) -> Published | None:
    """The manifest that is there, when it says the same. Raises OtherStreams when it says something else."""
    try:
        data = storage.read(MANIFEST_NAME)
    except ObjectNotFound:
        return None
    there = parse_manifest(data, MANIFEST_NAME)
    if differences := list(_differences(there, manifest)):
        raise OtherStreams(f"the output already holds other streams: {'; '.join(differences)}")
    return Published(there, already_there=True)


def _differences(there: Manifest, asked: Manifest) -> Iterator[str]:
    for name in ("dataset", "source", "revision", "options", "num_streams", "num_records"):
        old, new = getattr(there, name), getattr(asked, name)
        if old != new:
            yield f"{name} {json.dumps(old)} there, {json.dumps(new)} asked"
    for old, new in itertools.zip_longest(there.files, asked.files):
        if old != new:
            yield f"the file {(old or new).name} differs"
            return
    if there.num_streams == asked.num_streams and there.streams != asked.streams:
        yield "the streams are cut differently"


def _publish_manifest(storage: Storage, manifest: Manifest) -> Published:
    _create(storage, MANIFEST_NAME, encode_manifest(manifest))
    return Published(manifest, already_there=False)


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest, whose sha256 is its digest."""
    body = asdict(manifest) | {"schema": SCHEMA}
    del body["digest"]
    return canonical_json(body)


def _create(storage: Storage, name: str, data: bytes) -> None:
    try:
        storage.create(name, data)
    except ObjectExists:
        raise OtherStreams(f"somebody else wrote {name} with other content to the output at the same time") from None
