"""Rows of files as records: what `text`, `chat` and `tokens` share.

In: a source of files, `RowOptions`, and a `Form` that makes the content of a record from a row. Out: the published
manifest and stream files. Guarantee: the records are the rows in the order of the files; rows are left out only with
`--on-bad-record skip`; the hub is read at one commit, which the manifest names. Cost: memory does not grow with the
source.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import DamagedData, InvalidRequest
from ..core.flags import flag
from ..storage import Storage
from ..streams.build.file_kinds import KINDS
from ..streams.build.materialize import TEXT, Row
from ..streams.build.publish import Origin, Published
from ..streams.build.row_files import Located, read_rows
from ..streams.build.source_reading import Reading, publish_read, sound
from ..streams.build.sources import find_source
from .command import META_COLUMNS, Names, SourceOptions

if TYPE_CHECKING:
    import numpy as np

ANY_FILES = (
    "Files of JSON lines, JSON, CSV, TSV, text, Arrow or Parquet, also .gz, .zst or .bz2: OWNER/NAME of the hub, "
)
_NAME = re.compile(r"[\w-][\w.-]*")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class RowOptions(SourceOptions):
    """Which rows and columns are read. Without `id_column` a record's id is the number of its row, from 0."""

    id_column: str | None = flag(None, help="The column that is the record's id; by default the number of the row.")
    meta_columns: tuple[str, ...] = flag((), type=Names(), help=META_COLUMNS)
    revision: str | None = flag(
        None, help="Branch, tag or commit of a hub data set; pinned to a commit in the manifest."
    )
    max_records: int | None = flag(None, type=click.IntRange(1), help="Only the first rows.")

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the request."""
        asked = {
            "id_column": self.id_column,
            "max_records": self.max_records,
            "meta_columns": list(self.meta_columns) or None,
        }
        return {name: value for name, value in asked.items() if value is not None} | self.choice.to_json()


@dataclass(frozen=True)
class Content:
    """The text of a record, or its token ids: int32 [n]; `meta` is what the dataset says of it."""

    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    tokens: "np.ndarray | None" = None


@dataclass(frozen=True)
class Form:
    """What a dataset makes of rows.

    Attributes:
        name: of the command.
        columns: that are read, where they exist; `tokens` those of them that hold token ids.
        make: the content of the records of a row. Raises DamagedData for a damaged row.
        options: of the manifest; everything else that decides the records.
        stored: the columns of the stream files, `materialize.TEXT` or `TOKENS`.
    """

    name: str
    columns: tuple[str, ...]
    make: Callable[[Located], Iterable[Content]]
    options: dict[str, Any]
    tokens: tuple[str, ...] = ()
    stored: tuple[str, ...] = TEXT


def publish_form(storage: Storage, source: str, num_streams: int, options: RowOptions, form: Form) -> Published:
    """Publish `num_streams` streams of the rows of a source. Raises InvalidRequest when there are none."""
    found = find_source(_location(source, options.revision), tuple(KINDS), options.choice).announced()
    reading = Reading(found, options.skip_bad)
    more = [options.id_column] if options.id_column is not None else []
    columns = list(dict.fromkeys((*form.columns, *more, *options.meta_columns)))
    made = sound(
        read_rows(reading, columns, options.max_records, form.tokens),
        lambda number, located: list(_records(number, located, options, form)),
        reading,
    )
    origin = Origin(form.name, found.place, found.revision, options.to_json() | form.options)
    return publish_read(storage, origin, chain.from_iterable(made), reading, num_streams, form.stored)


def _records(number: int, located: Located, options: RowOptions, form: Form) -> Iterator[Row]:
    """Yield the records of row `number`. Raises DamagedData for a wrong text, id or meta."""
    name, meta = str(number), {column: located.value(column) for column in options.meta_columns}
    if options.id_column is not None:
        value = located.value(options.id_column)
        if isinstance(value, bool) or not isinstance(value, str | bytes | int):
            raise DamagedData(f"{located.where}: {options.id_column} is neither a string nor a whole number")
        name = str(value) if isinstance(value, int) else located.text(options.id_column)
    if located.split is not None:
        name, meta = f"{located.split}/{name}", meta | {"split": located.split}
    contents = list(form.make(located))
    for part, content in enumerate(contents):
        its_name = name if len(contents) == 1 else f"{name}/{part}"
        yield Row(its_name, content.text, _meta_text(meta | content.meta, content.text, located.where), content.tokens)


def _meta_text(meta: dict[str, Any], text: str, where: str) -> str | None:
    """Return the JSON of a meta, None if it is empty. Raises DamagedData for a NaN, or a span outside the text."""
    if not meta:
        return None
    try:
        written = json.dumps(meta, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError as error:
        raise DamagedData(f"{where}: its meta has a number that JSON does not have: {error}") from error
    if "spans" in meta:
        from ..batching.token_selection import spans_of

        ends = {name: last for name, spans in spans_of(written, where).items() for _, last in spans}
        for name, last in ends.items():
            if last > len(text):
                raise DamagedData(f"{where}: its span {name} ends at {last}, its text has {len(text)} characters")
    return written


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
