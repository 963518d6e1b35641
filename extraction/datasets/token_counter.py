"""The tokens of records, counted with the tokenizer of a model.

In: the folder of a model, a number of tokens, records. Out: the first records that together have at most so many.
Guarantee: tokens are counted as a worker with `--bos auto` has them. Cost: the tokenizer's, up to the limit.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..core.errors import InvalidRequest
from ..format.records import Record
from ..streams.build.materialize import Row

AT_A_TIME = 256


class TokenCounter:
    """Counts up to `limit` tokens of the model in the folder `model`."""

    def __init__(self, model: str, limit: int):
        from ..batching.tokenizer import RecordTokenizer

        self._limit, self._tokenizer = limit, RecordTokenizer(Path(os.path.expanduser(model)))

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records: whose tokens were counted."""
        return {"counted_with": self._tokenizer.digest}

    def first(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the first rows that together have at most the limit of tokens.

        Raises InvalidRequest if the first row alone has more.
        """
        left, source, is_first = self._limit, iter(rows), True
        while group := list(itertools.islice(source, AT_A_TIME)):
            for row, count in zip(group, self._counts(group), strict=True):
                left -= count
                if left < 0 and is_first:
                    raise InvalidRequest(f"--max-tokens {self._limit}: the first record alone has {count} tokens")
                if left < 0:
                    return
                yield row
                is_first = False

    def number_within(self, records: Iterable[Record]) -> int:
        """Return how many of the first records together have at most the limit of tokens. Raises as `first`."""
        rows = (Row(record.id, record.text, record.meta, record.tokens) for record in records)
        return sum(1 for _ in self.first(rows))

    def _counts(self, rows: list[Row]) -> list[int]:
        records = [Record(number, row.id, row.text, row.meta, row.tokens) for number, row in enumerate(rows)]
        return [len(record.tokens) for record in self._tokenizer.tokenize(records)]
