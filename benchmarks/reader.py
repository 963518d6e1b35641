"""How fast a run is read: sequentially from a local page cache, shuffled, the statistics, and opening.

In: nothing; a run of `--gib` is made in a temporary folder. Out: one line of JSON. Every byte that is read is used: the
sum of each array's bytes as 64-bit words.

    python benchmarks/reader.py --output benchmarks/results/reader.json
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import checkpoint  # noqa: E402
from extraction.packing import BatchShape, pack_batches  # noqa: E402
from extraction.pipeline import BatchInFlight, Layout  # noqa: E402
from extraction.reader import ActivationReader  # noqa: E402
from extraction.records import TokenizedRecord  # noqa: E402
from extraction.shuffle import ShuffledReader, ShuffleOptions  # noqa: E402
from extraction.storage import open_storage  # noqa: E402

WIDTH, WORKERS, SHAPE = 576, 4, BatchShape(steps=1, rows=56, seq_len=2048)
HOOK = "blocks.15.hook_resid_post"


def make_run(folder: Path, num_bytes: int) -> None:
    """Workers with objects of about 128 MiB; the values are of no matter."""
    storage = open_storage(str(folder))
    checkpoint.join_run(storage, {"hook_points": [HOOK]}, {"fingerprint": "sha256:0", "streams": ""})
    lengths = np.random.default_rng(0).integers(50, 2000, 10_000)
    layout = Layout(0, {HOOK: WIDTH}, np.dtype(ml_dtypes.bfloat16))
    for worker_id in range(WORKERS):
        chain = checkpoint.CommitChain.load(storage, worker_id, "sha256:0")
        records = (TokenizedRecord(i, f"record-{i}", np.zeros(n, np.int32)) for i, n in enumerate(lengths))
        for batch in pack_batches(records, chain.cursor, SHAPE, "split"):
            shard = BatchInFlight(batch, chain.next_batch, layout).shard
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


@click.command()
@click.option("--gib", default=2.0, help="Size of the run.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the results there.")
def main(gib: float, output: Path | None) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        make_run(Path(name), int(gib * 2**30))

        def shuffled() -> int:
            reader = ShuffledReader(ActivationReader(name), HOOK, ShuffleOptions(buffer=1 << 18))
            return sum(touch(rows.activations) for rows in reader)

        results = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores", "command": "python benchmarks/reader.py",
            "gib": gib, "width": WIDTH, "dtype": "bfloat16",
            "opens_per_second": round(measure(lambda: len([ActivationReader(name) for _ in range(20)])), 1),
            "sequential_gib_per_s": round(measure(
                lambda: sum(touch(rows.activations) for rows in ActivationReader(name).rows(HOOK))) / 2**30, 2),
            "shuffled_gib_per_s": round(measure(shuffled) / 2**30, 2),
            "statistics_objects_per_s": round(measure(
                lambda: ActivationReader(name).statistics() and len(list(ActivationReader(name).all_refs()))), 1),
        }
    print(json.dumps(results))
    if output:
        output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
