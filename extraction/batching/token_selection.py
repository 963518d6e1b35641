"""Token selection: the tokens of a record to store, from `--positions` and `--drop-special`. Pure, no I/O.

In: the flags, and a record as token ids. Out: a mask of its tokens, and for `verify` the rows that follow from the
lengths of records alone. Guarantee: the mask is a function of the record and the flags. Positions count from 0 in the
record, with `truncate` in the cut record; negative positions count from its end. Cost: nothing for `all`, one pass over
the ids otherwise; spans also need the offsets of tokens in the text.

    all | last | mean | every:K | a list such as 0,1,5,-1 | a slice such as 1: or 10:-1:2 | the name of a span
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from ..core.errors import DamagedData, InvalidRequest
from ..core.strict_json import loads
from ..format.records import TokenizedRecord

_MOST = 1 << 31
_SPAN = re.compile(r"(?!every$)[A-Za-z][\w-]*")
_SLICE = re.compile(r"(-?[0-9]+)?:(-?[0-9]+)?(?::([0-9]+)?)?")
Bounds = tuple[int | None, int | None, int]


@dataclass(frozen=True)
class Selection:
    """The two flags. `kind` is all, last, mean, every, list, slice or span.

    `numbers` is K, or the positions of a list; `bounds` are start, stop and step of a slice, as in Python.
    """

    kind: str = "all"
    numbers: tuple[int, ...] = ()
    span: str | None = None
    drop_special: bool = False
    bounds: Bounds = (None, None, 1)

    @classmethod
    def parse(cls, text: str, drop_special: bool = False) -> "Selection":
        """Return the selection of `--positions`. Raises InvalidRequest that lists the valid values."""
        word = text.strip()
        if word in ("all", "last", "mean"):
            return cls(word, drop_special=drop_special)
        if _SPAN.fullmatch(word):
            return cls("span", span=word, drop_special=drop_special)
        if (bounds := _bounds(word)) is not None:
            return cls("all" if bounds == (None, None, 1) else "slice", drop_special=drop_special, bounds=bounds)
        is_every, parts = word.startswith("every:"), word.removeprefix("every:").split(",")
        numbers = [int(part) if re.fullmatch(r"\s*-?[0-9]{1,10}\s*", part) else _MOST for part in parts]
        if any(abs(number) >= _MOST for number in numbers) or (is_every and (len(numbers) > 1 or numbers[0] < 1)):
            choices = "all, last, mean, every:K with K from 1, a list such as 0,1,5,-1, a slice such as 1: with a step"
            raise InvalidRequest(f"--positions {text}: give {choices} from 1, or the name of a span such as assistant")
        ordered = tuple(sorted(set(numbers), key=lambda number: (number < 0, number)))
        return cls("every" if is_every else "list", ordered, drop_special=drop_special)

    def __str__(self) -> str:
        """Return the text in `run.json`: one text for one meaning."""
        numbers = ",".join(map(str, self.numbers))
        start, stop, step = ("" if bound is None else str(bound) for bound in self.bounds)
        sliced = f"{start}:{stop}" + (f":{step}" if step != "1" else "")
        texts = {"every": f"every:{numbers}", "list": numbers, "span": self.span, "slice": sliced}
        return texts.get(self.kind) or self.kind

    @property
    def is_everything(self) -> bool:
        """Whether all tokens are stored."""
        return self.kind == "all" and not self.drop_special

    @property
    def pools(self) -> bool:
        """Whether a row is the mean over a window."""
        return self.kind == "mean"

    @property
    def needs_only_lengths(self) -> bool:
        """Whether the length of a record alone decides which of its tokens are stored."""
        return self.span is None and not self.drop_special

    @property
    def known_share(self) -> float:
        """Rows for each token if the rule alone decides it; 1 if it depends on the records."""
        return 1 / self.numbers[0] if self.kind == "every" else 1.0

    @property
    def reach(self) -> int:
        """The largest distance from the end of a record of a position that counts from there."""
        start, stop, _ = self.bounds  # whether the token before a stop is named depends on the end, too
        of_slice = max(-(start or 0), 1 - stop if stop is not None and stop < 0 else 0, 0)
        return {"last": 1, "list": max(0, -min(self.numbers, default=0)), "slice": of_slice}.get(self.kind, 0)

    def named(self, first: int, last: int, length: int | None) -> np.ndarray:
        """Return the positions in [first, last) of a record that the rule names: int64, rising.

        `mean` and spans name all of them. If the length is None, positions that count from the end are left out.
        """
        if self.kind == "slice":
            return self._sliced(first, last, length)
        if self.kind == "every":
            (step,) = self.numbers
            return np.arange(-(-first // step) * step, last, step, dtype=np.int64)
        if self.kind not in ("last", "list"):
            return np.arange(first, last, dtype=np.int64)
        places = {n for n in self._listed if n >= 0}
        if length is not None:
            places |= {length + n for n in self._listed if n < 0}
        return np.array(sorted(place for place in places if first <= place < last), np.int64)

    def _sliced(self, first: int, last: int, length: int | None) -> np.ndarray:
        start, stop, step = self.bounds
        if length is not None:
            start, stop, step = slice(start, stop, step).indices(length)
        start, stop = start or 0, last if stop is None else stop
        if start < 0:
            return np.zeros(0, np.int64)
        stop = last + stop if stop < 0 else stop
        start += -(-max(first - start, 0) // step) * step
        return np.arange(start, max(start, min(stop, last)), step, dtype=np.int64)

    def most_without_row(self, first: int, ends: bool) -> float:
        """Return the largest n such that tokens [first, first + n) of a record may have no row.

        This holds for any smaller n, too. The result is infinite if lengths alone do not decide it.

        Args:
            first: position of the first token in its record.
            ends: whether the record ends with these tokens.
        """
        if not self.needs_only_lengths:
            return inf
        if self.kind == "every":
            return -first % self.numbers[0]
        if self.kind == "slice":
            return self._most_outside(first, ends)
        if self.kind not in ("last", "list"):
            return 0
        from_end = [-1 - n for n in self._listed if n < 0 and ends]
        return min([n - first for n in self._listed if n >= first] + from_end, default=inf)

    def _most_outside(self, first: int, ends: bool) -> float:
        """Return the same for a slice; where it counts from the end at most, as the length is not known."""
        start, stop, step = self.bounds
        start = start or 0
        if start < 0:
            return -start - 1 if ends and (stop is None or start < stop < 0) else inf
        named = start + -(-max(first - start, 0) // step) * step  # the next position
        if stop is None or stop >= 0:
            return named - first if stop is None or named < stop else inf
        return named - first - stop - (not ends)

    @property
    def _listed(self) -> tuple[int, ...]:
        return (-1,) if self.kind == "last" else self.numbers


@dataclass(frozen=True)
class Selector:
    """A selection, and the ids of the special tokens of the tokenizer."""

    selection: Selection = Selection()
    special_ids: tuple[int, ...] = ()

    @cached_property
    def _special(self) -> np.ndarray:
        return np.array(sorted(self.special_ids), np.int64)

    def kept(self, record: TokenizedRecord, length: int) -> np.ndarray | None:
        """Return bool [length], the tokens that are stored or part of a mean; None for all of them.

        The record ends after `length` tokens. Raises DamagedData for a span that is not two rising numbers, or not
        inside the text.
        """
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


def _bounds(text: str) -> Bounds | None:
    """Return start, stop and step of a slice, None for any other text."""
    match = _SLICE.fullmatch("".join(text.split()))
    numbers = [None if part is None else int(part) for part in match.groups()] if match else [_MOST]
    if any(abs(number) >= _MOST for number in numbers if number is not None) or numbers[2] == 0:
        return None
    return numbers[0] or None, numbers[1], numbers[2] or 1


def _inside(record: TokenizedRecord, name: str) -> np.ndarray:
    """Return bool [n], the tokens that overlap a span of this name; none if the record has no such span."""
    inside = np.zeros(len(record.tokens), bool)
    spans = spans_of(record.meta, record.id).get(name, [])
    if spans and record.offsets is None:
        raise ValueError(f"record {record.id}: tokenize it with offsets, a span is in characters")
    for first, last in spans:
        if record.num_chars is not None and last > record.num_chars:
            text = f"its text has {record.num_chars} characters"
            raise DamagedData(f"record {record.id}: the span {name} of its meta ends at {last}, {text}")
        begins, ends = record.offsets.T  # pyright: ignore[reportOptionalMemberAccess]  # checked above
        inside |= (begins < last) & (ends > first) & (begins < ends) & (first < last)
    return inside


def spans_of(meta: str | None, record_id: str) -> dict[str, list[Sequence[int]]]:
    """Return {name: [first, last) of each} in characters of the record's text, from its meta. Raises DamagedData."""
    try:
        value = {} if meta is None else loads(meta.encode())
        spans = value.get("spans", {}) if isinstance(value, dict) else {}
        spans = {} if spans is None else spans
        several = {name: [span] if span and type(span[0]) is int else span for name, span in spans.items()}
        for first, last in itertools.chain.from_iterable(several.values()):
            if type(first) is not int or type(last) is not int or not 0 <= first <= last:
                raise ValueError("not [first, last)")
        return several
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DamagedData(f"record {record_id}: its meta has no spans that can be read: {error}") from error
