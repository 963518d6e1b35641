"""FineWeb, or any Parquet with `id` and `text`: streams by reference into the files where they lie.

In: a local folder, file or glob, or the same at gs:// or hf://datasets/owner/name. Out: the published manifest; no
record is copied. Files go by the order of their names, and streams are contiguous runs of row groups. FineWeb's small
columns may filter: records below a language score or of other dumps are left out, and what is left may be cut after a
number of records or of tokens (by `token_count`). The worker applies the same filter.

Guarantee: the manifest pins each file by size, footer and, where its place tells one, etag; it holds the exact number
of records. Ids are not read here: `check` looks for those that are there twice. Cost: see `footers`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..selection import RowFilter
from ..storage import Storage
from .command import CHOICE_FLAGS, PLACES, Dataset, choice_of, flag
from .publish import Origin, Published
from .sources import Choice, find_source


@dataclass(frozen=True)
class FinewebOptions:
    """Which part of the source, and which columns become a record's meta. `cache` is a folder for what was read."""

    max_records: int | None = None
    max_tokens: int | None = None
    min_language_score: float | None = None
    dumps: tuple[str, ...] = ()
    meta_columns: tuple[str, ...] = ()
    cache: Path | None = None
    choice: Choice = field(default_factory=Choice)

    @property
    def filter(self) -> RowFilter:
        return RowFilter(self.min_language_score, tuple(sorted(set(self.dumps))))

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest: what was asked for."""
        asked = {"filter": self.filter.to_json(), "max_records": self.max_records, "max_tokens": self.max_tokens,
                 "meta_columns": list(self.meta_columns)}  # fmt: skip
        return {name: value for name, value in asked.items() if value not in (None, {}, [])} | self.choice.to_json()


def create(storage: Storage, source: str, num_streams: int, options: FinewebOptions = FinewebOptions()) -> Published:
    """Publish `num_streams` streams over the Parquet files at `source`.

    Raises InvalidRequest when there are no files or no such columns, DamagedData when a file is cut or not Parquet.
    """
    from .footers import Wanted, read_groups
    from .references import publish_references

    found = find_source(source, choice=options.choice).announced()
    wanted = Wanted(("id", "text"), options.meta_columns, options.filter, options.max_records, options.max_tokens)
    groups = read_groups(found.files, wanted, options.cache)
    return publish_references(
        storage, Origin("fineweb", found.place, found.revision, options.to_json()), groups, num_streams
    )


def _from_flags(storage: Storage, source: str, num_streams: int, **flags: Any) -> Published:
    cache, columns = flags.pop("footer_cache"), flags.pop("meta_columns")
    options = FinewebOptions(
        choice=choice_of(flags),
        dumps=flags.pop("dump"),
        meta_columns=tuple(filter(None, (column.strip() for column in columns.split(",")))),
        cache=Path(cache).expanduser() if cache else None,
        **flags,
    )
    return create(storage, source, num_streams, options)


_SCORE = "Only records whose `language_score` is at least this."
_CACHE = "Folder that keeps what was read of remote files, so that an interrupted command goes on; '' for none."
DATASET = Dataset(
    help="Streams that point into FineWeb's Parquet files (or any with `id` and `text`); nothing is copied.\n\n"
         "Ids are not read: `check` tells of those that are there twice.",
    source=f"Parquet files with `id` and `text`: {PLACES}",
    create=_from_flags,
    why_empty="a stream is made of whole Parquet row groups, and the source has {full} with records",
    flags=[
        flag("--max-records", type=click.IntRange(1),
             help="Only the first records of the source (of those that are not filtered out)."),
        flag("--max-tokens", type=click.IntRange(1),
             help="Only as many of them as have this many tokens, by `token_count`."),
        flag("--min-language-score", type=click.FloatRange(0, 1), help=_SCORE),
        flag("--dump", multiple=True, help="Only records of this `dump`; may be given several times."),
        flag("--meta-columns", default="",
             help="Columns, separated by commas, that go beside the activations as the record's meta."),
        flag("--footer-cache", default="~/.cache/activation-extraction/footers", show_default=True, help=_CACHE),
        *CHOICE_FLAGS,
    ],
)
