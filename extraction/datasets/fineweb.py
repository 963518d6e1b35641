"""FineWeb, or any Parquet with a column of texts: streams by reference into the files where they lie.

In: a local folder, file or glob, or the same at gs:// or hf://datasets/owner/name. Out: the published manifest; no
record is copied. Files go by the order of their names, and streams are contiguous runs of row groups. FineWeb's small
columns may filter: records below a language score or of other dumps are left out, and what is left may be cut after a
number of records or of tokens (by `token_count`). The worker applies the same filter.

Guarantee: the manifest pins each file by size, footer and content: by the etag where its place tells one, else by the
crc32c of the columns of each row group. It holds the exact number of records. `check` looks for ids that are there
twice. Cost: see `footers` and `contents`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..storage import Storage
from ..streams.build.publish import Origin, Published
from ..streams.build.sources import Choice, SourceFile, find_source
from ..streams.columns import ROW_ID, Columns
from ..streams.row_filter import RowFilter
from .command import PLACES, SOURCE_FLAGS, Dataset, choice_of, flag


@dataclass(frozen=True)
class FinewebOptions:
    """Which part of the source, and which columns make a record. `cache` is a folder for what was read of footers.

    Without `id_column` an id is made of the file and the row in it. Where `choice` says so, rows that cannot be read
    are left out; those that `max_records` counts are counted before.
    """

    max_records: int | None = None
    max_tokens: int | None = None
    min_language_score: float | None = None
    dumps: tuple[str, ...] = ()
    meta_columns: tuple[str, ...] = ()
    text_column: str = "text"
    id_column: str | None = "id"
    cache: Path | None = None
    choice: Choice = field(default_factory=Choice)

    @property
    def filter(self) -> RowFilter:
        return RowFilter(self.min_language_score, tuple(sorted(set(self.dumps))))

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest: which part was asked for."""
        asked = {"filter": self.filter.to_json(), "max_records": self.max_records, "max_tokens": self.max_tokens}
        return {name: value for name, value in asked.items() if value not in (None, {})} | self.choice.to_json()

    def columns(self, files: Sequence[SourceFile]) -> Columns:
        """The columns of a record of these files."""
        if self.id_column is not None:
            return Columns(self.text_column, self.id_column, self.meta_columns)
        folder = os.path.commonprefix([file.name.split("/")[:-1] for file in files])  # of the parts of the names
        return Columns(self.text_column, ROW_ID, self.meta_columns, "/".join(folder))


def create(storage: Storage, source: str, num_streams: int, options: FinewebOptions = FinewebOptions()) -> Published:
    """Publish `num_streams` streams over the Parquet files at `source`.

    Raises InvalidRequest when there are no files or no such columns, DamagedData when a file is cut or not Parquet, or
    has a text or id that cannot be read and is not to be skipped.
    """
    from ..streams.build.content_digests import read_contents
    from ..streams.build.footers import Wanted, read_groups
    from ..streams.build.references import publish_references

    found = find_source(source, choice=options.choice).announced()
    columns = options.columns(found.files)
    wanted = Wanted(columns, options.filter, options.max_records, options.max_tokens)
    groups, skipped = read_contents(read_groups(found.files, wanted, options.cache), wanted, options.choice.skip_bad)
    said = options.to_json() | columns.to_json() | ({"skipped": skipped.to_json()} if skipped.count else {})
    return publish_references(storage, Origin("fineweb", found.place, found.revision, said), groups, num_streams)


def _from_flags(storage: Storage, source: str, num_streams: int, **flags: Any) -> Published:
    cache, columns = flags.pop("footer_cache"), flags.pop("meta_columns")
    options = FinewebOptions(
        choice=choice_of(flags),
        dumps=flags.pop("dump"),
        meta_columns=tuple(filter(None, (column.strip() for column in columns.split(",")))),
        cache=Path(cache).expanduser() if cache else None,
        id_column=flags.pop("id_column") or None,
        **flags,
    )
    return create(storage, source, num_streams, options)


_SCORE = "Only records whose `language_score` is at least this."
_CACHE = "Folder that keeps what was read of remote files, so that an interrupted command goes on; '' for none."
DATASET = Dataset(
    help="Streams that point into FineWeb's Parquet files (or any with a column of texts); nothing is copied.\n\n"
    "`check` tells of ids that are there twice.",
    source=f"Parquet files: {PLACES}",
    create=_from_flags,
    why_empty="a stream is made of whole Parquet row groups, and the source has {full} with records",
    flags=[
        flag(
            "--max-records",
            type=click.IntRange(1),
            help="Only the first records of the source (of those that are not filtered out; skipped ones count).",
        ),
        flag(
            "--max-tokens",
            type=click.IntRange(1),
            help="Only as many of them as have this many tokens, by `token_count`.",
        ),
        flag("--min-language-score", type=click.FloatRange(0, 1), help=_SCORE),
        flag("--dump", multiple=True, help="Only records of this `dump`; may be given several times."),
        flag("--text-column", default="text", show_default=True, help="The column that is the record's text."),
        flag(
            "--id-column",
            default="id",
            show_default=True,
            help="The column that is its id: strings or whole numbers; '' for FILE#ROW.",
        ),
        flag(
            "--meta-columns",
            default="",
            help="Columns, separated by commas, that go beside the activations as the record's meta.",
        ),
        flag("--footer-cache", default="~/.cache/activation-extraction/footers", show_default=True, help=_CACHE),
        *SOURCE_FLAGS,
    ],
)
