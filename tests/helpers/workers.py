"""Real workers as real processes, on the embedded tiny model and a small corpus."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.fork_server import Forked, is_forkable

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/tiny-lm"
WORDS = [
    "the",
    "activations",
    "of",
    "a",
    "language",
    "model",
    "are",
    "read",
    "by",
    "those",
    "who",
    "train",
    "probes",
    "on",
    "them",
    "and",
    "want",
    "every",
    "token",
    "once",
]
SMALL = ("--layers", "1", "--seq-len", "32", "--batch-size", "2", "--steps-per-batch", "1", "--no-progress")


def text_of(number: int, num_words: int) -> str:
    """A document that is a function of its number."""
    return " ".join(WORDS[(number * 7 + i * (1 + number % 5)) % len(WORDS)] for i in range(num_words))


def write_corpus(folder: Path, texts: list[str], row_group_size: int = 4, name: str = "corpus.parquet") -> Path:
    """A Parquet file with FineWeb's columns; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    n = len(texts)
    columns = {name: [""] * n for name in ("dump", "url", "date", "file_path")}
    columns |= {
        "text": texts,
        "id": [f"<urn:doc:{i}>" for i in range(n)],
        "language": ["en"] * n,
        "language_score": [0.9] * n,
        "token_count": [len(text.split()) for text in texts],
    }
    pq.write_table(pa.table(columns), folder / name, row_group_size=row_group_size)
    return folder


def python(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run one of the project's commands to its end."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = _start(ROOT / script, arguments, environment, (stdout, stderr))
        try:
            process.wait(200)
        except BaseException:
            process.kill()
            raise
        texts = [file.seek(0) or file.read() for file in (stdout, stderr)]
    return subprocess.CompletedProcess([script, *map(str, arguments)], process.returncode, *texts)


def _start(
    script: Path, arguments: Iterable[object], more: dict[str, str], files: tuple[IO, IO] | None = None
) -> subprocess.Popen | Forked:
    """Start a command as a fork, or as an interpreter where its environment changes the imports."""
    words, environment = [*map(str, arguments)], os.environ | {"JAX_PLATFORMS": "cpu"} | more
    if is_forkable(words, environment):
        return Forked(script, words, environment, files)
    stdout, stderr = files or (None, subprocess.PIPE)
    return subprocess.Popen([sys.executable, script, *words], env=environment, stdout=stdout, stderr=stderr, text=True)


def make_streams(source: Path, output: object, num_streams: int = 1, **environment: str) -> object:
    result = python(
        "create_dataset_streams.py",
        "fineweb",
        "--source",
        source,
        "--num-streams",
        num_streams,
        "--output",
        output,
        **environment,
    )
    assert result.returncode == 0, result.stderr
    return output


def arguments_for(streams: object, output: object, worker_id: int = 0, *more: object) -> tuple:
    return ("--model", MODEL, "--streams", streams, "--output", output, "--worker-id", worker_id, *SMALL, *more)


def extract(streams: object, output: object, worker_id: int = 0, *more: object, **environment: str):
    """One start of a worker."""
    return python("extract_activations.py", *arguments_for(streams, output, worker_id, *more), **environment)


def start(streams: object, output: object, worker_id: int = 0, *more: object, **environment: str):
    """A worker that runs on its own; its stderr is a pipe."""
    return _start(ROOT / "extract_activations.py", arguments_for(streams, output, worker_id, *more), environment)


def start_interpreter(streams: object, output: object, verbose: str = "") -> subprocess.Popen:
    """The same as an interpreter of its own, which imports the library first, and names each module if `verbose`."""
    return start(streams, output, PYTHONVERBOSE=verbose)


def extract_here(streams: object, output: object, *more: object) -> None:
    """One start of a worker inside this process. Raises what the worker would report."""
    import extract_activations
    from extraction.worker.flags import RunFlags
    from extraction.worker.resolve import resolve_run
    from extraction.worker.shutdown import Stop
    from extraction.worker.worker import extract as extract_plan

    arguments = [str(argument) for argument in arguments_for(streams, output, 0, *more)]
    given = extract_activations.run.make_context("run", arguments).params
    flags = RunFlags(**{name: given[name] for name in RunFlags.__dataclass_fields__})
    extract_plan(resolve_run(flags), Stop(), time.perf_counter())


def verify(output: object, *more: object, **environment: str) -> subprocess.CompletedProcess:
    return python("extract_activations.py", "verify", output, *more, **environment)


def committed(storage: object, worker_id: int = 0) -> list[tuple]:
    """For each commit: what it covers, and the digest of its data as a reader finds it."""
    import checkpoint

    seen = []
    for name in checkpoint.list_commits(storage, worker_id):
        commit = json.loads(storage.read(name))
        data = commit["data"] and storage.read(f"{checkpoint.worker_folder(worker_id)}/{commit['data']['name']}")
        keys = (
            "batch",
            "cursor_before",
            "cursor_after",
            "num_records",
            "num_rows",
            "num_tokens",
            "end_of_stream",
            "fingerprint",
        )
        seen.append((*(json.dumps(commit[key]) for key in keys), data and hashlib.sha256(data).hexdigest()))
    return seen
