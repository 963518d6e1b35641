"""Token ids that somebody else made: one column is a list of ids, and no tokenizer is used.

In: rows of Parquet, Arrow or JSON lines, as SAELens' PretokenizeRunner, datatrove and the Pile's sets write them. Out:
the published manifest and stream files. Guarantee: ids are those of the source, a beginning-of-text token included;
with `--model` each has a row in the model's embedding (a worker checks it in any case). With `--separator` a packed row
becomes a record for each document. Cost: memory does not grow with the source.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import DamagedData, InvalidRequest
from ..core.flags import flag
from ..storage import Storage
from ..streams.build.materialize import TOKEN_COLUMNS
from ..streams.build.publish import Published
from ..streams.build.row_files import Located
from ..streams.columns import TOKENS_OPTION
from .command import PLACES, Dataset
from .rows_to_records import Content, Form, RowOptions, publish_form

if TYPE_CHECKING:
    import numpy as np

COLUMNS = ("input_ids", "tokens", "token_ids")
MASK = "attention_mask"


@dataclass(frozen=True, kw_only=True)
class TokenOptions(RowOptions):
    """The column of the ids, and where documents begin in packed rows."""

    tokens_column: str | None = flag(None, help=f"The column of token ids, by default {', '.join(COLUMNS)}.")
    separator: int | None = flag(
        None, type=click.IntRange(0), help="Token id between the documents of a packed row, which become records."
    )
    separator_at: str = flag(
        "end", type=click.Choice(["end", "begin"]), help="Whether the separator ends a document or begins one."
    )
    model: str | None = flag(None, help="Folder of the model: ids beyond its vocabulary are damaged records.")

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the request."""
        asked = {"source_column": self.tokens_column, "separator": self.separator}
        asked |= {"separator_at": self.separator_at} if self.separator is not None else {}
        said = {name: value for name, value in asked.items() if value is not None}
        return super().to_json() | said


def create(storage: Storage, source: str, num_streams: int, options: TokenOptions = TokenOptions()) -> Published:
    """Publish `num_streams` streams of the token ids of a source. Raises InvalidRequest when there are none."""
    limit = _vocabulary(options.model) if options.model else None
    columns = (options.tokens_column,) if options.tokens_column else COLUMNS
    said = options.to_json() | {TOKENS_OPTION: "tokens"} | ({"vocabulary": limit} if limit else {})
    make = partial(_documents, columns=columns, options=options, limit=limit)
    form = Form("tokens", (), make, said, tokens=(*columns, MASK), stored=TOKEN_COLUMNS)
    return publish_form(storage, source, num_streams, options, form)


def _vocabulary(model: str) -> int:
    """Return how many rows the embedding of a model has. Raises InvalidRequest."""
    from ..batching.tokenizer.files import read_json

    path = Path(os.path.expanduser(model)) / "config.json"
    config = read_json(path)
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    if type(size) is not int or size < 1:
        raise InvalidRequest(f"--model {model}: {path} does not say vocab_size; give the folder of the model")
    return size


def _documents(
    located: Located, options: TokenOptions, columns: tuple[str, ...], limit: int | None
) -> Iterator[Content]:
    """Yield the documents of a row. Raises DamagedData for a value that is no list of ids of the vocabulary."""
    import numpy as np

    name = located.first_of(columns)
    ids = _ids(located, name)
    if MASK in located.row:
        mask = _ids(located, MASK)
        if mask.shape != ids.shape:
            raise DamagedData(f"{located.where}: {MASK} has {len(mask)} entries, {name} has {len(ids)}")
        ids = ids[mask > 0]
    if limit is not None and len(ids) and ids.max() >= limit:
        raise DamagedData(f"{located.where}: the token id {ids.max()} is beyond the vocabulary of {limit}")
    if options.separator is None:
        yield Content(tokens=ids)
        return
    cuts = np.flatnonzero(ids == options.separator) + (options.separator_at == "end")
    yield from (Content(tokens=part) for part in np.split(ids, cuts) if len(part))


def _ids(located: Located, column: str) -> "np.ndarray":
    """Return the ids of a column, int32 [n]. Raises DamagedData."""
    import numpy as np

    value = located.row[column]
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 1 << 31 for one in value):
        what = "0 and 1" if column == MASK else "token ids from 0 to 2^31"
        raise DamagedData(f"{located.where}: {column} is not a list of {what}")
    return np.array(value, np.int32)


DATASET = Dataset(
    help="Streams of token ids that are stored as such, copied; a tokenizer is not used.",
    source="Parquet, Arrow or JSON lines with lists of token ids: OWNER/NAME of the hub, " + PLACES,
    create=create,
    have="token ids that somebody else made",
    options=TokenOptions,
)
