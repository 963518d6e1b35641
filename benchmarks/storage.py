"""How fast data objects are stored and committed: the worker's writer next to plain code, on a disk and in a bucket.

In: nothing; the objects are those of a worker, with random values. Out: for a folder and for the GCS server of the
tests (a process of its own, told to take uploads no faster than `--rate`), medians of `--rounds` in which all take
turns:

- `floor`: the disk: each object's bytes written to a file and synced; the server: each sent in one request by
  http.client. So the server's own work, checksums after the last byte, is in it.
- `peer`: what one writes first: an object is made, then stored, then the next one; stored is as in the floor for the
  disk, for the server google-cloud-storage's own upload, create-only, with its own checksum.
- `writer`: Uploader and CommitChain: stored create-only, checked, and committed, while the next one is made.

*ready*: the objects are there. *made*: each takes as long to make as the floor takes to store it, as where compute and
upload are of one speed; making is a pause, since a device does it. The floor of *made* is one object more.

    python benchmarks/storage.py --output benchmarks/results/storage.json
"""

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import click
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from checkpoint import CommitChain  # noqa: E402
from extraction.batching.packing import BatchShape, PackedBatch, pack_batches  # noqa: E402
from extraction.format.records import Cursor, TokenizedRecord  # noqa: E402
from extraction.storage import open_storage  # noqa: E402
from extraction.worker.loop import BatchInFlight, BatchLayout  # noqa: E402
from extraction.worker.uploader import Uploader  # noqa: E402

HOOK, WIDTH, SEQ_LEN, MIB = "blocks.15.hook_resid_post", 2048, 2048, 1 << 20
QUEUE = 512 * MIB  # the default of --queue-mib
Objects = list[tuple[PackedBatch, memoryview]]


def make_objects(count: int, mib: int) -> Objects:
    """Batches of one record each, with data objects of about `mib` MiB."""
    rows, rng = mib * MIB // (2 * WIDTH * SEQ_LEN), np.random.default_rng(0)
    tokens, layout = np.arange(rows * SEQ_LEN, dtype=np.int32), BatchLayout(0, {HOOK: WIDTH}, np.dtype("bfloat16"))
    records = (TokenizedRecord(number, f"record-{number}", tokens) for number in range(count))
    made = []
    for number, batch in enumerate(pack_batches(records, Cursor(0, 0), BatchShape(1, rows, SEQ_LEN), "split")):
        shard = BatchInFlight(batch, number, layout).file
        values = shard.arrays[HOOK].view(np.uint16)
        values[:] = rng.integers(1 << 14, size=values.shape, dtype=np.uint16)
        made.append((batch, shard.data))
    return made


def plain_disk(folder: str, objects: Objects, making: float) -> None:
    """Write and sync."""
    Path(folder).mkdir()
    for number, (_, data) in enumerate(objects):
        time.sleep(making)
        with open(f"{folder}/{number:08d}", "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def bare_upload(location: str, objects: Objects, making: float) -> None:
    """One request for each object, by the standard library."""
    bucket_name, _, prefix = location.removeprefix("gs://").partition("/")
    connection = http.client.HTTPConnection(os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://"))
    for number, (_, data) in enumerate(objects):
        time.sleep(making)
        path = f"/upload/storage/v1/b/{bucket_name}/o?uploadType=media&name={quote(f'{prefix}/{number:08d}', safe='')}"
        connection.request("POST", path, data)
        if connection.getresponse().read() == b"":
            raise SystemExit("the server answered nothing")


def plain_upload(location: str, objects: Objects, making: float) -> None:
    """The client's own upload, one after the other."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    bucket_name, _, prefix = location.removeprefix("gs://").partition("/")
    bucket = storage.Client(project="-", credentials=AnonymousCredentials()).bucket(bucket_name)
    for number, (_, data) in enumerate(objects):
        time.sleep(making)
        bucket.blob(f"{prefix}/{number:08d}").upload_from_string(bytes(data), if_generation_match=0)


def writer(location: str, objects: Objects, making: float) -> None:
    """What a worker does."""
    chain = CommitChain.load(open_storage(location), 0, "sha256:0")
    with Uploader(chain.commit, QUEUE, lambda commit: None) as background:
        for batch, data in objects:
            time.sleep(making)
            background.submit(batch, data, {"step": making})


@contextmanager
def throttled_server(rate: float) -> Iterator[str]:
    """The location of a bucket that takes uploads at `rate` bytes a second."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fake_gcs"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        os.environ["STORAGE_EMULATOR_HOST"] = address = server.stdout.readline().strip()
        for operation in ("insert", "resumable-chunk"):
            told = {"operation": operation, "name": "*", "action": "throttle", "rate": rate, "count": 1 << 30}
            urllib.request.urlopen(f"{address}/_instructions", json.dumps(told).encode()).close()
        yield "gs://bucket"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def measure(place: str, ways: dict[str, Callable], objects: Objects, making: float, rounds: int) -> dict[str, float]:
    """Medians of seconds, by way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            location = f"{place}/{name}-{making:.3f}-{number}"
            begin = time.perf_counter()
            way(location, objects, making)
            taken[name].append(time.perf_counter() - begin)
            shutil.rmtree(location, ignore_errors=True)
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def compared(floor: float, making: float, count: int, taken: dict[str, float]) -> dict[str, float]:
    """Seconds with the floor beside them; shares are of the floor's speed."""
    floor = round(floor if not making else max(floor, making * count) + floor / count, 3)
    shares = {f"{name}_of_floor": round(floor / seconds, 3) for name, seconds in taken.items()}
    return {"floor_s": floor} | {f"{name}_s": seconds for name, seconds in taken.items()} | shares


@click.command()
@click.option("--objects", "count", default=6, show_default=True)
@click.option("--mib", default=32, show_default=True, help="Size of an object.")
@click.option("--rate", default=40, show_default=True, help="MiB a second that the server takes.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--folder", type=click.Path(exists=True, path_type=Path), help="On the disk to be measured.")
@gives_results
def main(count: int, mib: int, rate: int, rounds: int, folder: Path | None, as_json: bool, output: Path | None) -> None:
    """Measure."""
    objects, results = make_objects(count, mib), {}
    size = sum(len(data) for _, data in objects)
    with tempfile.TemporaryDirectory(dir=folder) as disk, throttled_server(rate * MIB) as bucket:
        writer(f"{disk}/warm", objects[:1], 0.0)
        plain_upload(f"{bucket}/warm", objects[:1], 0.0)
        ways = {"peer": plain_disk, "writer": writer}
        ready = measure(disk, ways, objects, 0.0, rounds)
        made = measure(disk, ways, objects, ready["peer"] / count, rounds)
        results["folder"] = {
            "ready": compared(ready["peer"], 0.0, count, ready),
            "made": compared(ready["peer"], ready["peer"] / count, count, made),
        }
        note(results)
        ways = {"peer": plain_upload, "writer": writer}
        ready = measure(bucket, {"floor": bare_upload} | ways, objects, 0.0, rounds)
        floor = ready.pop("floor")
        made = measure(bucket, ways, objects, floor / count, rounds)
        results["server"] = {
            "ready": compared(floor, 0.0, count, ready),
            "made": compared(floor, floor / count, count, made),
        }
    shape = {"objects": count, "mib": round(size / MIB / count, 1), "server_mib_per_s": rate, "rounds": rounds}
    results = about("google-cloud-storage", "google-crc32c", "numpy") | shape | results
    text = "\n".join(
        f"{place}, {case}: {figures}" for place in ("folder", "server") for case, figures in results[place].items()
    )
    give(results, text, as_json, output)


if __name__ == "__main__":
    main()
