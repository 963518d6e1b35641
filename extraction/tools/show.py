"""Show which text activations came from: a record with its tokens marked, or the rows that a direction responds to.

In: the output of a run, its streams and its model's tokenizer. Out: lines of text, or one self-contained HTML page.
Guarantee: values are those of the stored rows; a token without a row has none. What comes from the data is escaped.
Cost: a record costs its batches; a direction one pass over the run, and the batches of the records that are shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from ..core.errors import InvalidRequest, ObjectNotFound
from ..read.reader import ActivationReader
from ..read.row_types import RecordActivations
from ..read.texts import Texts
from ..read.top_rows import TopRow, project, top_rows

CONTEXT = 40  # tokens on each side of a shown row


@dataclass(frozen=True)
class Marked:
    """Tokens of a record: the text of each, and its value, NaN if it has no row. `first` is the position of the first.

    `at` is the position of the row that is shown, None for a whole record.
    """

    record_id: str
    pieces: Sequence[str]
    values: np.ndarray
    first: int = 0
    at: int | None = None
    value: float | None = None


def load_direction(path: str) -> np.ndarray:
    """Return the array of a .npy file, float32 [width]. Raises InvalidRequest."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path}: not a .npy file that can be read: {error}") from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "fiu":
        raise InvalidRequest(f"{path}: give one array of numbers with one axis, a direction")
    return found.astype(np.float32)


def one_hook_point(reader: ActivationReader, name: str | None) -> str:
    """Return the hook point. Raises InvalidRequest if the run has several and none is named, or not this one."""
    if name is None and len(reader.hook_points) != 1:
        raise InvalidRequest(f"name one of the run's hook points by --hook-point: {', '.join(reader.hook_points)}")
    return reader.checked([name] if name else None)[0]


def show_record(texts: Texts, record: RecordActivations, hook_point: str, direction: np.ndarray | None) -> Marked:
    """Return a record marked by the norms of its rows, or by their products with the direction."""
    ids, rows = texts.tokens(record), record.activations[hook_point]
    values = np.full(len(ids), np.nan, np.float32)
    if direction is None:
        values[record.positions] = np.linalg.norm(rows.astype(np.float32), axis=1)
    else:
        values[record.positions] = project(rows, direction, hook_point)
    return Marked(record.id, texts.pieces(ids), values)


def show_top(
    reader: ActivationReader, texts: Texts, hook_point: str, direction: np.ndarray, count: int
) -> Iterator[Marked]:
    """Yield the surroundings of the rows that the direction responds to most, marked by it.

    Of a record that is not yet whole only the row itself is marked.
    """
    for row in top_rows(reader, hook_point, direction, count):
        try:
            record = reader.record_at(row.stream, row.record, [hook_point])
        except ObjectNotFound:
            ids = texts.ids(row.stream, row.record)
            whole = Marked(row.record_id, texts.pieces(ids), np.full(len(ids), np.nan, np.float32))
            whole.values[row.position] = row.value
        else:
            whole = show_record(texts, record, hook_point, direction)
        yield _around(whole, row)


def _around(whole: Marked, row: TopRow) -> Marked:
    first, last = max(row.position - CONTEXT, 0), row.position + CONTEXT + 1
    return Marked(whole.record_id, whole.pieces[first:last], whole.values[first:last], first, row.position, row.value)


# ---------------------------------------------------------------------------------------------- what is written


def to_text(marked: Marked) -> str:
    """Return a line for the row, and one of its text with the row in brackets; of a record a line for each token."""
    if marked.at is None:
        lines = [
            f"{position:6}  {'' if np.isnan(value) else f'{value:.4g}':>10}  {piece!r}"
            for position, (piece, value) in enumerate(zip(marked.pieces, marked.values, strict=True))
        ]
        return "\n".join([f"record {marked.record_id}", *lines])
    here = marked.at - marked.first
    before, after = "".join(marked.pieces[:here]), "".join(marked.pieces[here + 1 :])
    text = f"{before}[[{marked.pieces[here]}]]{after}".replace("\n", "\\n")
    return f"{marked.value:.4g}  record {marked.record_id}, position {marked.at}\n    {text}"


def to_html(title: str, shown: Sequence[Marked]) -> str:
    """Return a page with a card for each, its tokens coloured by their values."""
    largest = max((float(np.nanmax(np.abs(one.values), initial=0.0)) for one in shown), default=0.0) or 1.0
    cards = "".join(_card(one, largest) for one in shown)
    style = Path(__file__).with_name("show.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<p>Each token is coloured by its value, strongest at {largest:.4g}; grey tokens have no row.</p>"
        f"{cards}</main></body></html>\n"
    )


def _card(marked: Marked, largest: float) -> str:
    place = "" if marked.at is None else f" <span>position {marked.at}, value {marked.value:.4g}</span>"
    tokens = "".join(
        _token(piece, float(value), largest, marked.first + number == marked.at)
        for number, (piece, value) in enumerate(zip(marked.pieces, marked.values, strict=True))
    )
    return f"<section><h2>{escape(marked.record_id)}{place}</h2><p class=text>{tokens}</p></section>"


def _token(piece: str, value: float, largest: float, is_row: bool) -> str:
    text = escape(piece).replace("\n", "↵\n")
    if np.isnan(value):
        return f"<i>{text}</i>"
    share = min(abs(value) / largest, 1.0)
    colour = "--up" if value >= 0 else "--down"
    mark = " class=row" if is_row else ""
    style = f"background:color-mix(in srgb,var({colour}) {share:.0%},transparent)"
    return f'<b{mark} title="{value:.4g}" style="{style}">{text}</b>'
