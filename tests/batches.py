"""Small batches and their data, for tests of what comes after packing."""

import numpy as np

from extraction.packing import BatchShape, PackedBatch, pack_batches
from extraction.pipeline import BatchInFlight, Layout
from extraction.records import Cursor, TokenizedRecord

SHAPE = BatchShape(steps=1, rows=2, seq_len=8)
LENGTHS = (5, 3, 20, 0, 8, 1, 7, 7, 2, 16)
WIDTHS = {"blocks.0.hook_resid_post": 4}


def batches_from(cursor: Cursor, lengths: tuple[int, ...] = LENGTHS) -> list[PackedBatch]:
    """The batches of a stream of records with these lengths, from a cursor on."""
    records = (
        TokenizedRecord(i, f"record-{i}", np.arange(length, dtype=np.int32) + 100 * i)
        for i, length in enumerate(lengths) if i >= cursor.record
    )
    return list(pack_batches(records, cursor, SHAPE, "split"))


def data_of(batch: PackedBatch, number: int) -> memoryview | None:
    """The data object of a batch, with activations that are a function of the tokens."""
    if not batch.num_tokens:
        return None
    shard = BatchInFlight(batch, number, Layout(0, WIDTHS, np.dtype(np.float32))).shard
    shard.arrays["blocks.0.hook_resid_post"][:] = shard.arrays["tokens"][:, None] * [1.0, 2.0, 3.0, 4.0]
    return shard.data


def extract_all(chain) -> None:
    """What a worker does, without a model: commit every batch from the chain's cursor on."""
    for batch in [] if chain.end_of_stream else batches_from(chain.cursor):
        chain.commit(batch, data_of(batch, chain.next_batch), {})
