"""The batches of a stream: its records are limited, cut, tokenized and packed as the run config says.

In: a stream, the run config, the tokenizer, the token selection and a cursor. Out: `PackedBatch`es from the cursor on.
Guarantee: the worker, recomputing and `verify --tokens` get the same batches. Cost: reading, tokenizing and packing.
"""

from collections.abc import Iterator
from itertools import takewhile

from ..format.records import Cursor
from ..format.run_config import RunConfig
from ..streams.stream import Stream
from .packing import BatchShape, Cut, PackedBatch, pack_batches
from .token_selection import Selector
from .tokenizer import RecordTokenizer


def stream_batches(
    stream: Stream, config: RunConfig, tokenizer: RecordTokenizer, selector: Selector, cursor: Cursor
) -> Iterator[PackedBatch]:
    """Return the packed batches of a stream from a cursor on."""
    total = config.limit(stream.num_records)
    records = takewhile(lambda record: record.index < total, stream.read_records(cursor.record))
    cut = Cut(config.seq_len, config.long_documents, selector)
    tokenized = tokenizer.tokenize(records, offsets=selector.selection.span is not None, most=cut.most_tokens)
    shape = BatchShape(config.steps_per_batch, config.batch_size, config.seq_len)
    return pack_batches(tokenized, cursor, shape, config.long_documents, selector)
