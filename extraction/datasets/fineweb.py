"""FineWeb, or any Parquet with a column of texts: streams by reference into the source's files.

In: a local folder, file or glob, or the same at gs:// or hf://datasets/owner/name. Out: the published manifest; no
record is copied. Files are in the order of their names, and streams are contiguous runs of row groups. FineWeb's small
columns may filter: records below a language score or of other dumps are left out, and the rest may be cut after a
number of records or of tokens (by `token_count`). The worker applies the same filter.

Guarantee: the manifest pins each file by size, footer and content: by the store's etag, or else by the crc32c of the
columns of each row group. It has the exact number of records. `check` reports duplicate ids. Cost: see `footers` and
`content_digests`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import InvalidRequest
from ..core.flags import flag
from ..core.logs import say
from ..storage import Storage
from ..streams.build.publish import Origin, Published
from ..streams.build.sources import SourceFile, find_source
from ..streams.columns import ROW_ID, Columns
from ..streams.row_filter import RowFilter, for_ids
from .command import META_COLUMNS, PLACES, Dataset, Names, SelectOptions
from .token_counter import TokenCounter

if TYPE_CHECKING:
    from ..streams.build.assign_row_groups import FileGroups
    from ..streams.build.skipped_records import Skipped

FIRST_RECORDS = 4096  # whose tokens are counted first


@dataclass(frozen=True, kw_only=True)
class FinewebOptions(SelectOptions):
    """Which part of the source, and which columns make a record.

    `max_records` counts before rows that cannot be read are left out.
    """

    max_records: int | None = flag(
        None,
        type=click.IntRange(1),
        help="Only the first records of the source, of those that the filters keep; skipped records count.",
    )
    max_tokens: int | None = flag(
        None,
        type=click.IntRange(1),
        help="Only the first records that together have this many tokens of --model, or without it `token_count`.",
    )
    model: str | None = flag(None, help="Folder of the model whose tokenizer counts --max-tokens.")
    shuffle: int | None = flag(
        None,
        type=click.IntRange(0),
        help="Another order, by this seed, of row groups; of large ones, of their blocks of 1024 rows.",
    )
    min_language_score: float | None = flag(
        None, type=click.FloatRange(0, 1), help="Only records whose `language_score` is at least this."
    )
    dump: tuple[str, ...] = flag((), multiple=True, help="Only records of this `dump`; may be given several times.")
    text_column: str = flag("text", help="The column that is the record's text.")
    tokens_column: str | None = flag(None, help="A column of token ids, in place of a text.")
    id_column: str | None = flag(
        "id", help="The column that is the record's id, strings or whole numbers; '' makes ids of the form FILE#ROW."
    )
    meta_columns: tuple[str, ...] = flag((), type=Names(), help=META_COLUMNS)
    footer_cache: str = flag(
        "~/.cache/activation-extraction/footers",
        help="Folder that keeps the footers of remote files, so that an interrupted command continues; '' for none.",
    )

    @property
    def cache(self) -> Path | None:
        """The folder for the footers of remote files."""
        return Path(os.path.expanduser(self.footer_cache)) if self.footer_cache else None

    @property
    def filter(self) -> RowFilter:
        """Which rows are records."""
        dumps = tuple(sorted(set(self.dump)))
        asked = replace(self.row_filter, min_language_score=self.min_language_score, dumps=dumps)
        return for_ids(asked, self.id_column or ROW_ID)

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the request."""
        asked = {"filter": self.filter.to_json(), "max_records": self.max_records} | self.selected()
        return {name: value for name, value in asked.items() if value not in (None, {})} | self.choice.to_json()

    def columns(self, files: Sequence[SourceFile]) -> Columns:
        """Return the columns of a record of these files."""
        if self.id_column:
            return Columns(self.text_column, self.id_column, self.meta_columns, tokens=self.tokens_column)
        folder = os.path.commonprefix([file.name.split("/")[:-1] for file in files])  # of the parts of the names
        under, before = "/".join(folder), self.known.ids_under
        if before is not None:
            under = before if f"{under}/".startswith(f"{before}/") else ""
        return Columns(self.text_column, ROW_ID, self.meta_columns, under, self.tokens_column)


def create(storage: Storage, source: str, num_streams: int, options: FinewebOptions = FinewebOptions()) -> Published:
    """Publish `num_streams` streams over the Parquet files at `source`.

    Raises InvalidRequest when there are no files or no such columns, DamagedData when a file is cut or not Parquet,
    or has an unreadable text or id without `--on-bad-record skip`.
    """
    from ..streams.build.assign_row_groups import publish_references
    from ..streams.build.content_digests import read_contents
    from ..streams.build.footers import Wanted, read_groups

    found = find_source(source, choice=options.choice).announced()
    if "://" in storage.location and "://" not in found.place:
        say("the streams point to these files: every worker needs them under the same path", "WARNING")
    columns, said, by_model = options.columns(found.files), options.to_json(), options.model is not None
    wanted = Wanted(columns, options.filter, options.max_records, None if by_model else options.max_tokens)

    def read(most: int | None) -> "tuple[list[FileGroups], Skipped]":
        part = replace(wanted, max_records=most)
        return read_contents(read_groups(found.files, part, options.cache), part, options.skip_bad)

    most = wanted.max_records
    if options.model is not None and options.max_tokens is not None:
        counter = TokenCounter(options.model, options.max_tokens)
        said |= columns.to_json() | counter.to_json()
        most = _records_within(counter, read, said, most)
    groups, skipped = read(most)
    if (options.filter.to_json() or options.max_tokens) and not any(file.records.any() for file in groups):
        raise InvalidRequest(f"{found.place}: the flags keep none of its rows, or it has none")
    origin = Origin("fineweb", found.place, found.revision, said | columns.to_json() | skipped.to_json())
    return publish_references(storage, origin, groups, num_streams, options.shuffle)


def _records_within(
    counter: TokenCounter,
    read: "Callable[[int | None], tuple[list[FileGroups], Skipped]]",
    options: dict[str, Any],
    limit: int | None,
) -> int | None:
    """Return how many of the first records, damaged ones included, have the counter's tokens: None for all.

    Reads the texts up to there, and at most eight times as many. Raises InvalidRequest if the first has more.
    """
    from ..streams.build.assign_row_groups import whole_stream

    most, number = FIRST_RECORDS, 0
    while True:
        asked = most if limit is None else min(most, limit)
        stream = whole_stream(read(asked)[0], options)
        number = counter.number_within(stream.read_records())
        if number < stream.num_records:
            break
        if stream.num_records < asked or asked == limit:
            return limit
        most *= 8
    asked = number
    while (sound := whole_stream(read(asked)[0], options).num_records) < number:  # damaged records are between them
        asked += number - sound
    return asked


DATASET = Dataset(
    help="Streams that point into FineWeb's Parquet files (or any with a column of texts); nothing is copied.\n\n"
    "`check` reports duplicate ids.",
    source=f"Parquet files: {PLACES}",
    create=create,
    have="FineWeb, or other Parquet too large to copy",
    options=FinewebOptions,
    why_empty="a stream is made of whole Parquet row groups, and the source has {full} with records",
)
