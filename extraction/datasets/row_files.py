"""Rows of Parquet and JSONL files, wherever they lie, as Python values.

In: a source (folder, file, glob; local, gs:// or hf://datasets/...). Out: where each row is, and the row, in order.
Guarantee: nothing is passed over; a line that is no JSON object raises `DamagedData` naming it. Cost: in memory are a
few rows of Parquet, or a line.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

from ..errors import DamagedData
from ..parquet import Files, damage_named, read_footer
from .sources import Source

SUFFIXES = (".parquet", ".jsonl")
ROWS_AT_A_TIME = 64
Located = tuple[str, dict[str, Any]]


def read_rows(source: Source) -> Iterator[Located]:
    """The rows of all files, one file after the other."""
    files = Files()
    for file in source.files:
        opened = files.open(file.name, file.info)
        with opened.handle as handle:
            if file.name.endswith(".parquet"):
                yield from _parquet_rows(opened)
            else:
                yield from _json_lines(
                    file.name, handle if isinstance(handle, io.BufferedReader) else io.BufferedReader(handle)
                )


def _parquet_rows(opened: Any) -> Iterator[Located]:
    import pyarrow.parquet

    _, metadata = read_footer(opened)
    parquet = pyarrow.parquet.ParquetFile(opened.handle, metadata=metadata)
    number = 0
    batches = parquet.iter_batches(ROWS_AT_A_TIME, use_threads=False)
    while True:
        with damage_named(opened.name):
            batch = next(batches, None)
            if batch is None:
                return
            rows = batch.to_pylist()
        for row in rows:
            yield f"{opened.name}: row {number}", row
            number += 1


def _json_lines(name: str, handle: io.BufferedReader) -> Iterator[Located]:
    for number, line in enumerate(handle, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedData(f"{name}: line {number} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DamagedData(f"{name}: line {number} is not a JSON object")
        yield f"{name}: line {number}", row
