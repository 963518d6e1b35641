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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..core.flags import flag
from ..storage import Storage
from ..streams.build.publish import Origin, Published
from ..streams.build.sources import SourceFile, find_source
from ..streams.columns import ROW_ID, Columns
from ..streams.row_filter import RowFilter
from .command import META_COLUMNS, PLACES, Dataset, Names, SourceOptions


@dataclass(frozen=True, kw_only=True)
class FinewebOptions(SourceOptions):
    """Which part of the source, and which columns make a record.

    `max_records` counts before rows that cannot be read are left out.
    """

    max_records: int | None = flag(
        None,
        type=click.IntRange(1),
        help="Only the first records of the source, of those that the filters keep; skipped records count.",
    )
    max_tokens: int | None = flag(
        None, type=click.IntRange(1), help="Only the first records that together have this many `token_count`."
    )
    min_language_score: float | None = flag(
        None, type=click.FloatRange(0, 1), help="Only records whose `language_score` is at least this."
    )
    dump: tuple[str, ...] = flag((), multiple=True, help="Only records of this `dump`; may be given several times.")
    text_column: str = flag("text", help="The column that is the record's text.")
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
        return Path(self.footer_cache).expanduser() if self.footer_cache else None

    @property
    def filter(self) -> RowFilter:
        """Which rows are records."""
        return RowFilter(self.min_language_score, tuple(sorted(set(self.dump))))

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the request."""
        asked = {"filter": self.filter.to_json(), "max_records": self.max_records, "max_tokens": self.max_tokens}
        return {name: value for name, value in asked.items() if value not in (None, {})} | self.choice.to_json()

    def columns(self, files: Sequence[SourceFile]) -> Columns:
        """Return the columns of a record of these files."""
        if self.id_column:
            return Columns(self.text_column, self.id_column, self.meta_columns)
        folder = os.path.commonprefix([file.name.split("/")[:-1] for file in files])  # of the parts of the names
        return Columns(self.text_column, ROW_ID, self.meta_columns, "/".join(folder))


def create(storage: Storage, source: str, num_streams: int, options: FinewebOptions = FinewebOptions()) -> Published:
    """Publish `num_streams` streams over the Parquet files at `source`.

    Raises InvalidRequest when there are no files or no such columns, DamagedData when a file is cut or not Parquet,
    or has an unreadable text or id without `--on-bad-record skip`.
    """
    from ..streams.build.content_digests import read_contents
    from ..streams.build.footers import Wanted, read_groups
    from ..streams.build.references import publish_references

    found = find_source(source, choice=options.choice).announced()
    columns = options.columns(found.files)
    wanted = Wanted(columns, options.filter, options.max_records, options.max_tokens)
    groups, skipped = read_contents(read_groups(found.files, wanted, options.cache), wanted, options.skip_bad)
    said = options.to_json() | columns.to_json() | skipped.to_json()
    return publish_references(storage, Origin("fineweb", found.place, found.revision, said), groups, num_streams)


DATASET = Dataset(
    help="Streams that point into FineWeb's Parquet files (or any with a column of texts); nothing is copied.\n\n"
    "`check` reports duplicate ids.",
    source=f"Parquet files: {PLACES}",
    create=create,
    options=FinewebOptions,
    why_empty="a stream is made of whole Parquet row groups, and the source has {full} with records",
)
