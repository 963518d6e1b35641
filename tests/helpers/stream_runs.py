"""Runs with their streams, without a model: manifest, run.json, data objects and commits, on either backend.

Records have the lengths of `tests.helpers.batches.LENGTHS`; tokens and activations are functions of the record's number.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import checkpoint
from checkpoint import CommitChain
from extraction.audit.verify import RunAudit, audit_run
from extraction.batching.packing import PackedBatch, pack_batches
from extraction.batching.token_selection import EVERYTHING, Selection, Selector
from extraction.datasets import fineweb
from extraction.format.digests import digest_of
from extraction.format.records import Cursor, Record, TokenizedRecord
from extraction.format.run_config import RunConfig, RunDescription, SpecialTokenIds
from extraction.format.safetensors import SafetensorsFile, decode
from extraction.storage import Storage, crc32c_base64, open_storage
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from extraction.worker.loop import BatchInFlight, BatchLayout
from tests.helpers.batches import LENGTHS, SHAPE, fill_hook
from tests.helpers.corpora import write_corpus

NUM_WORKERS = 2
COMMIT, DATA = "worker-00000/commits/00000001.json", "worker-00000/batches/00000001.safetensors"
SPECIAL_IDS = (1, 200, 201, 203, 407)
HOOKS = {"blocks.0.hook_resid_post": 4, "blocks.1.hook_resid_post": 4}


def make_streams(folder: Path, num_streams: int = NUM_WORKERS) -> str:
    """Streams by reference over one Parquet file for each stream, ten records each."""
    write_corpus(folder / "corpus", [[3, 4, 3]] * num_streams)
    fineweb.create(open_storage(str(folder / "streams")), str(folder / "corpus"), num_streams)
    return str(folder / "streams")


def configure(streams: str, **changes: object) -> RunConfig:
    settings = {
        "model": "none",
        "revision": None,
        "weights_digest": "-",
        "tokenizer_digest": "-",
        "compute_dtype": "float32",
        "manifest_digest": load_manifest(streams).digest,
        "hook_points": tuple(HOOKS),
        "store_dtype": "float32",
        "seq_len": SHAPE.seq_len,
        "batch_size": SHAPE.rows,
        "steps_per_batch": SHAPE.steps,
        "bos": "never",
        "long_documents": "split",
        "max_records": None,
    }
    return RunConfig(**settings | changes)


def join(storage: Storage, streams: str, **changes: object) -> RunDescription:
    """Write `run.json`, as the first worker does."""
    return checkpoint.join_run(storage, describe(configure(streams, **changes), streams))


def describe(config: RunConfig, streams: str) -> RunDescription:
    """The content of `run.json`, with the special tokens that records of these runs have."""
    return RunDescription(config, streams, SpecialTokenIds({str(number): number for number in SPECIAL_IDS}))


def tokens_of(record: Record) -> TokenizedRecord:
    length = LENGTHS[record.index % len(LENGTHS)]
    return TokenizedRecord(record.index, record.id, np.arange(length, dtype=np.int32) + 100 * record.index)


def batches_of(
    streams: str, worker_id: int, cursor: Cursor, long_documents: str = "split", selector: Selector = EVERYTHING
) -> list[PackedBatch]:
    """The batches of a worker's stream from a cursor on."""
    records = open_stream(load_manifest(streams), streams, worker_id).read_records(cursor.record)
    return list(pack_batches(map(tokens_of, records), cursor, SHAPE, long_documents, selector))


def shard_of(
    batch: PackedBatch, worker_id: int, number: int, dtype: object = np.float32, widths: dict[str, int] = HOOKS
) -> SafetensorsFile:
    """The data object of a batch; values are small whole numbers, so that every dtype holds them."""
    shard = BatchInFlight(batch, number, BatchLayout(worker_id, widths, np.dtype(dtype))).file
    for factor, (hook_point, width) in enumerate(widths.items(), 1):
        fill_hook(shard.arrays, hook_point, shard.arrays["tokens"][:, None] % 16 * np.arange(-1, width - 1) * factor)
    return shard


def extract(storage: Storage, streams: str, worker_id: int, most: int | None = None, **changes: object) -> CommitChain:
    """What a worker does, without a model: commit the batches of its stream, at most `most` of them."""
    run = join(storage, streams, **changes)
    config, chain = run.config, CommitChain.load(storage, worker_id, run.fingerprint, run.root(worker_id))
    selector = Selector(Selection.parse(config.positions, config.drop_special), SPECIAL_IDS)
    for batch in batches_of(streams, worker_id, chain.cursor, config.long_documents, selector)[:most]:
        shard = shard_of(batch, worker_id, chain.next_batch, config.store_dtype)
        chain.commit(batch, shard.data if batch.num_rows else None, {})
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


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def assert_found(problems: Iterable[str], pattern: str) -> None:
    assert any(re.match(pattern, problem) for problem in problems), problems


def relink(storage: Storage, put: Callable[[str, bytes], object]) -> None:
    """Make each readable commit hold the digest of the one before it; `put` replaces an object."""
    for folder in storage.folders():
        last = digest_of(storage.read("run.json"))
        for name in [info.name for info in storage.list(f"{folder}/commits/")]:
            data = storage.read(name)
            with contextlib.suppress(ValueError):
                if json.loads(data)["previous"] != last:
                    put(name, data := edited(data, previous=last))
            last = digest_of(data)


class Store:
    """A finished run, and the means to change its objects."""

    def __init__(self, storage: Storage, gcs: object | None, streams: str):
        self.storage, self.gcs, self.streams = storage, gcs, streams

    def audit(self, **options: object) -> RunAudit:
        return audit_run(self.storage.location, **options)

    def problems(self, **options: object) -> list[str]:
        audit = self.audit(**options)
        assert audit.exit_code == (65 if audit.problems else 0)
        return audit.problems

    def _key(self, name: str) -> str:
        return f"{self.storage.location.removeprefix('gs://bucket/')}/{name}"

    def put(self, name: str, data: bytes) -> None:
        if self.gcs:
            self.gcs.objects.pop(self._key(name), None)
            self.gcs.land(self._key(name), bytes(data), None)
        else:
            path = Path(self.storage.location, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def remove(self, name: str) -> None:
        if self.gcs:
            del self.gcs.objects[self._key(name)]
        else:
            Path(self.storage.location, name).unlink()

    def change(self, name: str, change: Callable) -> None:
        """Replace an object by `change` of its bytes."""
        self.put(name, change(self.storage.read(name)))

    def edit(self, name: str, **changes: object) -> None:
        """Change keys of an object, and the chain of digests after it as who made it all would."""
        self.change(name, lambda data: edited(data, **changes))
        self.relink()

    def relink(self) -> None:
        relink(self.storage, self.put)

    def change_data(self, change: Callable) -> None:
        """Change the arrays of the data object, and commit what comes out as if it had been so from the beginning."""
        data = bytearray(self.storage.read(DATA))
        change(decode(data).arrays)
        self.put(DATA, data)
        self.edit(COMMIT, data__crc32c=crc32c_base64(data))
