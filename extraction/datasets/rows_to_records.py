"""Rows of files as records: what `text`, `chat` and `tokens` share.

In: a source of files, `RowOptions`, and a `Form` that makes the content of a record from a row. Out: the published
manifest and stream files. Guarantee: the records are the rows in the order of the files; rows are left out only with
`--on-bad-record skip`; the hub is read at one commit, which the manifest names. Cost: memory does not grow with the
source.
"""

import itertools
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..core.errors import DamagedData, InvalidRequest
from ..core.flags import flag
from ..storage import Storage
from ..streams.build.file_kinds import KINDS
from ..streams.build.materialize import TEXT_COLUMNS, Row, Stored
from ..streams.build.publish import Origin, Published
from ..streams.build.read_log import ReadLog, publish_read, without_damaged
from ..streams.build.row_files import Located, WantedRows, checked_text, read_rows
from ..streams.build.sources import find_source
from ..streams.columns import meta_text
from ..streams.row_filter import RowFilter
from ..streams.where_conditions import Condition
from .command import META_COLUMNS, Names, SelectOptions
from .token_counter import TokenCounter

if TYPE_CHECKING:
    import numpy as np

ANY_FILES = (
    "Files of JSON lines, JSON, CSV, TSV, text, Arrow or Parquet, also .gz, .zst or .bz2: OWNER/NAME of the hub, "
)
_NAME = re.compile(r"[\w-][\w.-]*")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class RowOptions(SelectOptions):
    """The rows and columns to read. Without `id_column` a record's id is the number of its row, from 0."""

    id_column: str | None = flag(None, help="The column that is the record's id; by default the number of the row.")
    meta_columns: tuple[str, ...] = flag((), type=Names(), help=META_COLUMNS)
    revision: str | None = flag(
        None, help="Branch, tag or commit of a hub data set; pinned to a commit in the manifest."
    )
    max_records: int | None = flag(None, type=click.IntRange(1), help="Only the first records of those that are kept.")
    model: str | None = flag(None, help="Folder of the model whose tokenizer counts --max-tokens.")

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the request."""
        asked = {
            "id_column": self.id_column,
            "max_records": self.max_records,
            "meta_columns": list(self.meta_columns) or None,
            "rows": self.row_filter.to_json() or None,
            "id_prefix": (self.known.prefix if self.id_column is None else "") or None,
        }
        said = {name: value for name, value in asked.items() if value is not None}
        return said | self.selected() | self.choice.to_json()


@dataclass(frozen=True)
class Content:
    """The text of a record, or its token ids: int32 [n]; `meta` is what the dataset says of it."""

    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    tokens: "np.ndarray | None" = None


@dataclass(frozen=True)
class Form:
    """The way in which a dataset makes records of rows.

    Attributes:
        name: of the command.
        columns: that are read, where they exist; `tokens` those of them that hold token ids.
        make: the content of the records of a row. Raises DamagedData for a damaged row.
        options: of the manifest; everything else that decides the records.
        stored: the columns of the stream files, `materialize.TEXT_COLUMNS` or `TOKEN_COLUMNS`.
    """

    name: str
    columns: tuple[str, ...]
    make: Callable[[Located], Iterable[Content]]
    options: dict[str, Any]
    tokens: tuple[str, ...] = ()
    stored: tuple[str, ...] = TEXT_COLUMNS


def publish_form(storage: Storage, source: str, num_streams: int, options: RowOptions, form: Form) -> Published:
    """Publish `num_streams` streams of the rows of a source. Raises InvalidRequest when there are none."""
    kept, counter = options.row_filter, _token_counter(options)
    found = find_source(_location(source, options.revision), tuple(KINDS), options.choice).announced()
    log = ReadLog(found, options.skip_bad)
    more = (options.id_column,) if options.id_column is not None else ()
    where = kept.where.columns if kept.where else ()
    values = (*form.columns, *more, *options.meta_columns, *where)
    columns = tuple(dict.fromkeys((*values, *form.tokens)))
    tokens = tuple(name for name in form.tokens if name not in values)  # arrays are no values of a meta
    rows = read_rows(log, WantedRows(columns, tokens, RowFilter(where=kept.where)))
    made = without_damaged(rows, lambda _, located: list(_records(located, options, kept, form)), log)
    records = _first(made, options.max_records, counter)
    said = options.to_json() | form.options | (counter.to_json() if counter else {})
    origin = Origin(form.name, found.place, found.revision, said)
    return publish_read(storage, origin, records, log, num_streams, Stored(form.stored, options.shuffle))


def _first(made: Iterator[list[Row]], limit: int | None, counter: TokenCounter | None) -> Iterator[Row]:
    """Yield the first `limit` records, up to the tokens of the counter."""
    with closing(cast(Generator[list[Row], None, None], made)):
        some = itertools.islice(chain.from_iterable(made), limit)
        yield from counter.first(some) if counter else some


def _token_counter(options: RowOptions) -> TokenCounter | None:
    if options.max_tokens is None:
        return None
    if options.model is None:
        raise InvalidRequest("--max-tokens counts the tokens of a model: give --model, its folder")
    return TokenCounter(options.model, options.max_tokens)


def _records(located: Located, options: RowOptions, kept: RowFilter, form: Form) -> Iterator[Row]:
    """Yield the records of a row, none if it is not kept. Raises DamagedData for a wrong text, id or meta."""
    name = f"{options.known.prefix}{located.number}"
    if options.id_column is not None:
        value = located.value(options.id_column)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number and not isinstance(value, str | bytes | None):
            raise DamagedData(f"{located.where}: its {options.id_column} is neither a string nor a whole number")
        name = str(value) if is_number else checked_text(value, f"{located.where}: its {options.id_column}")
    whole = name if located.split is None else f"{located.split}/{name}"
    # A share goes by the id in the source, which is the same with `--split all` and with one split.
    if not kept.has_id(whole if options.id_column is None else name) or (
        kept.where and not _holds(kept.where, located)
    ):
        return
    name = whole
    meta = {column: located.value(column) for column in options.meta_columns}
    meta |= {} if located.split is None else {"split": located.split}
    contents = list(form.make(located))
    for part, content in enumerate(contents):
        its_name = name if len(contents) == 1 else f"{name}/{part}"
        yield Row(its_name, content.text, _meta_text(meta | content.meta, content.text, located.where), content.tokens)


def _holds(where: Condition, located: Located) -> bool:
    for column in where.columns:
        located.value(column)  # raises if the row has no such column
    try:
        return where.holds(located.row)
    except KeyError as error:
        raise DamagedData(f"{located.where}: a nested column has no {error}, which --where names") from error
    except DamagedData as error:
        raise DamagedData(f"{located.where}: {error}") from error


def _meta_text(meta: dict[str, Any], text: str, where: str) -> str | None:
    """Return the JSON of a meta, None if it is empty. Raises DamagedData for a wrong text or span."""
    if not meta:
        return None
    written = checked_text(meta_text(meta), f"{where}: its meta")
    if "spans" in meta:
        from ..batching.token_selection import spans_of

        ends = {name: last for name, spans in spans_of(written, where).items() for _, last in spans}
        for name, last in ends.items():
            if last > len(text):
                raise DamagedData(f"{where}: its span {name} ends at {last}, its text has {len(text)} characters")
    return written


def _location(source: str, revision: str | None) -> str:
    """Return the location of a source: OWNER/NAME is a data set of the hub unless there is such a file or folder."""
    if "://" not in source and not Path(os.path.expanduser(source)).exists():
        if _NAME.fullmatch(source):
            raise InvalidRequest(f"{source}: no such file or folder, and a data set of the hub is named OWNER/NAME")
        source = f"hf://datasets/{source}" if _REPOSITORY.fullmatch(source) else source
    if revision is None:
        return source
    at = re.fullmatch(r"(hf://datasets/[^/@]+/[^/@]+)(/.*)?", source)
    if not at:
        raise InvalidRequest(
            f"--revision {revision}: only a data set of the hub has revisions, {source} has none; leave the flag out"
        )
    return f"{at[1]}@{revision}{at[2] or ''}"
