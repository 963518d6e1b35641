"""The columns of a source's Parquet files that make a record, and their conversion to id and text.

In: the options of a manifest, columns of Arrow tables. Out: `Columns`; columns of strings, arrays of ids. Guarantee: a
whole number becomes its decimal digits, bytes and dictionary values their string; nothing is decoded here, so bytes
that are not UTF-8 are found where a value is read. Cost: none for a column of strings.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

TOKENS_OPTION = "tokens_column"  # the option of a manifest whose records are token ids
UNREADABLE = (ValueError, OverflowError, KeyError)  # of Arrow for a value that Python cannot hold; keys are time zones
ROW_ID = "\0row"  # in place of the name of an id column: the id is made of the file and the row


@dataclass(frozen=True)
class Columns:
    """The columns of a record. Without an id column, `id` is ROW_ID: the file's name below `ids_under`, `#`, the row.

    Rows are counted from 0 in each file. `tokens` is a column of lists of token ids, in place of the text.
    """

    text: str = "text"
    id: str = "id"
    meta: tuple[str, ...] = ()
    ids_under: str = ""
    tokens: str | None = None

    @property
    def strings(self) -> tuple[str, ...]:
        """The columns of the file that every record needs a value of."""
        return tuple(dict.fromkeys((self.id, self.text)[self.id == ROW_ID : 1 if self.tokens else 2]))

    @property
    def stored(self) -> tuple[str, ...]:
        """The columns of the file that records are made of."""
        return tuple(dict.fromkeys(self.strings + ((self.tokens,) if self.tokens else ()) + self.meta))

    def to_json(self) -> dict[str, Any]:
        """Return the options of a manifest; defaults are left out."""
        named = {"text_column": self.text, "id_column": self.id, "meta_columns": list(self.meta)}
        usual = {"text_column": "text", "id_column": "id", "meta_columns": []}
        if self.id == ROW_ID:
            named |= {"id_column": None, "ids_under": self.ids_under}
        named |= {TOKENS_OPTION: self.tokens} if self.tokens else {}
        return {name: value for name, value in named.items() if name not in usual or value != usual[name]}

    def row_ids(self, file: str, rows: Any) -> list[str]:
        """Return the ids of some rows of a file without an id column; `rows` is int64 [N]."""
        stem = file.removeprefix(self.ids_under).lstrip("/")
        return [f"{stem}#{row}" for row in rows.tolist()]


def columns_of(options: Mapping[str, Any]) -> Columns:
    """Return the columns that the options of a manifest name."""
    id_column = options.get("id_column", "id")
    return Columns(
        options.get("text_column", "text"),
        ROW_ID if id_column is None else id_column,
        tuple(options.get("meta_columns", ())),
        options.get("ids_under", ""),
        options.get(TOKENS_OPTION),
    )


def is_string(kind: "pyarrow.DataType") -> bool:
    """Return whether an Arrow type is one of strings."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_bytes(kind: "pyarrow.DataType") -> bool:
    """Return whether an Arrow type is one of bytes, as a column of strings has that is not marked as UTF-8."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_binary(kind) or types.is_large_binary(kind)


def is_text(kind: "pyarrow.DataType") -> bool:
    """Return whether values of an Arrow type can be texts."""
    return is_string(kind) or is_bytes(kind)


def is_id(kind: "pyarrow.DataType") -> bool:
    """Return whether values of an Arrow type can be ids."""
    from pyarrow import types

    return is_text(kind) or types.is_integer(kind)


def as_strings(column: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray":
    """Return a column that `is_id` as one of strings, whose bytes may not be UTF-8."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_integer(column.type):
        return column.cast(pyarrow.string())
    if is_bytes(column.type):
        kind = pyarrow.large_string() if types.is_large_binary(column.type) else pyarrow.string()
        return pyarrow.chunked_array([chunk.view(kind) for chunk in column.chunks], kind)
    return column


def is_token_ids(kind: "pyarrow.DataType") -> bool:
    """Return whether values of an Arrow type are lists of whole numbers."""
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and types.is_integer(kind.value_type)


def token_arrays(column: "pyarrow.ChunkedArray") -> "list[np.ndarray | None]":
    """Return the lists of a column of token ids: int32 [n] each, None for null or for an id beyond int32."""
    import numpy as np

    found: list[np.ndarray | None] = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)  # floats with NaN if an id is null
        ends = np.cumsum(chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
        sound = not len(values) or bool(((values >= 0) & (values < 1 << 31)).all())
        lists = np.split(values, ends[:-1]) if len(ends) else []
        for one, is_valid in zip(lists, chunk.is_valid().to_pylist(), strict=True):
            inside = sound or bool(((one >= 0) & (one < 1 << 31)).all())
            found.append(one.astype(np.int32) if is_valid and inside else None)
    return found


def python_values(column: "pyarrow.ChunkedArray | pyarrow.Array") -> list[Any]:
    """Return a column as Python values; one that Python cannot hold becomes its error: not UTF-8, a date too late."""
    try:
        return column.to_pylist()
    except UNREADABLE:
        return [_decoded(scalar) for scalar in column]


def unreadable(value: Any) -> str | None:
    """Return why a value of `python_values` cannot be read, None if it can."""
    if isinstance(value, UnicodeDecodeError):
        return "not UTF-8"
    return f"not readable: {value}" if isinstance(value, UNREADABLE) else None


def may_be_unreadable(kind: "pyarrow.DataType") -> bool:
    """Return whether an Arrow type has values that are sound for Arrow, but beyond Python's."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return may_be_unreadable(kind.value_type)
    return types.is_temporal(kind) or any(may_be_unreadable(kind.field(n).type) for n in range(kind.num_fields))


def meta_text(values: dict[str, Any]) -> str:
    """Return the values of a record's meta as JSON.

    A NaN, as Parquet has for no value, becomes null; what JSON cannot hold otherwise becomes its text.
    """
    return json.dumps(_as_json(values), ensure_ascii=False, default=str, allow_nan=False)


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _decoded(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UNREADABLE as error:
        return error
