"""Whatever `datasets.load_dataset` opens, materialised: one column is the text, another one the id.

In: a data set of the hub, or a local file or folder, as that library names it. Out: the published manifest and stream
files. Guarantee: the records are the rows in the order of the library, none left out; a hub data set is read at one
commit, which the manifest names. Cost: the library streams, so that memory does not follow the size of the source.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click

from ..errors import DamagedData, ExtractionError, InvalidRequest, TryAgain
from ..storage import Storage, open_storage
from .command import Dataset, flag
from .publish import Origin, Published
from .rows import Row, publish_rows
from .tracking import track

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text", ".parquet": "parquet"}


@dataclass(frozen=True)
class TextOptions:
    """Which rows and which of their columns. Without `id_column` a record's id is the number of its row, from 0."""

    text_column: str = "text"
    id_column: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    max_records: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest: what was asked for."""
        asked = {name: getattr(self, name) for name in ("text_column", "id_column", "config", "split", "max_records")}
        return {name: value for name, value in asked.items() if value is not None}


def create(storage: Storage, source: str, num_streams: int, options: TextOptions = TextOptions()) -> Published:
    """Publish `num_streams` streams of the rows of a data set. Raises InvalidRequest when it cannot be opened."""
    path = Path(source).expanduser()
    local = path.exists()
    if local and options.revision is not None:
        raise InvalidRequest(
            f"--revision {options.revision}: {source} is local, which has no revisions; leave the flag out"
        )
    if not local and (source.startswith(("/", ".", "~")) or source.count("/") > 1):
        raise InvalidRequest(f"{source}: no such file or folder")
    place, revision = (str(path.resolve()), None) if local else (source, _commit(source, options.revision))
    rows = text_rows(_open(place, local, revision, options), options)
    return publish_rows(
        storage, Origin("text", place, revision, options.to_json()), track(rows, "records"), num_streams
    )


def text_rows(rows: Iterable[dict[str, Any]], options: TextOptions) -> Iterator[Row]:
    """The records of some rows. Raises InvalidRequest for a missing column, DamagedData for a text that is none."""
    for number, row in enumerate(_rows(islice(rows, options.max_records))):
        for column in filter(None, (options.text_column, options.id_column)):
            if column not in row:
                raise InvalidRequest(f"row {number} has no column {column!r}; it has {', '.join(row) or 'none'}")
        text, name = row[options.text_column], number if options.id_column is None else row[options.id_column]
        if not isinstance(text, str):
            raise DamagedData(f"row {number}: {options.text_column} is {'null' if text is None else 'not a string'}")
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise DamagedData(f"row {number}: {options.id_column} is neither a string nor a whole number")
        yield Row(str(name), text)


def _commit(source: str, revision: str | None) -> str:
    """The commit of a hub data set; a refusal says more here than in the library."""
    owner, _, name = source.rpartition("/")
    if not owner:
        raise InvalidRequest(f"{source}: no such file or folder, and a data set of the hub is named OWNER/NAME")
    return open_storage(f"hf://datasets/{owner}/{name}" + (f"@{revision}" if revision else "")).revision


def _open(place: str, local: bool, revision: str | None, options: TextOptions) -> Iterable[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    name, files = place, {}
    if local and Path(place).is_file():
        suffix = Path(place).suffix
        if suffix not in BUILDERS:
            raise InvalidRequest(f"{place}: a file is one of {', '.join('*' + known for known in BUILDERS)}")
        name, files = BUILDERS[suffix], {"data_files": place} | ({"sep": "\t"} if suffix == ".tsv" else {})
    try:
        return datasets.load_dataset(
            name, options.config, split=options.split, revision=revision, streaming=True, **files
        )
    except ExtractionError:
        raise
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise InvalidRequest(f"{place}: datasets.load_dataset cannot open it: {_first_line(error)}") from error


def _rows(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, with the library's errors turned into ours."""
    import datasets

    try:
        yield from rows
    except ConnectionError as error:
        raise TryAgain(f"the data set cannot be read now: {_first_line(error)}") from error
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DamagedData(f"the data set cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


DATASET = Dataset(
    help="Streams of the rows of any data set, copied.",
    source="What datasets.load_dataset opens: OWNER/NAME of the hub, a folder, or a file of JSON lines, CSV, text, "
           "Parquet.",
    create=lambda storage, source, num_streams, **flags: create(storage, source, num_streams, TextOptions(**flags)),
    flags=[
        flag("--text-column", default="text", show_default=True, help="The column that is the record's text."),
        flag("--id-column", help="The column that is its id; by default the number of the row."),
        flag("--config", help="Configuration (subset) of the data set."),
        flag("--split", default="train", show_default=True, help="Split of the data set."),
        flag("--revision", help="Branch, tag or commit of a hub data set; pinned to a commit in the manifest."),
        flag("--max-records", type=click.IntRange(1), help="Only the first rows."),
    ],
)
