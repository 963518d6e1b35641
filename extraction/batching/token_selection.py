"""Which tokens of a record are stored: `--positions` and `--drop-special`. Pure, no I/O.

In: the flags, and a record as token ids. Out: a mask of its tokens, and for `verify` the rows that the lengths of
records alone tell. Guarantee: what is stored of a record is a function of the record and the flags. Positions count
from 0 in the record as it is worked on, with `truncate` after it was cut; negative ones from its end. Cost: nothing
for `all`, one pass over the ids otherwise; the text is looked at for spans only.

    all | last | mean | every:K | a list such as 0,1,5,-1 | answer | test-input
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from ..core.errors import DamagedData, InvalidRequest
from ..core.strict_json import loads
from ..format.records import TokenizedRecord

SPANS = ("answer", "test-input")
_MOST = 1 << 31


@dataclass(frozen=True)
class Selection:
    """The two flags. `kind` is all, last, mean, every, list or span; `numbers` K, or the positions of a list."""

    kind: str = "all"
    numbers: tuple[int, ...] = ()
    span: str | None = None
    drop_special: bool = False

    @classmethod
    def parse(cls, text: str, drop_special: bool = False) -> "Selection":
        """Raises InvalidRequest that says what may stand there."""
        word = text.strip()
        if word in ("all", "last", "mean"):
            return cls(word, drop_special=drop_special)
        if word in SPANS:
            return cls("span", span=word, drop_special=drop_special)
        is_every, parts = word.startswith("every:"), word.removeprefix("every:").split(",")
        numbers = [int(part) if re.fullmatch(r"\s*-?[0-9]{1,10}\s*", part) else _MOST for part in parts]
        if any(abs(number) >= _MOST for number in numbers) or (is_every and (len(numbers) > 1 or numbers[0] < 1)):
            choices = f"all, last, mean, every:K with K from 1, {', '.join(SPANS)} or a list such as 0,1,5,-1"
            raise InvalidRequest(f"--positions {text}: give {choices}")
        ordered = tuple(sorted(set(numbers), key=lambda number: (number < 0, number)))
        return cls("every" if is_every else "list", ordered, drop_special=drop_special)

    def __str__(self) -> str:
        """As it is written in `run.json`: one text for one meaning."""
        numbers = ",".join(map(str, self.numbers))
        return {"every": f"every:{numbers}", "list": numbers, "span": self.span}.get(self.kind, self.kind)

    @property
    def is_everything(self) -> bool:
        return self.kind == "all" and not self.drop_special

    @property
    def pools(self) -> bool:
        """Is a row the mean over a window?"""
        return self.kind == "mean"

    @property
    def is_told_by_lengths(self) -> bool:
        """Does the length of a record tell which of its tokens are stored?"""
        return self.span is None and not self.drop_special

    @property
    def known_share(self) -> float:
        """Rows for each token, where the rule alone tells; 1 where it depends on the records."""
        return 1 / self.numbers[0] if self.kind == "every" else 1.0

    @property
    def reach(self) -> int:
        """How far before the end of a record a position may lie that counts from there."""
        return {"last": 1, "list": max(0, -min(self.numbers, default=0))}.get(self.kind, 0)

    def named(self, first: int, last: int, length: int | None) -> np.ndarray:
        """int64, rising: positions in [first, last) of a record of this length that the rule names; all of them for
        `mean` and spans. Where the length is None, those that count from the end are left out."""
        if self.kind == "every":
            (step,) = self.numbers
            return np.arange(-(-first // step) * step, last, step, dtype=np.int64)
        if self.kind not in ("last", "list"):
            return np.arange(first, last, dtype=np.int64)
        places = {n for n in self._listed if n >= 0}
        if length is not None:
            places |= {length + n for n in self._listed if n < 0}
        return np.array(sorted(place for place in places if first <= place < last), np.int64)

    def most_without_row(self, first: int, ends: bool) -> float:
        """The largest n for which tokens [first, first + n) of a record, which ends with them or goes on, may have no
        row; any fewer may have none either. Infinite where nothing tells."""
        if not self.is_told_by_lengths:
            return inf
        if self.kind == "every":
            return -first % self.numbers[0]
        if self.kind not in ("last", "list"):
            return 0
        from_end = [-1 - n for n in self._listed if n < 0 and ends]
        return min([n - first for n in self._listed if n >= first] + from_end, default=inf)

    @property
    def _listed(self) -> tuple[int, ...]:
        return (-1,) if self.kind == "last" else self.numbers


@dataclass(frozen=True)
class Selector:
    """A selection with what the tokenizer knows: the ids of its special tokens."""

    selection: Selection = Selection()
    special_ids: tuple[int, ...] = ()

    @cached_property
    def _special(self) -> np.ndarray:
        return np.array(sorted(self.special_ids), np.int64)

    def kept(self, record: TokenizedRecord, length: int) -> np.ndarray | None:
        """bool [length]: which of the first `length` tokens, with which the record ends, are stored or counted in a
        mean; None for all of them. Raises DamagedData for spans that are none."""
        selection = self.selection
        if selection.is_everything or (selection.pools and not selection.drop_special):
            return None
        kept = np.zeros(length, bool)
        kept[selection.named(0, length, length)] = True
        if selection.span is not None:
            kept &= _inside(record, selection.span)[:length]
        if selection.drop_special:
            kept &= ~np.isin(record.tokens[:length], self._special)
        return kept


EVERYTHING = Selector()


def _inside(record: TokenizedRecord, name: str) -> np.ndarray:
    """bool [n]: which tokens overlap the span of characters; none where the record has no such span."""
    span = spans_of(record.meta, record.id).get(name)
    if span is None:
        return np.zeros(len(record.tokens), bool)
    if record.offsets is None:
        raise ValueError(f"record {record.id}: tokenize it with offsets, a span is in characters")
    begins, ends = record.offsets.T
    return (begins < span[1]) & (ends > span[0]) & (begins < ends) & (span[0] < span[1])


def spans_of(meta: str | None, record_id: str) -> dict[str, Sequence[int]]:
    """{name: [first, last)} in characters of the record's text, from its meta. Raises DamagedData."""
    try:
        value = {} if meta is None else loads(meta.encode())
        spans = value.get("spans", {}) if isinstance(value, dict) else {}
        for first, last in spans.values():
            if type(first) is not int or type(last) is not int or not 0 <= first <= last:
                raise ValueError("not [first, last)")
        return spans
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedData(f"record {record_id}: its meta has no spans that can be read: {error}") from error
