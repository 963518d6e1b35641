"""Rows of any files, materialised: one column is the text, another the id.

In: files of JSON lines, JSON, CSV, TSV, text or Parquet, in a folder, a bucket or on the hub. Out: the published
manifest and stream files. Guarantee: the records are the rows in the order of the files; rows are left out only with
`--on-bad-record skip`; the hub is read at one commit, which the manifest names. Cost: memory does not grow with the
source.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..core.errors import DamagedData, InvalidRequest
from ..core.flags import flag
from ..storage import Storage
from ..streams.build.file_kinds import KINDS
from ..streams.build.materialize import Row
from ..streams.build.publish import Origin, Published
from ..streams.build.row_files import Located, read_rows
from ..streams.build.source_reading import Reading, publish_read, sound
from ..streams.build.sources import find_source
from .command import PLACES, Dataset, SourceOptions

_NAME = re.compile(r"[\w-][\w.-]*")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class TextOptions(SourceOptions):
    """Which rows and columns are read. Without `id_column` a record's id is the number of its row, from 0."""

    text_column: str = flag("text", help="The column that is the record's text.")
    id_column: str | None = flag(None, help="The column that is the record's id; by default the number of the row.")
    revision: str | None = flag(
        None, help="Branch, tag or commit of a hub data set; pinned to a commit in the manifest."
    )
    max_records: int | None = flag(None, type=click.IntRange(1), help="Only the first rows.")

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the request."""
        asked = {name: getattr(self, name) for name in ("text_column", "id_column", "max_records")}
        return {name: value for name, value in asked.items() if value is not None} | self.choice.to_json()


def create(storage: Storage, source: str, num_streams: int, options: TextOptions = TextOptions()) -> Published:
    """Publish `num_streams` streams of the rows of a source. Raises InvalidRequest when there are none."""
    found = find_source(_location(source, options.revision), tuple(KINDS), options.choice).announced()
    reading = Reading(found, options.skip_bad)
    columns = [options.text_column] + ([options.id_column] if options.id_column is not None else [])
    origin = Origin("text", found.place, found.revision, options.to_json())
    rows = sound(
        read_rows(reading, columns, options.max_records),
        lambda number, located: _record(number, located, options),
        reading,
    )
    return publish_read(storage, origin, rows, reading, num_streams)


def _record(number: int, located: Located, options: TextOptions) -> Row:
    """Return the record of row `number`. Raises DamagedData for a wrong text or id."""
    text, name = located.text(options.text_column), str(number)
    if options.id_column is not None:
        value = located.value(options.id_column)
        if isinstance(value, bool) or not isinstance(value, str | bytes | int):
            raise DamagedData(f"{located.where}: {options.id_column} is neither a string nor a whole number")
        name = str(value) if isinstance(value, int) else located.text(options.id_column)
    if located.split is None:
        return Row(name, text)
    return Row(f"{located.split}/{name}", text, json.dumps({"split": located.split}))


def _location(source: str, revision: str | None) -> str:
    """Return the location of a source: OWNER/NAME is a data set of the hub unless there is such a file or folder."""
    if "://" not in source and not Path(source).expanduser().exists():
        if _NAME.fullmatch(source):
            raise InvalidRequest(f"{source}: no such file or folder, and a data set of the hub is named OWNER/NAME")
        source = f"hf://datasets/{source}" if _REPOSITORY.fullmatch(source) else source
    if revision is None:
        return source
    at = re.fullmatch(r"(hf://datasets/[^/@]+/[^/@]+)(/.*)?", source)
    if not at:
        raise InvalidRequest(f"--revision {revision}: {source} has none of its own; leave the flag out")
    return f"{at[1]}@{revision}{at[2] or ''}"


DATASET = Dataset(
    help="Streams of the rows of any files, copied.",
    source="Files of JSON lines, JSON, CSV, TSV, text or Parquet, also .gz, .zst or .bz2: OWNER/NAME of the hub, "
    + PLACES,
    create=create,
    options=TextOptions,
)
