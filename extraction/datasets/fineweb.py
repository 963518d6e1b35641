"""FineWeb and any Parquet with its columns: a folder, a file or a glob -> streams by reference.

In: Parquet files with `text` and `id`. Out: a manifest whose streams are contiguous runs of row groups. Cost: one footer
read for each file; nothing is copied and no text is read.
"""

import glob
from pathlib import Path

from ..errors import DamagedData, InvalidRequest
from ..storage import Storage
from ..streams import open_file
from . import Origin, Published, parquet_facts, publish_references

COLUMNS = ("id", "text")


def source_files(source: str) -> list[str]:
    """The Parquet files of a source as absolute paths, sorted. Raises InvalidRequest if there is none."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = [str(file) for file in path.rglob("*.parquet")]
    else:
        found = glob.glob(str(path), recursive=True)
    if not found:
        raise InvalidRequest(f"--source {source}: no Parquet file there")
    return sorted(str(Path(file).resolve()) for file in found)


def create_streams(source: str, num_streams: int, output: Storage) -> Published:
    """Cut the files of `source` into streams by reference. Raises InvalidRequest, DamagedData naming the file."""
    files, groups = [], []
    for name in source_files(source):
        with open_file(name) as handle:
            facts, sizes = parquet_facts(handle, name)
            _check_columns(handle, name)
        files.append(facts)
        groups.append(sizes)
    root = Path(source).expanduser()
    return publish_references(output, Origin("fineweb", str(root.resolve())), files, groups, num_streams)


def _check_columns(handle: object, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_schema(handle).names
    except pyarrow.ArrowException as error:
        raise DamagedData(f"{name}: its schema cannot be read: {error}") from error
    for column in COLUMNS:
        if column not in columns:
            raise InvalidRequest(f"{name} has no column {column!r}; it has {', '.join(columns)}")
