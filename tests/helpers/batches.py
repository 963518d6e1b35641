"""Small batches and their data, for tests of what comes after packing."""

import numpy as np
from ddsketch import LogarithmicMapping

from extraction.batching.packing import BatchShape, PackedBatch, pack_batches
from extraction.format.records import Cursor, TokenizedRecord
from extraction.worker.loop import BatchInFlight, BatchLayout

SHAPE = BatchShape(steps=1, rows=2, seq_len=8)
LENGTHS = (5, 3, 20, 0, 8, 1, 7, 7, 2, 16)
WIDTHS = {"blocks.0.hook_resid_post": 4}


def batches_from(cursor: Cursor, lengths: tuple[int, ...] = LENGTHS) -> list[PackedBatch]:
    """The batches of a stream of records with these lengths, from a cursor on."""
    records = (
        TokenizedRecord(i, f"record-{i}", np.arange(length, dtype=np.int32) + 100 * i)
        for i, length in enumerate(lengths)
        if i >= cursor.record
    )
    return list(pack_batches(records, cursor, SHAPE, "split"))


def data_of(batch: PackedBatch, number: int) -> memoryview | None:
    """The data object of a batch, with activations that are a function of the tokens."""
    if not batch.num_rows:
        return None
    shard = BatchInFlight(batch, number, BatchLayout(0, WIDTHS, np.dtype(np.float32))).file
    fill_hook(shard.arrays, "blocks.0.hook_resid_post", shard.arrays["tokens"][:, None] * [1.0, 2.0, 3.0, 4.0])
    return shard.data


def fill_hook(arrays: dict[str, np.ndarray], name: str, values: np.ndarray) -> None:
    """Put the values of a hook point into a data object as a worker would store them, with what is known of them."""
    largest_code, scale = {"int8": 127.0, "float8_e4m3fn": 448.0}.get(arrays[name].dtype.name), None
    if largest_code is not None:
        scale = arrays[f"{name}.scale"]
        scale[:] = np.abs(values).max(axis=1) / largest_code
        values = values / np.where(scale, scale, 1.0)[:, None]
        values = np.round(values) if largest_code == 127.0 else values
    arrays[name][:] = values
    stored = arrays[name].astype(np.float64) * (1.0 if scale is None else scale[:, None].astype(np.float64))
    with np.errstate(invalid="ignore"):
        arrays[f"{name}.sum"][:], arrays[f"{name}.sum_of_squares"][:] = stored.sum(axis=0), (stored**2).sum(axis=0)
        norms = np.linalg.norm(stored, axis=1)
    mapping, counts = LogarithmicMapping(0.01), arrays[f"{name}.norm_counts"]
    counts[:] = 0
    for norm in norms[~np.isnan(norms)]:
        counts[2047 if norm > 1e8 else mapping.key(norm) + 1024 if norm > 1e-8 else 0] += 1
    size = np.nan_to_num(np.abs(stored), nan=0.0, posinf=np.inf).astype(np.float32)
    if size.size:
        place = np.unravel_index(size.argmax(), size.shape)
        arrays[f"{name}.max"][:], arrays[f"{name}.max_at"][:] = size[place], place


def extract_all(chain) -> None:
    """What a worker does, without a model: commit every batch from the chain's cursor on."""
    for batch in [] if chain.end_of_stream else batches_from(chain.cursor):
        chain.commit(batch, data_of(batch, chain.next_batch), {})
