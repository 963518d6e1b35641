"""Runs with their streams, without a model: manifest, run.json, data objects and commits, on either backend.

Records have the lengths of `tests.batches.LENGTHS`; tokens and activations are functions of the record's number.
"""

import json
from pathlib import Path

import numpy as np

import checkpoint
from checkpoint import CommitChain
from extraction.config import ExtractionConfig
from extraction.datasets import fineweb
from extraction.packing import PackedBatch, pack_batches
from extraction.pipeline import BatchInFlight, Layout
from extraction.records import Cursor, Record, TokenizedRecord
from extraction.shards import Shard
from extraction.storage import Storage, open_storage
from extraction.streams import load_manifest, open_stream
from tests.batches import LENGTHS, SHAPE
from tests.corpora import write_corpus

HOOKS = {"blocks.0.hook_resid_post": 4, "blocks.1.hook_resid_post": 4}


def make_streams(folder: Path, num_streams: int = 2) -> str:
    """Streams by reference over one Parquet file for each stream, ten records each."""
    write_corpus(folder / "corpus", [[3, 4, 3]] * num_streams)
    fineweb.create(open_storage(str(folder / "streams")), str(folder / "corpus"), num_streams)
    return str(folder / "streams")


def configure(streams: str, **changes: object) -> ExtractionConfig:
    settings = {
        "model": "none", "revision": None, "weights_digest": "-", "tokenizer_digest": "-", "compute_dtype": "float32",
        "manifest_digest": load_manifest(streams).digest, "hook_points": tuple(HOOKS), "store_dtype": "float32",
        "seq_len": SHAPE.seq_len, "batch_size": SHAPE.rows, "steps_per_batch": SHAPE.steps, "bos": "never",
        "long_documents": "split", "max_records": None,
    }
    return ExtractionConfig(**settings | changes)


def join(storage: Storage, streams: str, **changes: object) -> ExtractionConfig:
    """Write `run.json`, as the first worker does."""
    config = configure(streams, **changes)
    checkpoint.join_run(storage, config.to_json(), {"fingerprint": config.fingerprint, "streams": streams})
    return config


def tokens_of(record: Record) -> TokenizedRecord:
    length = LENGTHS[record.index % len(LENGTHS)]
    return TokenizedRecord(record.index, record.id, np.arange(length, dtype=np.int32) + 100 * record.index)


def batches_of(streams: str, worker_id: int, cursor: Cursor, long_documents: str = "split") -> list[PackedBatch]:
    """The batches of a worker's stream from a cursor on."""
    records = open_stream(load_manifest(streams), streams, worker_id).read_records(cursor.record)
    return list(pack_batches(map(tokens_of, records), cursor, SHAPE, long_documents))


def shard_of(batch: PackedBatch, worker_id: int, number: int, dtype: object = np.float32) -> Shard:
    """The data object of a batch; values are small whole numbers, so that every dtype holds them."""
    shard = BatchInFlight(batch, number, Layout(worker_id, HOOKS, np.dtype(dtype))).shard
    for factor, hook_point in enumerate(HOOKS, 1):
        fill(shard, hook_point, shard.arrays["tokens"][:, None] % 16 * np.arange(-1, 3) * factor)
    return shard


def fill(shard: Shard, hook_point: str, values: np.ndarray) -> None:
    """Put values into a data object, with their sums."""
    shard.arrays[hook_point][:] = values
    stored = shard.arrays[hook_point].astype(np.float64)
    shard.arrays[f"{hook_point}.sum"][:] = stored.sum(0)
    shard.arrays[f"{hook_point}.sum_of_squares"][:] = (stored**2).sum(0)


def extract(storage: Storage, streams: str, worker_id: int, most: int | None = None, **changes: object) -> CommitChain:
    """What a worker does, without a model: commit the batches of its stream, at most `most` of them."""
    config = join(storage, streams, **changes)
    chain = CommitChain.load(storage, worker_id, config.fingerprint)
    for batch in batches_of(streams, worker_id, chain.cursor, config.long_documents)[:most]:
        shard = shard_of(batch, worker_id, chain.next_batch, config.store_dtype)
        chain.commit(batch, shard.data if batch.num_tokens else None, {})
    return chain


def edited(data: bytes, /, **changes: object) -> bytes:
    """A JSON object with some of its keys changed; `a__b` is key b of the object under a."""
    value = json.loads(data)
    for path, change in changes.items():
        *outer, last = path.split("__")
        inner = value
        for key in outer:
            inner = inner[key]
        inner[last] = change
    return json.dumps(value).encode()
