"""Many more workers than streams, all started at once: what they ask of the bucket, and what is computed twice.

In: numbers of streams and workers. Out: JSON. The protocol only: a worker is a thread that chooses, takes and works
streams as `run --stream any` does, and whose batches are a pause; commits and notes are real, on the GCS server of the
tests in the same process.

    python benchmarks/stampede.py --output benchmarks/results/stampede.json
"""

import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import checkpoint  # noqa: E402
from benchmarks.outcome import give, gives_results  # noqa: E402
from checkpoint import Attempt  # noqa: E402
from extraction.storage import Storage, open_storage  # noqa: E402
from extraction.tools.status import read_status  # noqa: E402
from extraction.worker.claims import StreamChooser, work_all  # noqa: E402
from tests.helpers import runs  # noqa: E402
from tests.helpers.fake_gcs import FakeGcs  # noqa: E402

OUTPUT = "gs://bucket/run"
RECORDS_PER_BATCH = 2


class Fleet:
    """Workers on streams of equal length; counts the batches that they compute."""

    def __init__(self, storage: Storage, streams: int, batches: int, seconds: float):
        self.storage, self.streams, self.seconds = storage, streams, seconds
        self.lengths, self.computed = [runs.SHAPE.seq_len] * RECORDS_PER_BATCH * batches, Counter()

    def work(self, number: int, attempt: Attempt) -> None:
        """A batch takes some seconds, and counts as computed from its beginning on."""
        chain = checkpoint.CommitChain.load(self.storage, number, runs.FINGERPRINT)
        chain.attempt = attempt
        while not chain.end_of_stream:
            self.computed[number] += 1
            time.sleep(self.seconds)
            runs.extract(chain, self.lengths, stop_after=1)

    def worker(self, idle_after: float, ended: list[float]) -> None:
        chooser = StreamChooser(self.storage, self.streams, idle_after)
        work_all(chooser, self.work, lambda line: None, threading.Event())
        ended.append(time.monotonic())


def run(server: FakeGcs, workers: int, idle_after: float, fleet: Fleet) -> dict:
    ended, begin = [], time.monotonic()
    threads = [threading.Thread(target=fleet.worker, args=(idle_after, ended)) for _ in range(workers)]
    for thread in threads:
        thread.start()
    time.sleep(fleet.seconds)
    at_start = Counter(what.partition(" ")[0] for _, _, what, _ in server.history)
    for thread in threads:
        thread.join()
    times = [
        time
        for stream in range(fleet.streams)
        for time in [info.updated for info in fleet.storage.list(f"{checkpoint.worker_folder(stream)}/commits/")][-1:]
    ]
    committed = len(fleet.lengths) // RECORDS_PER_BATCH * fleet.streams
    computed = fleet.computed.total()
    last_commit = max(times) - time.time() + time.monotonic() - begin
    return {
        "batches_committed": committed, "batches_computed": computed, "thrown_away": round(1 - committed / computed, 3),
        "requests_in_the_time_of_the_first_batch": dict(at_start),
        "requests": dict(Counter(what.partition(" ")[0] for _, _, what, _ in server.history)),
        "seconds": round(max(ended) - begin, 1),
        "seconds_from_last_commit_to_last_end": round(max(ended) - begin - last_commit, 1),
    }  # fmt: skip


@click.command()
@click.option("--streams", default=40, show_default=True)
@click.option("--workers", default=200, show_default=True)
@click.option("--batches", default=6, show_default=True, help="In each stream.")
@click.option("--batch-seconds", default=10.0, show_default=True)
@click.option("--idle-after", default=60.0, show_default=True)
@gives_results
def main(streams: int, workers: int, batches: int, as_json: bool, output: Path | None, **seconds: float) -> None:
    """Start them all at once."""
    batch_seconds, idle_after = seconds["batch_seconds"], seconds["idle_after"]
    with FakeGcs() as server:
        os.environ["STORAGE_EMULATOR_HOST"] = server.address
        storage = open_storage(OUTPUT)
        runs.make_run(storage, [])
        sizes = (RECORDS_PER_BATCH * batches,) * streams
        run_json = replace(checkpoint.read_run(storage), records_per_stream=sizes)
        storage.replace(checkpoint.RUN, run_json.to_bytes())
        server.history.clear()
        results = {
            "command": "python benchmarks/stampede.py",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "streams": streams,
            "workers": workers,
            "batch_seconds": batch_seconds,
            "idle_after": idle_after,
        } | run(server, workers, idle_after, Fleet(storage, streams, batches, batch_seconds))
        assert read_status(OUTPUT).finished
    give(results, json.dumps(results, indent=2), as_json, output)


if __name__ == "__main__":
    main()
