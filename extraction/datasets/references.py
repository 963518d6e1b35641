"""Streams by reference: runs of row groups of Parquet files that stay where they lie.

In: the footers of the source's files, in order. Out: the published manifest. Guarantee: the streams are disjoint, hold
every record of the source (or of the part of it that was asked for), and are the same for the same source; each is a
contiguous run of row groups, as many as any other stream or one more. Cost: one write; a few numbers for each row group
in memory.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..manifest import ParquetFacts, Piece, StreamEntry
from ..storage import Storage
from .publish import Origin, Published, manifest_of, publish_manifest, published_before, stream_entry


@dataclass(frozen=True)
class FileGroups:
    """A file and its row groups: int64 arrays of `rows` and of how many of them are `records`, one for each group.

    `tokens` are those of a group's records, where tokens are counted.
    """

    facts: ParquetFacts
    rows: np.ndarray
    records: np.ndarray
    tokens: np.ndarray | None = None


def publish_references(storage: Storage, origin: Origin, files: Sequence[FileGroups], num_streams: int) -> Published:
    """Publish streams that point into the source's files. Raises OtherStreams when others are there."""
    facts = [file.facts for file in files]
    streams = [_entry(pieces, facts, origin) for pieces in cut(files, num_streams)]
    manifest = manifest_of(origin, facts, streams)
    return published_before(storage, manifest) or publish_manifest(storage, manifest)


def cut(files: Sequence[FileGroups], num_streams: int) -> list[list[Piece]]:
    """The pieces of each stream; row groups that follow one another and are records throughout make one piece."""
    sizes = [len(file.rows) for file in files]
    rows = np.concatenate([file.rows for file in files] or [np.zeros(0, np.int64)])
    records = np.concatenate([file.records for file in files] or [np.zeros(0, np.int64)])
    number = np.repeat(np.arange(len(files)), sizes)
    group = np.concatenate([np.arange(size) for size in sizes] or [np.zeros(0, np.int64)])
    begin = np.cumsum(rows) - rows
    kept = np.flatnonzero(records)
    rows, records, number, group, begin = (values[kept] for values in (rows, records, number, group, begin))

    bounds = [len(kept) * stream // num_streams for stream in range(num_streams + 1)]
    whole = records == rows
    joined = np.zeros(len(kept), bool)  # whether a row group belongs to the same piece as the one before it
    joined[1:] = whole[1:] & whole[:-1] & (number[1:] == number[:-1]) & (begin[1:] == (begin + rows)[:-1])
    joined[[bound for bound in bounds if bound < len(kept)]] = False
    first = np.flatnonzero(~joined)
    totals = (np.add.reduceat(values, first) if len(first) else values for values in (rows, records))
    columns = (number[first], group[first], np.zeros(len(first), np.int64), *totals)
    pieces = [Piece(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]
    ends = np.searchsorted(first, bounds)
    return [pieces[one:other] for one, other in itertools.pairwise(ends)]


def _entry(pieces: Sequence[Piece], files: Sequence[ParquetFacts], origin: Origin) -> StreamEntry:
    """The digest covers the rows, the files they are of, and the filter."""
    digest = hashlib.sha256(json.dumps(origin.options.get("filter"), sort_keys=True).encode())
    for number, mine in itertools.groupby(pieces, lambda piece: piece.file):
        digest.update(json.dumps(files[number].to_json(), sort_keys=True).encode())
        for piece in mine:
            digest.update(json.dumps(piece.to_json()[1:]).encode())
    return stream_entry(pieces, f"sha256:{digest.hexdigest()}")
