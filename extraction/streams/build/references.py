"""Streams by reference: runs of row groups of the source's Parquet files, which are not copied.

In: the footers of the source's files, in order. Out: the published manifest. Guarantee: the streams are disjoint, hold
every record of the source (or of the requested part), and are the same for the same source; each is a
contiguous run of row groups, as many as any other stream or one more. Cost: one write; a few numbers for each row group
in memory.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...storage import Storage
from ..columns import columns_of
from ..manifest import ParquetFacts, Piece, StreamEntry
from .publish import Origin, Published, manifest_of, publish_manifest, published_before, stream_entry


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


def publish_references(storage: Storage, origin: Origin, files: Sequence[FileGroups], num_streams: int) -> Published:
    """Publish streams that point into the source's files. Raises OtherStreams for other streams in the output."""
    facts = [file.facts for file in files]
    streams = [_entry(pieces, facts, origin) for pieces in cut(files, num_streams)]
    manifest = manifest_of(origin, facts, streams)
    return published_before(storage, manifest) or publish_manifest(storage, manifest)


def cut(files: Sequence[FileGroups], num_streams: int) -> list[list[Piece]]:
    """Return the pieces of each stream; consecutive row groups whose rows are all records make one piece."""
    total = sum(int(np.count_nonzero(file.records)) for file in files)
    starts = np.array([total * stream // num_streams for stream in range(num_streams)])
    streams: list[list[Piece]] = [[] for _ in range(num_streams)]
    done = 0
    for number, file in enumerate(files):
        kept = np.flatnonzero(file.records)
        owner = np.searchsorted(starts, done + np.arange(len(kept)), side="right") - 1
        for first, rows, records in _runs(file, kept, owner):
            streams[owner[first]].append(Piece(number, int(kept[first]), 0, rows, records))
        done += len(kept)
    return streams


def _runs(file: FileGroups, kept: np.ndarray, owner: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (first row group, rows, records) of each run of `kept` row groups that makes one piece."""
    end = np.cumsum(file.rows)[kept]
    rows, records = file.rows[kept], file.records[kept]
    whole = records == rows
    joined = whole[1:] & whole[:-1] & (owner[1:] == owner[:-1]) & (end[1:] - rows[1:] == end[:-1])
    first = np.flatnonzero(np.append(True, ~joined)[: len(kept)])
    if len(first):
        totals = (np.add.reduceat(values, first).tolist() for values in (rows, records))
        yield from zip(first.tolist(), *totals, strict=True)


def _entry(pieces: Sequence[Piece], files: Sequence[ParquetFacts], origin: Origin) -> StreamEntry:
    """Return the entry of a stream; its digest covers rows, their files, the filter and the columns of a record."""
    decides = [origin.options.get("filter"), columns_of(origin.options).to_json()]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for number, mine in itertools.groupby(pieces, lambda piece: piece.file):
        digest.update(json.dumps(files[number].to_json(), sort_keys=True).encode())
        for piece in mine:
            digest.update(json.dumps(piece.to_json()[1:]).encode())
    return stream_entry(pieces, f"sha256:{digest.hexdigest()}")
