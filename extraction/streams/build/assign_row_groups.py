"""Streams by reference: runs of row groups of the source's Parquet files, which are not copied.

In: the footers of the source's files, in order. Out: the published manifest. Guarantee: the streams are disjoint, hold
every record of the source (or of the requested part), and are the same for the same source; each is a
contiguous run of row groups, or of blocks of large row groups, as many as any other stream or one more. Cost: one
write; a few numbers for each row group in memory.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...storage import Storage
from ..columns import columns_of
from ..manifest import ParquetFacts, Piece, StreamEntry
from ..stream import Stream
from .publish import Origin, Published, manifest_of, publish_manifest, published_before, stream_entry

LARGE_ROWS = 4096  # a row group with more rows is cut
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class FileGroups:
    """A file and its row groups: int64 arrays of `rows` and of how many of them are `records`, one for each group.

    `tokens` are those of a group's records, where tokens are counted. `unclear` (bool) marks groups whose footer
    leaves open that every text and id can be read.
    """

    facts: ParquetFacts
    rows: np.ndarray
    records: np.ndarray
    unclear: np.ndarray
    tokens: np.ndarray | None = None


def publish_references(
    storage: Storage, origin: Origin, files: Sequence[FileGroups], num_streams: int, shuffle: int | None = None
) -> Published:
    """Publish streams that point into the source's files. Raises OtherStreams for other streams in the output.

    `shuffle` is the seed of another order of the row groups, and of the blocks that large ones are cut into.
    """
    facts = [file.facts for file in files]
    streams = [_entry(pieces, facts, origin) for pieces in cut(files, num_streams, shuffle)]
    manifest = manifest_of(origin, facts, streams)
    return published_before(storage, manifest) or publish_manifest(storage, manifest)


def cut(files: Sequence[FileGroups], num_streams: int, shuffle: int | None = None) -> list[list[Piece]]:
    """Return the pieces of each stream; consecutive blocks whose rows are all records make one piece."""
    blocks = np.concatenate([np.zeros((0, 5), np.int64), *(_blocks(number, file) for number, file in enumerate(files))])
    if shuffle is not None:
        blocks = blocks[np.argsort(np.random.PCG64(shuffle).random_raw(len(blocks)), kind="stable")]
    bounds = [len(blocks) * stream // num_streams for stream in range(num_streams + 1)]
    group_rows = [file.rows for file in files]
    return [_joined(blocks[first:last].tolist(), group_rows) for first, last in itertools.pairwise(bounds)]


def _blocks(number: int, file: FileGroups) -> np.ndarray:
    """Return int64 [n, 5], the fields of a `Piece` for each row group with records; large ones are cut.

    Row groups in which only some rows are records are not cut: their footer does not say where these are.
    """
    kept = np.flatnonzero(file.records)
    rows, records = file.rows[kept], file.records[kept]
    is_cut = (rows == records) & (rows > LARGE_ROWS)
    parts = np.where(is_cut, -(-rows // BLOCK_ROWS), 1)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # its number in its row group
    rows, records, parts, kept = (np.repeat(values, parts) for values in (rows, records, parts, kept))
    first = rows * part // parts
    size = rows * (part + 1) // parts - first
    return np.stack([np.full(len(part), number), kept, first, size, np.where(parts > 1, size, records)], axis=1)


def _joined(blocks: Sequence[Sequence[int]], group_rows: Sequence[np.ndarray]) -> list[Piece]:
    """Return blocks as pieces: a run of consecutive blocks, whose rows are all records, as one."""
    pieces: list[Piece] = []
    group, end = -1, -1  # the row group and the row that the last piece ends at
    for block in map(Piece._make, blocks):
        last = pieces[-1] if pieces else block
        is_whole = (
            bool(pieces) and last.file == block.file and last.records == last.rows and block.records == block.rows
        )
        goes_on = (block.row_group, block.first_row) == (group, end)
        begins = (block.row_group, block.first_row) == (group + 1, 0)
        if is_whole and (goes_on or (begins and end == group_rows[block.file][group])):
            pieces[-1] = last._replace(rows=last.rows + block.rows, records=last.records + block.records)
        else:
            pieces.append(block)
        group, end = block.row_group, block.first_row + block.rows
    return pieces


def whole_stream(files: Sequence[FileGroups], options: dict[str, Any]) -> Stream:
    """Return all records of some files as one stream, without a manifest in a folder."""
    (pieces,), facts = cut(files, 1), [file.facts for file in files]
    entry = stream_entry(pieces, "")
    return Stream(manifest_of(Origin("", "", options=options), facts, [entry]), None, 0)


def _entry(pieces: Sequence[Piece], files: Sequence[ParquetFacts], origin: Origin) -> StreamEntry:
    """Return the entry of a stream; its digest covers rows, their files, the filter and the columns of a record."""
    decides = [origin.options.get("filter"), columns_of(origin.options).to_json()]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for number, mine in itertools.groupby(pieces, lambda piece: piece.file):
        digest.update(json.dumps(files[number].to_json(), sort_keys=True).encode())
        for piece in mine:
            digest.update(json.dumps(piece.to_json()[1:]).encode())
    return stream_entry(pieces, f"sha256:{digest.hexdigest()}")
