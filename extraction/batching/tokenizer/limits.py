"""Bounds on the memory and the time that one text may take in the pipeline of a tokenizer.

In: texts, and a function that gives their ids. Out: texts that are short enough, and ids within a time. Guarantee: a
shortened text begins with the same ids as the whole one; a text beyond the bounds raises DamagedData that names its
record. Cost: of a text that is shortened, three encodings of its first characters; for others nothing.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ...core.errors import DamagedData, ExtractionError
from ...format.records import Record

MOST_CHARACTERS = 16 << 20  # tokenized at once: some 130 bytes of memory for each, 2 GiB
_PER_TOKEN, _LEAST = 32, 4096  # characters that are tried first
_MARGIN = 64  # ids at the end of a shortened text that may differ
_CHARACTERS_PER_SECOND = 10_000  # a thousandth of the rate of a slow core
Result = TypeVar("Result")


def groups(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Yield lists of up to `size` records and `MOST_CHARACTERS`; records before a damaged one are still handed on.

    Raises DamagedData for a longer text.
    """
    group: list[Record] = []
    held = 0
    try:
        for record in records:
            if len(record.text) > MOST_CHARACTERS:
                raise DamagedData(
                    f"record {record.id}: its text has {len(record.text):,} characters, and a record has at most "
                    f"{MOST_CHARACTERS:,}: make streams of shorter records, or cut them by --long-documents truncate"
                )
            if len(group) == size or (group and held + len(record.text) > MOST_CHARACTERS):
                yield group
                group, held = [], 0
            group.append(record)
            held += len(record.text)
    except ExtractionError:
        yield group
        raise
    yield group


def shortened(text: str, most: int, encode: Callable[[str], list[int]]) -> str:
    """Return the text, or as much of its begin as surely gives its first `most` ids.

    The begin is sure if twice as much text, and one character more, give the same ids, and more than `most` of them:
    what a pipeline does to a text depends on what is near. A Unigram model also divides a run of one character by the
    length of a piece: the two are longer by numbers without a common divisor, so that no length divides both.
    """
    size = max(_PER_TOKEN * most, _LEAST)
    while 2 * size < len(text):
        ids = encode(text[:size])
        longer = (text[: 2 * size], text[: 2 * size + 1])
        if len(ids) >= most + _MARGIN and all(ids[:most] == encode(more)[:most] for more in longer):
            return text[:size]
        size *= 4
    return text


def within_time(act: Callable[[], Result], records: list[Record], least: float = 60.0) -> Result:
    """Return the result of `act`, which tokenizes these records. Raises DamagedData if it takes far too long.

    `least` is the time in seconds that records without text have.

    A regular expression of a tokenizer.json may take years on a text that is made for it. The thread is left behind.
    """
    found: list[Any] = []

    def work() -> None:
        try:
            found.append((act(), None))
        except BaseException as error:  # raised again in the caller's thread
            found.append((None, error))

    thread = threading.Thread(target=work, name="tokenizer", daemon=True)
    thread.start()
    seconds = least + sum(len(record.text) for record in records) / _CHARACTERS_PER_SECOND
    thread.join(seconds)
    if not found:
        raise DamagedData(
            f"records {records[0].id} to {records[-1].id}: the tokenizer did not end within {seconds:.0f} s; is an "
            "expression of its tokenizer.json made to take long?"
        )
    result, error = found[0]
    if error is not None:
        raise error
    return result
