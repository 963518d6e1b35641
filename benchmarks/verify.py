"""How fast a run is audited: objects (data objects and commits) per second, from a bucket and from a folder.

In: nothing; a run of tiny batches is made, and served by tests/helpers/fake_gcs.py as a process of its own. Out: a
line for
each way. Fast is metadata and commits, deep reads each data object as well; `single`
is one worker with all the batches, `many` has sixteen. Client and server share the machine's cores, so the CPU seconds
of each are given too. For throughput of bytes, `large` has data objects of 16 MiB.

    python benchmarks/verify.py --output benchmarks/results/verify.json
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import checkpoint  # noqa: E402
from benchmarks.outcome import give, gives_results, note  # noqa: E402
from extraction.batching.packing import BatchShape, PackedBatch, pack_batches  # noqa: E402
from extraction.datasets import fineweb  # noqa: E402
from extraction.format.commit import Commit, DataObject, Totals, data_name  # noqa: E402
from extraction.format.digests import digest_of  # noqa: E402
from extraction.format.records import Cursor, TokenizedRecord  # noqa: E402
from extraction.format.run_config import RunConfig, RunDescription  # noqa: E402
from extraction.format.statistics import norm_counts  # noqa: E402
from extraction.storage import crc32c_base64, open_storage  # noqa: E402
from extraction.streams.extensions import load_manifest  # noqa: E402
from extraction.worker.loop import BatchInFlight, BatchLayout  # noqa: E402

HOOK = "blocks.0.hook_resid_post"


@dataclass(frozen=True)
class Size:
    """Workers, batches of each, and what a batch holds: `seq_len` tokens of one record, `width` values each."""

    workers: int
    batches: int
    seq_len: int = 16
    width: int = 8


SIZES = {"single": Size(1, 10_000), "many": Size(16, 625), "large": Size(2, 16, 2048, 4096)}


def make_streams(folder: Path, size: Size) -> str:
    """As many streams as workers, with a record for each batch."""
    (folder / "corpus").mkdir(parents=True)
    for worker in range(size.workers):
        ids = [f"<urn:uuid:{worker}-{number}>" for number in range(size.batches)]
        pq.write_table(pa.table({"id": ids, "text": ids}), folder / f"corpus/{worker:03d}.parquet", row_group_size=1000)
    fineweb.create(open_storage(str(folder / "streams")), str(folder / "corpus"), size.workers)
    return str(folder / "streams")


def make_run(folder: Path, streams: str, size: Size) -> None:
    """A finished run in a folder. Files are written plainly: syncing each would take longer than all the rest."""
    config = RunConfig(
        model="none",
        revision=None,
        weights_digest="-",
        tokenizer_digest="-",
        compute_dtype="float32",
        bos="never",
        manifest_digest=load_manifest(streams).digest,
        hook_points=(HOOK,),
        store_dtype="bfloat16",
        max_records=None,
        seq_len=size.seq_len,
        batch_size=1,
        steps_per_batch=1,
        long_documents="split",
    )
    run = checkpoint.join_run(open_storage(str(folder)), RunDescription(config, streams))
    for worker in range(size.workers):
        for kind in ("batches", "commits"):
            (folder / checkpoint.worker_folder(worker) / kind).mkdir(parents=True)
        totals, previous = Totals(), run.digest
        for number, batch in enumerate(batches_of(worker, size)):
            data = data_of(batch, (worker, number), size)
            totals = totals.plus(batch, len(data), {}, number == 0, {})
            commit = commit_of(batch, (worker, number), data, (config.fingerprint, totals, previous))
            (folder / data_name(commit)).write_bytes(data)
            (folder / checkpoint.commit_name(worker, number)).write_bytes(commit.to_bytes())
            previous = digest_of(commit.to_bytes())


def batches_of(worker: int, size: Size) -> Iterator[PackedBatch]:
    tokens = np.arange(size.seq_len, dtype=np.int32)
    records = (TokenizedRecord(n, f"<urn:uuid:{worker}-{n}>", tokens) for n in range(size.batches))
    return pack_batches(records, Cursor(0, 0), BatchShape(1, 1, size.seq_len), "split")


def data_of(batch: PackedBatch, place: tuple[int, int], size: Size) -> memoryview:
    layout = BatchLayout(place[0], {HOOK: size.width}, np.dtype("bfloat16"))
    shard = BatchInFlight(batch, place[1], layout).file
    shard.arrays[HOOK][:] = 1
    shard.arrays[f"{HOOK}.sum"][:] = shard.arrays[f"{HOOK}.sum_of_squares"][:] = batch.num_rows
    shard.arrays[f"{HOOK}.norm_counts"][:] = norm_counts(np.full(batch.num_rows, size.width**0.5))
    shard.arrays[f"{HOOK}.max"][:] = 1
    return shard.data


def commit_of(batch: PackedBatch, place: tuple[int, int], data: memoryview, run: tuple[str, Totals, str]) -> Commit:
    name = f"batches/{place[1]:08d}.safetensors"
    return Commit(
        stream=place[0],
        batch=place[1],
        cursor_before=batch.cursor_before,
        cursor_after=batch.cursor_after,
        data=DataObject(name, len(data), crc32c_base64(data), None),
        num_records=batch.num_records,
        num_rows=batch.num_rows,
        num_tokens=batch.num_tokens,
        end_of_stream=batch.end_of_stream,
        attempt="0" * 32,
        fingerprint=run[0],
        record_ids_digest=checkpoint.digest_ids(batch.record_ids),
        reconstruction_error={},
        not_finite={},
        host="machine",
        started="2026-01-01T00:00:00Z",
        versions={"jax": "0"},
        seconds={"step": 1.0, "upload": 0.5},
        totals=run[1],
        previous=run[2],
    )


def as_bucket(run: Path, folder: Path) -> Path:
    """The folder that a test server serves as its bucket: a link for each object of the run, under `run/`."""
    folder.mkdir()
    for path in run.rglob("*"):
        if path.is_file():
            os.link(path, folder / quote(f"run/{path.relative_to(run)}", safe=""))
    return folder


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(location: str, deep: bool, server: subprocess.Popen | None) -> dict[str, float]:
    """One `verify` in a new process, from its start to its end, imports included."""
    before = cpu_seconds(server.pid) if server else 0.0
    more = ["--deep", "--no-tokens"] if deep else []
    command = [sys.executable, ROOT / "extract_activations.py", "verify", location, "--json", *more]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status or found["verdict"] != "proven":
        raise SystemExit(f"{location}: {found['problems'][:3]}")
    objects = 2 * found["num_batches"]
    return {
        "objects": objects,
        "seconds": round(seconds, 2),
        "objects_per_second": round(objects / seconds),
        "data_mib_per_second": round(found["num_bytes"] / seconds / (1 << 20), 1),
        "client_cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_memory_mib": usage.ru_maxrss // 1024,
        "server_cpu_s": round(cpu_seconds(server.pid) - before, 2) if server else None,
    }


@click.command()
@click.option("--only", type=click.Choice(list(SIZES)), help="Measure one size only.")
@gives_results
def main(only: str | None, as_json: bool, output: Path | None) -> None:
    """Measure."""
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "command": "python benchmarks/verify.py",
    }
    with tempfile.TemporaryDirectory() as name:
        for label in [only] if only else SIZES:
            work, size = Path(name) / label, SIZES[label]
            make_run(work / "run", make_streams(work, size), size)
            command = [
                sys.executable,
                "-m",
                "tests.helpers.fake_gcs",
                "--folder",
                as_bucket(work / "run", work / "bucket"),
            ]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            try:
                os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
                for deep in (False, True):
                    for place, location in (("bucket", "gs://bucket/run"), ("folder", str(work / "run"))):
                        way = f"{label}, {place}, {'deep' if deep else 'fast'}"
                        results[way] = measure(location, deep, server if place == "bucket" else None)
                        note({way: results[way]})
            finally:
                server.kill()
                server.wait()
    give(results, "\n".join(f"{name}: {found}" for name, found in results.items()), as_json, output)


if __name__ == "__main__":
    main()
