"""Rows of any files, materialised: one column is the text.

In: files of JSON lines, JSON, CSV, TSV, text, Arrow or Parquet, in a folder, a bucket or on the hub. Out: the published
manifest and stream files. Guarantee and cost: those of `rows_to_records`.
"""

from dataclasses import dataclass

from ..core.flags import flag
from ..storage import Storage
from ..streams.build.publish import Published
from ..streams.build.row_files import Located
from .command import PLACES, Dataset
from .rows_to_records import ANY_FILES, Content, Form, RowOptions, publish_form


@dataclass(frozen=True, kw_only=True)
class TextOptions(RowOptions):
    """The rows and columns to read."""

    text_column: str = flag("text", help="The column that is the record's text.")


def create(storage: Storage, source: str, num_streams: int, options: TextOptions = TextOptions()) -> Published:
    """Publish `num_streams` streams of the rows of a source. Raises InvalidRequest when there are none."""
    column = options.text_column

    def make(located: Located) -> list[Content]:
        return [Content(located.text(column))]

    return publish_form(storage, source, num_streams, options, Form("text", (column,), make, {"text_column": column}))


DATASET = Dataset(
    help="Streams of the rows of any files, copied.",
    source=ANY_FILES + PLACES,
    create=create,
    have="text files: rows with a column of texts, in any format",
    options=TextOptions,
)
