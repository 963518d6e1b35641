"""How fast a run is read: from the page cache, from the disk, from a bucket, shuffled; its statistics; opening it.

In: nothing; a run of `--gib` is made in a folder and on the GCS server of the tests, which is a process of its own on
the same cores. Out: one line of JSON. Every byte that is read is used: the sum of each array's bytes as 64-bit words.
What stands next to each other was measured in turns, in the same run; figures are medians, but for the page cache.

    python benchmarks/reader.py --output benchmarks/results/reader.json
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import checkpoint  # noqa: E402
from benchmarks.outcome import about, give, gives_results  # noqa: E402
from extraction.batching.packing import BatchShape, pack_batches  # noqa: E402
from extraction.format.records import TokenizedRecord  # noqa: E402
from extraction.format.run_config import RunConfig, RunDescription  # noqa: E402
from extraction.read.reader import ActivationReader  # noqa: E402
from extraction.read.shuffle import ShuffledReader, ShuffleOptions  # noqa: E402
from extraction.storage import open_storage  # noqa: E402
from extraction.worker.loop import BatchInFlight, BatchLayout  # noqa: E402
from tests.helpers.fake_gcs import FakeGcs  # noqa: E402

WIDTH, WORKERS, SHAPE = 576, 4, BatchShape(steps=1, rows=56, seq_len=2048)
HOOK, ROUNDS = "blocks.15.hook_resid_post", 5
CONFIG = RunConfig(
    model="none", revision=None, weights_digest="-", tokenizer_digest="-", manifest_digest="-", hook_points=(HOOK,),
    compute_dtype="float32", store_dtype="bfloat16", seq_len=SHAPE.seq_len, batch_size=SHAPE.rows,
    steps_per_batch=SHAPE.steps, bos="never", long_documents="split", max_records=None,
)  # fmt: skip


def make_run(location: str, num_bytes: int) -> None:
    """Workers with objects of about 128 MiB; the values are of no matter."""
    storage = open_storage(location)
    run = checkpoint.join_run(storage, RunDescription(CONFIG, ""))
    lengths = np.random.default_rng(0).integers(50, 2000, 10_000)
    for worker_id in range(WORKERS):
        layout = BatchLayout(worker_id, {HOOK: WIDTH}, np.dtype(ml_dtypes.bfloat16))
        chain = checkpoint.CommitChain.load(storage, worker_id, CONFIG.fingerprint, run.digest)
        records = (TokenizedRecord(i, f"record-{i}", np.zeros(n, np.int32)) for i, n in enumerate(lengths))
        for batch in pack_batches(records, chain.cursor, SHAPE, "split"):
            shard = BatchInFlight(batch, chain.next_batch, layout).file
            shard.arrays[HOOK][:] = 1.0
            chain.commit(batch, shard.data, {"step": 1.0})
            if chain.totals.bytes >= num_bytes // WORKERS:
                break


def touch(array: np.ndarray) -> int:
    """Read every byte."""
    data = array.view(np.uint8).reshape(-1)
    data[: len(data) // 8 * 8].view(np.uint64).sum()
    return array.nbytes


def measure(work: Callable[[], int], times: int = 3) -> float:
    """The best rate of some runs, in what `work` counts per second."""
    rates = []
    for _ in range(times):
        begin = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - begin))
    return max(rates)


def by_cpu(work: Callable[[], int]) -> float:
    """GiB for each second on the processor, of all threads."""
    begin = time.process_time()
    return round(work() / (time.process_time() - begin) / 2**30, 2)


def in_turns(works: dict[str, Callable[[], int]], prepare: Callable[[], None]) -> dict[str, float]:
    """The median rate of each in GiB/s; they take turns, each after `prepare`."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            prepare()
            rates[name].append(measure(work, 1) / 2**30)
    return {name: round(statistics.median(found), 2) for name, found in rates.items()}


def read_in_order(location: str) -> int:
    return sum(touch(rows.activations) for rows in ActivationReader(location).rows(HOOK))


