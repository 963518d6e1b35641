"""Small Parquet files for tests, whose documents are functions of their numbers."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream


def id_of(number: int) -> str:
    return f"<urn:doc:{number}>"


def text_of(number: int) -> str:
    return f"This is what document {number} says. " * (number % 4)


def write_parquet(path: Path, groups: Iterable[pa.Table | Sequence[int]], statistics: bool = True) -> Path:
    """A Parquet file with one row group for each table, or for each run of document numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema({"text": pa.string(), "id": pa.string(), "token_count": pa.int64()})
    with pq.ParquetWriter(path, schema, write_page_checksum=True, write_statistics=statistics) as writer:
        for group in groups:
            writer.write_table(group if isinstance(group, pa.Table) else table_of(group))
    return path


def table_of(numbers: Sequence[int]) -> pa.Table:
    columns = {"text": [text_of(n) for n in numbers], "id": [id_of(n) for n in numbers], "token_count": list(numbers)}
    return pa.table([pa.array(columns["text"], pa.string()), pa.array(columns["id"], pa.string()),
                     pa.array(columns["token_count"], pa.int64())], names=list(columns))  # fmt: skip


def write_corpus(folder: Path, files: Sequence[Sequence[int]]) -> int:
    """Files with row groups of the given sizes, documents numbered through; returns how many documents."""
    shutil.rmtree(folder, ignore_errors=True)
    number = 0
    for name, sizes in enumerate(files):
        starts = [number + sum(sizes[:group]) for group in range(len(sizes))]
        groups = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        write_parquet(folder / f"{name:03d}.parquet", groups)
        number += sum(sizes)
    return number


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of modification of every file: equal snapshots mean that nothing was touched."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in snapshot(folder).items()}


def read_all(location: object) -> list[list[tuple[str, str]]]:
    """(id, text) of all records, by stream, each checked to be numbered from 0."""
    manifest = load_manifest(location)
    streams = []
    for index in range(manifest.num_streams):
        records = list(open_stream(manifest, location, index).read_records())
        assert [record.index for record in records] == list(range(len(records)))
        assert len(records) == manifest.streams[index].num_records
        streams.append([(record.id, record.text) for record in records])
    return streams


def documents(numbers: Iterable[int]) -> list[tuple[str, str]]:
    return [(id_of(n), text_of(n)) for n in numbers]


def column_chunks(path: Path) -> Iterator[tuple[int, str, int, int]]:
    """(row group, column name, begin, end) of all column chunks of a file."""
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            begin = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
            yield group, chunk.path_in_schema, begin, begin + chunk.total_compressed_size
