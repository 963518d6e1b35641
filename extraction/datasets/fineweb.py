"""FineWeb, or any Parquet with `id` and `text`: streams by reference into the files where they lie.

In: a local folder (searched with its subfolders, but not what is named .hidden or _hidden), one file, or a glob. Out:
the published manifest; no record is copied. Files go by the order of their names, and streams are contiguous runs of
row groups.

Guarantee: the manifest pins each file by size and footer. Cost: one footer read for each file.
"""

import glob
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..storage import Storage
from ..streams import ParquetFacts, damage_named, open_file, read_footer
from . import Origin, Published, publish_references, row_group_sizes

COLUMNS = ("id", "text")


def create(storage: Storage, source: str, num_streams: int) -> Published:
    """Publish `num_streams` streams over the Parquet files at `source`.

    Raises InvalidRequest when there are no files or no such columns, DamagedData when a file is cut or not Parquet.
    """
    place, names = find_files(source)
    return publish_references(storage, Origin("fineweb", place), [inspect(name) for name in names], num_streams)


def find_files(source: str) -> tuple[str, list[str]]:
    """The source and its Parquet files as absolute names, the same however the source was spelled.

    Raises InvalidRequest when there are none.
    """
    if "://" in source:
        raise InvalidRequest(f"{source}: give a local folder, file or glob; other places cannot be read from yet")
    path = Path(source).expanduser()
    if path.is_dir():
        place = path.resolve()
        found = [file for file in place.rglob("*.parquet") if not _hidden(file.relative_to(place))]
    else:
        place = _resolved(path)
        found = [path] if path.exists() else [Path(name) for name in glob.glob(str(path), recursive=True)]
    # The folder is resolved but not the file: in a download cache files are links to names without order or suffix.
    names = sorted({str(file.parent.resolve() / file.name) for file in found if not file.is_dir()})
    if not names:
        raise InvalidRequest(f"{source}: no Parquet file there (a folder is searched for *.parquet)")
    return str(place), names


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _resolved(pattern: Path) -> Path:
    """A file name or glob with the folder before its first wildcard resolved."""
    parts = pattern.parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed]).resolve().joinpath(*parts[fixed:])


def inspect(name: str) -> tuple[ParquetFacts, list[int]]:
    """What pins a file, and the rows of its row groups. Raises InvalidRequest when a column is missing or not text."""
    with open_file(name) as handle:
        facts, metadata = read_footer(handle, name)
    with damage_named(name):
        schema = metadata.schema.to_arrow_schema()
    for column in COLUMNS:
        if schema.names.count(column) != 1:
            raise InvalidRequest(f"{name} has no single column {column!r}; it has {', '.join(schema.names) or 'none'}")
        if not _is_text(schema.field(column).type):
            raise InvalidRequest(f"{name}: column {column!r} is {schema.field(column).type}, not a string")
    return facts, row_group_sizes(metadata)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
