"""How long a worker takes to go on after many commits: from process start to its first new commit.

In: lengths of chains. Out: for each length the seconds from process start to the first new commit, of these the seconds
for finding the cursor, and what was asked of the store for it: from the history of the GCS server of the tests.

The chain is begun by a real worker and continued to the wanted length with commits of the same form, a record and a
data object each; `verify` is asked whether it is sound. Then workers are started on it, with a filled compilation
cache, and killed after their first commit. Finding the cursor is the time between two answers of the server: the one
before the first page of the listing, and the metadata of the last data object.

    python benchmarks/resume.py --output benchmarks/results/resume.json
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import give, gives_results, note  # noqa: E402
from extraction.format.commit import DataObject, commit_name, parse_commit, worker_folder  # noqa: E402
from extraction.format.digests import digest_ids, digest_of  # noqa: E402
from extraction.format.records import Cursor  # noqa: E402
from tests.helpers.fake_gcs import FakeGcs  # noqa: E402
from tests.helpers.workers import MODEL, make_streams, text_of, verify, write_corpus  # noqa: E402

RUN = "run/"
OUTPUT = "gs://bucket/run"
# A row of 8 tokens holds one cut record, so each batch is one record.
FLAGS = ("--layers", "0", "--seq-len", "8", "--batch-size", "1", "--steps-per-batch", "1")
FLAGS += ("--long-documents", "truncate")
SPARE = 200  # records beyond the longest chain


def start_worker(streams: Path, cache: Path, **environment: str) -> subprocess.Popen:
    command = [
        sys.executable,
        ROOT / "extract_activations.py",
        "run",
        "--model",
        MODEL,
        "--streams",
        streams,
        "--output",
        OUTPUT,
        "--worker-id",
        "0",
        "--compile-cache",
        cache,
        "--no-progress",
        *FLAGS,
    ]
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def num_commits(server: FakeGcs) -> int:
    """The length of the chain; names are numbered without gaps, so a search by halves finds it."""
    low, high = 0, 1 << 24
    while low < high:
        middle = (low + high) // 2
        if RUN + commit_name(0, middle) in server.objects:
            low = middle + 1
        else:
            high = middle
    return low


def lengthen(server: FakeGcs, length: int) -> None:
    """Continue the chain with commits like its first one, up to `length`."""
    first = parse_commit(server.objects[RUN + commit_name(0, 0)].data, commit_name(0, 0))
    data = server.objects[f"{RUN}{worker_folder(0)}/{first.data.name}"].data
    begun = num_commits(server)
    before = server.objects[RUN + commit_name(0, begun - 1)].data
    last = parse_commit(before, commit_name(0, begun - 1))
    for batch in range(begun, length):
        name = f"batches/{batch:08d}.safetensors"
        stored = server.land(f"{RUN}{worker_folder(0)}/{name}", data, "0")
        last = replace(
            first,
            batch=batch,
            previous=digest_of(before),
            cursor_before=Cursor(batch, 0),
            cursor_after=Cursor(batch + 1, 0),
            data=DataObject(name, len(data), stored.crc32c, stored.generation),
            record_ids_digest=digest_ids([f"<urn:doc:{batch}>"]),
            totals=last.totals.plus(first, len(data), first.seconds, False, {}),
        )
        before = last.to_bytes()
        server.land(RUN + commit_name(0, batch), before, "0")


def measure(server: FakeGcs, streams: Path, cache: Path) -> dict[str, float]:
    """One start on the chain as it stands, up to its first commit."""
    length, before = num_commits(server), len(server.history)
    begin = time.monotonic()
    worker = start_worker(streams, cache)
    while RUN + commit_name(0, length) not in server.objects:
        if worker.poll() is not None:
            raise click.ClickException(f"the worker ended with {worker.returncode}: {worker.stderr.read()}")
        time.sleep(0.002)
    seconds = time.monotonic() - begin
    worker.kill()
    worker.communicate()
    history = server.history[before:]
    operations = [what for _, _, what, _ in history]
    first_page = operations.index(f"list {RUN}{worker_folder(0)}/commits/")
    found = operations.index(f"get {RUN}{worker_folder(0)}/batches/{length - 1:08d}.safetensors")
    asked = operations[first_page : found + 1]
    count = lambda operation, part: sum(what.startswith(f"{operation} ") and part in what for what in asked)  # noqa: E731
    return {
        "start_to_first_commit_s": round(seconds, 2),
        "finding_the_cursor_s": round(history[found][0] - history[first_page - 1][0], 3),
        "pages_listed": count("list", "/commits/"),
        "commits_read": count("read", "/commits/"),
        "data_objects_looked_up": count("get", "/batches/"),
        "data_objects_read": count("read", "/batches/"),
    }


def check(streams: Path) -> str:
    """What `verify` says about the chain: nothing is wrong, it is only not finished."""
    result = verify(OUTPUT, "--streams", streams)
    if result.returncode != 75 or "wrong" in result.stdout:
        raise click.ClickException(f"the chain that was made is not sound: {result.stdout[-2000:]}{result.stderr}")
    return result.stdout.strip().splitlines()[-1]


def run(lengths: Sequence[int], repeats: int, work: Path) -> list[dict]:
    texts = [text_of(0, 20)] * (max(lengths) + SPARE)
    streams = make_streams(write_corpus(work / "corpus", texts, row_group_size=1000), work / "streams")
    results = []
    with FakeGcs() as server:
        os.environ["STORAGE_EMULATOR_HOST"] = server.address
        begun = start_worker(streams, work / "cache", EXTRACT_KILL_AT="after-commit:0")
        _, text = begun.communicate()
        if num_commits(server) != 1:
            raise click.ClickException(f"the first worker ended with {begun.returncode}: {text}")
        for length in sorted(lengths):
            lengthen(server, length)
            verdict = check(streams)
            starts = [measure(server, streams, work / "cache") for _ in range(repeats)]
            medians = {name: statistics.median(start[name] for start in starts) for name in starts[0]}
            results.append({"commits": length} | medians | {"starts": starts, "verify": verdict})
            note({"commits": length} | medians)
    return results


@click.command()
@click.option("--commits", default="1000,10000,100000", show_default=True, help="Lengths of the chain.")
@click.option("--repeats", default=3, show_default=True, help="Starts at each length; medians are given beside them.")
@gives_results
def main(commits: str, repeats: int, as_json: bool, output: Path | None) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        chains = run([int(length) for length in commits.split(",")], repeats, Path(name))
    results = {
        "command": f"python benchmarks/resume.py --commits {commits} --repeats {repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "chains": chains,
    }
    give(results, "\n".join(map(str, chains)), as_json, output)


if __name__ == "__main__":
    main()
