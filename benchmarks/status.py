"""How long `status` takes over a large fleet in a bucket, and what it asks for.

In: nothing; a bucket of `--workers` chains is served by tests/helpers/fake_gcs.py as a process of its own, which
makes each
object when it is asked for. Out: JSON, a line for each length of the chains. The server takes its share of the same
cores.

    python benchmarks/status.py --output benchmarks/results/status.json
"""

import bisect
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import checkpoint  # noqa: E402
from benchmarks.outcome import give, gives_results, note  # noqa: E402
from extraction.format.commit import Commit, DataObject, Totals, batch_of, worker_number  # noqa: E402
from extraction.format.records import Cursor  # noqa: E402
from extraction.format.run_config import RunDescription  # noqa: E402
from extraction.tools.status import read_status  # noqa: E402
from tests.helpers.fake_gcs import FakeGcs  # noqa: E402
from tests.helpers.gcs_objects import Object  # noqa: E402
from tests.helpers.runs import CONFIG  # noqa: E402

TOKENS, SIZE, RECORDS, EVERY = 65_000, 117_440_512, 40, 30.0
RUN = "run/"


def commit_of(stream: int, batch: int) -> Commit:
    seconds = {"step": 1.9, "upload": 0.7}
    totals = Totals(
        TOKENS * (batch + 1), TOKENS * (batch + 1), SIZE * (batch + 1), 1 + batch // 10, {"step": 1.9 * (batch + 1)}
    )
    return Commit(
        stream=stream, batch=batch, previous="sha256:0",
        cursor_before=Cursor(RECORDS * batch, 0), cursor_after=Cursor(RECORDS * (batch + 1), 0),
        data=DataObject(f"batches/{batch:08d}.safetensors", SIZE, "AAAAAA==", 1),
        num_records=RECORDS, num_rows=TOKENS, num_tokens=TOKENS, end_of_stream=False,
        attempt="0" * 32, fingerprint=CONFIG.fingerprint,
        record_ids_digest="sha256:0", reconstruction_error={}, not_finite={},
        host="host", started="2026-01-01T00:00:00Z",
        versions={"jax": "0", "project": "sha256:0"}, seconds=seconds, totals=totals,
    )  # fmt: skip


class Bucket(Sequence):
    """A run of many chains as the server's objects: names in order, and each object made when it is asked for."""

    def __init__(self, workers: int, commits: int, has_progress: bool):
        self.workers, self.commits, self.now = workers, commits, time.time()
        self.in_folder = 2 * commits + has_progress

    def __len__(self) -> int:
        return 1 + self.workers * self.in_folder

    def __getitem__(self, key: int | str) -> str | Object:
        if isinstance(key, str):
            return self.get(key)
        if key == 0:
            return f"{RUN}run.json"
        worker, place = divmod(key - 1, self.in_folder)
        folder = f"{RUN}{checkpoint.worker_folder(worker)}"
        if place < self.commits:
            return f"{folder}/batches/{place:08d}.safetensors"
        batch = place - self.commits
        return f"{folder}/commits/{batch:08d}.json" if batch < self.commits else f"{folder}/progress.json"

    def irange(self, first: str) -> Iterator[str]:
        return (self[number] for number in range(bisect.bisect_left(self, first), len(self)))

    def get(self, name: str) -> Object | None:
        place = bisect.bisect_left(self, name)
        if place == len(self) or self[place] != name:
            return None
        batch = batch_of(name)
        age = 0.0 if batch is None else EVERY * (self.commits - batch - 1)
        return Object(name, self.content(name, batch), 1, self.now - age)

    def content(self, name: str, batch: int | None) -> bytes:
        if name == f"{RUN}run.json":
            sizes = (RECORDS * self.commits * 2,) * self.workers
            return RunDescription(CONFIG, "", records_per_stream=sizes).to_bytes()
        if name.endswith("progress.json"):
            return json.dumps({"batch": self.commits - 1, "begun": self.now - EVERY * (self.commits - 1)}).encode()
        if "/commits/" not in name:
            return b"{}"
        return commit_of(worker_number(name.split("/")[1]), batch).to_bytes()


def serve(pipe: multiprocessing.connection.Connection, *shape: int) -> None:
    """Tell the address, and at the end of each look, when asked, how many requests of each kind there were."""
    with FakeGcs() as server:
        server.objects = Bucket(*shape)
        pipe.send(server.address)
        while pipe.recv():
            pipe.send(dict(Counter(what.partition(" ")[0] for _, _, what, _ in server.history)))
            server.history.clear()


def measure(shape: tuple[int, int, bool], repeats: int) -> dict:
    """Some looks at one fleet."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, *shape), daemon=True)
    server.start()
    os.environ["STORAGE_EMULATOR_HOST"] = ours.recv()
    seconds, processor = [], []
    for _ in range(repeats):
        begin, used = time.perf_counter(), time.process_time()
        found = read_status("gs://bucket/run")
        seconds.append(round(time.perf_counter() - begin, 2))
        processor.append(round(time.process_time() - used, 2))
        ours.send(True)
        requests = ours.recv()
    ours.send(False)
    server.join()
    workers, commits, has_progress = shape
    assert found.total("batches") == workers * commits and found.states == {"running": workers}
    return {
        "workers": workers,
        "commits": commits,
        "progress.json": has_progress,
        "seconds": seconds,
        "cpu_seconds": processor,
        "requests": requests,
    }


@click.command()
@click.option("--workers", default=1000, show_default=True)
@click.option("--commits", default="20,1000,10000", show_default=True, help="In each chain.")
@click.option("--repeats", default=3, show_default=True)
@gives_results
def main(workers: int, commits: str, repeats: int, as_json: bool, output: Path | None) -> None:
    """Measure."""
    multiprocessing.set_start_method("spawn")
    lengths, runs = [int(length) for length in commits.split(",")], []
    for shape in [(workers, length, True) for length in lengths] + [(workers, lengths[-1], False)]:
        runs.append(measure(shape, repeats))
        note(runs[-1])
    results = {
        "command": "python benchmarks/status.py",
        "runs": runs,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, server included",
    }
    give(results, "\n".join(map(str, runs)), as_json, output)


if __name__ == "__main__":
    main()