def read_top_rows(location: str) -> int:
    """The pass of `show --top-k`; the bytes that it looked at."""
    reader = ActivationReader(location)
    reader.top_rows(np.ones(WIDTH, np.float32), 20, HOOK)
    return reader.num_rows() * WIDTH * 2


def read_shuffled(location: str) -> int:
    reader = ShuffledReader(ActivationReader(location), HOOK, ShuffleOptions(buffer=1 << 18))
    return sum(touch(rows.activations) for rows in reader)


def from_disk(folder: Path) -> dict[str, float]:
    """Files that the page cache was told to drop, by this reader and by what does nothing but read them."""
    files = sorted(folder.glob("*/batches/*"))

    def drop() -> None:
        os.sync()
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def dd() -> int:
        for path in files:
            subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)
        return sum(path.stat().st_size for path in files)

    return in_turns({"reader": lambda: read_in_order(str(folder)), "dd": dd}, drop)


@contextlib.contextmanager
def server() -> Iterator[None]:
    """A bucket in a process of its own."""
    command = [sys.executable, "-m", "tests.helpers.fake_gcs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        os.environ["STORAGE_EMULATOR_HOST"] = process.stdout.readline().strip()
        yield
    finally:
        process.kill()
        process.wait()


def from_bucket(num_bytes: int) -> dict[str, float]:
    """The same from a bucket, beside a loop over the objects with the client's own download."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    with server():
        make_run("gs://bucket/run", num_bytes)
        names = [ref.name for ref in ActivationReader("gs://bucket/run").all_refs()]

        def client() -> int:
            bucket = storage.Client("project", AnonymousCredentials()).bucket("bucket")
            return sum(len(bucket.blob(f"run/{name}").download_as_bytes(checksum=None)) for name in names)

        works = {"reader": lambda: read_in_order("gs://bucket/run"), "client_loop": client}
        return in_turns(works, lambda: None)


def opening(objects_of_worker: int) -> float:
    """Milliseconds to open a run of 1,000 workers in a bucket."""
    with FakeGcs() as bucket:
        os.environ["STORAGE_EMULATOR_HOST"] = bucket.address
        checkpoint.join_run(open_storage("gs://bucket/run"), RunDescription(CONFIG, ""))
        for worker_id in range(1000):
            for batch in range(objects_of_worker):
                bucket.land(f"run/{checkpoint.worker_folder(worker_id)}/batches/{batch:08d}.safetensors", b"", None)
        rate = measure(lambda: len(ActivationReader("gs://bucket/run").streams), ROUNDS)
        return round(1000 / (rate / 1000), 1)


@click.command()
@click.option("--gib", default=2.0, help="Size of the run.")
@gives_results
def main(gib: float, as_json: bool, output: Path | None) -> None:
    """Measure."""
    num_bytes = int(gib * 2**30)
    results = {
        **about("numpy"),
        "gib": gib,
        "width": WIDTH,
        "dtype": "bfloat16",
    }
    with tempfile.TemporaryDirectory() as name:
        make_run(name, num_bytes)
        results |= {
            "page_cache_gib_per_s": {
                "in_order": round(measure(lambda: read_in_order(name)) / 2**30, 2),
                "shuffled": round(measure(lambda: read_shuffled(name)) / 2**30, 2),
            },
            "beside_each_other_gib_per_s": in_turns(
                {"in_order": lambda: read_in_order(name), "top_rows": lambda: read_top_rows(name)}, lambda: None
            ),
            "gib_per_cpu_second": {
                "in_order": by_cpu(lambda: read_in_order(name)),
                "top_rows": by_cpu(lambda: read_top_rows(name)),
            },
            "disk_gib_per_s": from_disk(Path(name)),
            "statistics_objects_per_s": round(
                measure(lambda: ActivationReader(name).statistics() and len(list(ActivationReader(name).all_refs()))), 1
            ),
        }
    results["bucket_gib_per_s"] = from_bucket(num_bytes)
    results["opening_ms"] = {"1,000 workers, 1,000 objects": opening(1), "1,000 workers, 100,000 objects": opening(100)}
    give(results, "\n".join(f"{name}: {found}" for name, found in results.items()), as_json, output)


if __name__ == "__main__":
    main()
