"""Whole runs without a model: real chains and data objects, whose activations are a function of the token."""

import json
from collections.abc import Iterable
from dataclasses import replace

import ml_dtypes
import numpy as np

import checkpoint
from extraction.batching.packing import BatchShape, pack_batches
from extraction.batching.token_selection import EVERYTHING, Selector
from extraction.format.commit import commit_name, read_commit
from extraction.format.records import TokenizedRecord
from extraction.format.run_config import RunConfig, RunDescription
from extraction.storage import Storage
from extraction.worker.loop import BatchInFlight, BatchLayout
from tests.helpers.batches import fill_hook

SHAPE = BatchShape(steps=1, rows=2, seq_len=8)
WIDTHS = {"blocks.0.hook_resid_post": 4, "blocks.1.mlp.hook_post": 6}
DTYPE = np.dtype(ml_dtypes.bfloat16)  # stored
CONFIG = RunConfig(
    model="none", revision=None, weights_digest="-", tokenizer_digest="-", manifest_digest="-",
    hook_points=tuple(WIDTHS), compute_dtype="float32", store_dtype=DTYPE.name, seq_len=SHAPE.seq_len,
    batch_size=SHAPE.rows, steps_per_batch=SHAPE.steps, bos="never", long_documents="split", max_records=None,
)  # fmt: skip
FINGERPRINT = CONFIG.fingerprint
STREAMS = ([5, 3, 20, 0, 8, 1, 7, 7, 2, 16], [40, 1, 2, 30], [9] * 7)  # tokens of each record


def record_id(worker_id: int, index: int) -> str:
    return f"<urn:{worker_id}/{index}>"


def meta_of(index: int) -> dict[str, str] | None:
    """What the streams say of a record, by a key that those of AI2 ARC have; of two in three nothing."""
    return {"answer": "ABCD"[index % 4]} if index % 3 == 2 else None


def tokens_of(worker_id: int, index: int, length: int) -> np.ndarray:
    """Token ids that occur once in a run."""
    return np.arange(length, dtype=np.int32) + 100 * index + 100_000 * worker_id


def chain_of(storage: Storage, stream: int) -> checkpoint.CommitChain:
    """The chain of a stream that has begun, whatever has become of `run.json` since."""
    root = read_commit(storage, commit_name(stream, 0)).commit.previous
    return checkpoint.CommitChain.load(storage, stream, FINGERPRINT, root)


def all_tokens(streams: Iterable[Iterable[int]]) -> np.ndarray:
    """Those of a whole run, in order."""
    return np.concatenate([tokens_of(w, i, n) for w, lengths in enumerate(streams) for i, n in enumerate(lengths)])


def activations_of(tokens: np.ndarray, width: int) -> np.ndarray:
    """[n, width], told apart by token and coordinate to the precision of bfloat16."""
    spread = (tokens.astype(np.int64) * 2654435761 % 251)[:, None] - 125
    return (spread * (1 + np.arange(width)) / 16).astype(ml_dtypes.bfloat16)


def expected(tokens: Iterable[int], name: str) -> np.ndarray:
    """What a reader gives of these tokens at a hook point, in float32."""
    return activations_of(np.asarray(tokens), WIDTHS[name]).astype(np.float32)


def make_run(
    storage: object, streams: Iterable[Iterable[int]], stop_after: int | None = None, selector: Selector = EVERYTHING
) -> None:
    """A run with a worker for each list of record lengths; each worker stops after some batches, at the end if None."""
    config = replace(CONFIG, hook_points=tuple(WIDTHS), store_dtype=DTYPE.name, positions=str(selector.selection))
    run = checkpoint.join_run(storage, RunDescription(config, "/nowhere"))
    for worker_id, lengths in enumerate(streams):
        extract(
            checkpoint.CommitChain.load(storage, worker_id, config.fingerprint, run.digest),
            list(lengths),
            stop_after,
            selector,
        )


def extract(
    chain: checkpoint.CommitChain, lengths: list[int], stop_after: int | None = None, selector: Selector = EVERYTHING
) -> None:
    """Commit the batches of one worker from where its chain stands."""
    layout = BatchLayout(chain.stream, WIDTHS, DTYPE)
    records = (
        TokenizedRecord(
            index,
            record_id(chain.stream, index),
            tokens_of(chain.stream, index, length),
            json.dumps(meta_of(index)) if meta_of(index) else None,
        )
        for index, length in enumerate(lengths)
        if index >= chain.cursor.record
    )
    for number, batch in enumerate(pack_batches(records, chain.cursor, SHAPE, "split", selector)):
        if number == stop_after:
            return
        data = fill(BatchInFlight(batch, chain.next_batch, layout).file) if batch.num_rows else None
        chain.commit(batch, data, {"step": 0.5})


def fill(shard: object) -> memoryview:
    """The object, with activations put in."""
    for name, width in WIDTHS.items():
        fill_hook(shard.arrays, name, activations_of(shard.arrays["tokens"], width))
    return shard.data
