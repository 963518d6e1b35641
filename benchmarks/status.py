"""How long `status` takes over a large fleet in a bucket.

In: nothing; a bucket of `--workers` chains of `--commits` commits is made and served by tests/fake_gcs.py as a process
of its own. Out: one line of JSON. The server takes its share of the same cores.

    python benchmarks/status.py --output benchmarks/results/status.json
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import checkpoint  # noqa: E402
from checkpoint import Commit, DataObject, Totals  # noqa: E402
from extraction.records import Cursor  # noqa: E402
from extraction.status import read_status  # noqa: E402

TOKENS, SIZE, RECORDS = 65_000, 117_440_512, 40


def commit_of(worker_id: int, batch: int, last: bool) -> Commit:
    seconds = {"step": 1.9, "upload": 0.7}
    totals = Totals(TOKENS * (batch + 1), SIZE * (batch + 1), 1 + batch // 10, {"step": 1.9 * (batch + 1)},
                    TOKENS * (batch + 1))
    return Commit(
        worker_id=worker_id, batch=batch,
        cursor_before=Cursor(RECORDS * batch, 0), cursor_after=Cursor(RECORDS * (batch + 1), 0),
        data=DataObject(f"batches/{batch:08d}.safetensors", SIZE, "AAAAAA==", 1),
        num_records=RECORDS, num_tokens=TOKENS, num_tokens_read=TOKENS,
        end_of_stream=last, attempt="0" * 32, fingerprint="sha256:0", record_ids_digest="sha256:0", host="host",
        started="2026-01-01T00:00:00Z", versions=checkpoint.Instance().versions, seconds=seconds, totals=totals,
    )


def make_bucket(folder: Path, workers: int, commits: int) -> None:
    """As the server keeps it: a file for each object. Data objects are empty, they are never looked at."""
    run = {"schema": 1, "configuration": {}, "fingerprint": "sha256:0"}
    run["records_per_stream"] = [RECORDS * commits * 2] * workers
    files = {"run/run.json": json.dumps(run).encode()}
    for worker_id in range(workers):
        for batch in range(commits):
            content = commit_of(worker_id, batch, False).to_bytes()
            files[f"run/{checkpoint.commit_name(worker_id, batch)}"] = content
            files[f"run/{checkpoint.worker_folder(worker_id)}/batches/{batch:08d}.safetensors"] = b""
        files[f"run/{checkpoint.worker_folder(worker_id)}/progress.json"] = json.dumps({"batch": commits - 1}).encode()
    for name, content in files.items():
        (folder / quote(name, safe="")).write_bytes(content)


@click.command()
@click.option("--workers", default=1000)
@click.option("--commits", default=20)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the results there.")
def main(workers: int, commits: int, output: Path | None) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        make_bucket(Path(name), workers, commits)
        command = [sys.executable, "-m", "tests.fake_gcs", "--bucket", "bucket", "--folder", name]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
            seconds = []
            for _ in range(3):
                begin = time.perf_counter()
                found = read_status("gs://bucket/run")
                seconds.append(round(time.perf_counter() - begin, 2))
        finally:
            server.terminate()
            server.wait()
    assert found.total("batches") == workers * commits and found.states == {"running": workers}
    results = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, server included",
               "command": "python benchmarks/status.py", "workers": workers, "commits": commits, "seconds": seconds}
    print(json.dumps(results))
    if output:
        output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
