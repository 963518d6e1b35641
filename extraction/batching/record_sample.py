"""Read the first records of a manifest: count their tokens and stored rows, look for spans in their meta.

In: the location of the streams, a tokenizer, and the rule that cuts records. Out: records, and `Sample`, the counts
from which the size of a batch is estimated. Guarantee: the same streams and flags give the same counts, so that workers
that start at the same time agree. Cost: the first row group of one stream; `all_records` reads as far as its caller
does.
"""

import contextlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ..core.errors import DamagedData, InvalidRequest
from ..core.logs import say
from ..format.records import Record
from ..streams.manifest import Manifest
from ..streams.stream import open_stream
from .packing import Cut
from .token_selection import Selection, spans_of
from .tokenizer import RecordTokenizer

_RECORDS = 256


class Sample(NamedTuple):
    """Counts of some records: records, tokens, stored rows."""

    records: int
    tokens: int
    rows: int

    @property
    def tokens_per_record(self) -> float:
        """Tokens for each record."""
        return self.tokens / max(self.records, 1)

    @property
    def share(self) -> float:
        """Rows for each token."""
        return self.rows / max(self.tokens, 1)


def count_first_records(manifest: Manifest, location: str, tokenizer: RecordTokenizer, cut: Cut) -> Sample:
    """Count the first records of the first stream. Raises as reading a stream does."""
    records = first_records(manifest, location, _RECORDS)
    with_offsets = cut.selector.selection.span is not None
    tokenized = tokenizer.tokenize(records, offsets=with_offsets, most=cut.most_tokens)
    counts = [cut.count(record) for record in tokenized]
    return Sample(len(counts), sum(tokens for tokens, _ in counts), sum(rows for _, rows in counts))


def first_records(manifest: Manifest, location: str, most: int) -> list[Record]:
    """Return up to `most` records of the first stream that has records."""
    number = next((number for number, stream in enumerate(manifest.streams) if stream.num_records), 0)
    return list(islice(open_stream(manifest, location, number).read_records(), most))


def all_records(manifest: Manifest, location: str, first: int) -> Iterator[Record]:
    """Yield the records of stream `first` and then of the others; skip the rest of a damaged stream."""
    for number in range(manifest.num_streams):
        stream = open_stream(manifest, location, (first + number) % manifest.num_streams)
        with contextlib.suppress(DamagedData):  # the worker of that stream reports it
            yield from stream.read_records()


def check_spans(selection: Selection, manifest: Manifest, location: str) -> None:
    """Raise InvalidRequest if neither the manifest nor the first records have any span, or only the manifest's others.

    Warns where the first records have spans, and none of this name: it may be rare.
    """
    name, declared = selection.span, manifest.options.get("spans", ())
    if name is None or name in declared:
        return
    found = {
        span for record in first_records(manifest, location, _RECORDS) for span in spans_of(record.meta, record.id)
    }
    if name in found:
        return
    if declared or not found:
        there = ", ".join(sorted({*declared, *found})) or "none"
        raise InvalidRequest(
            f"--positions {name}: no such rule, and the records of {location} have no span of this name in their meta "
            f"(there are {there}); chat streams have those of roles, arc-agi and ai2-arc of the answer if they were "
            "made --with-answer"
        )
    say(f"--positions {name}: none of the first {_RECORDS} records has a span of this name", "WARNING")
