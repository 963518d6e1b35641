"""Workers that come and go at random on more streams than machines: does it end, is it right, how much is thrown away.

In: how many streams, and the most workers at a time. Out: a JSON file. Workers are real processes with `--stream any`
and no number; every few seconds a new size of the fleet is drawn, workers are started or ended (most by SIGKILL, some
by SIGTERM) to reach it, until one of them finds all streams finished. Then `verify` must say proven.

Thrown away is the time that workers spent in streams and that no commit accounts for: batches that were in flight when
a worker was killed, and batches that a rival committed first.

    python benchmarks/any_stream.py --records 200 --seed 1
"""

import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import click
from forked import Command, open_backend, run

import checkpoint
from benchmarks.outcome import give, gives_results
from extraction.batching.tokenizer import RecordTokenizer
from extraction.format.commit import parse_commit
from extraction.storage import open_storage
from tests.helpers.workers import MODEL, make_streams, text_of, write_corpus

FLAGS = ("--layers", "1,-1", "--seq-len", "128", "--batch-size", "8", "--steps-per-batch", "2", "--no-progress")
KILL_SHARE = 0.8  # of the workers that are ended get SIGKILL, the others SIGTERM
DRAW_EVERY = (1.0, 4.0)  # seconds between two sizes of the fleet


@dataclass
class Fleet:
    """The workers that run, and what is known of those that ended."""

    arguments: list[object]
    workers: list[Command] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    in_streams: float = 0.0
    problems: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.workers.append(Command(self.arguments))
        self.counts["starts"] += 1

    def end(self, worker: Command, number: int) -> None:
        """By a signal of ours."""
        self.workers.remove(worker)
        if number == signal.SIGKILL:
            os.kill(worker.pid, number)
            worker.listen(time.monotonic() + 10)
            number = None
        self.book(worker, worker.end(number))

    def reap(self) -> bool:
        """Take leave of those that ended by themselves; whether one of them says that all is finished."""
        finished = False
        for worker in list(self.workers):
            if worker.listen(time.monotonic()) == "ended":
                self.workers.remove(worker)
                finished |= self.book(worker, worker.end()) == 0
        return finished

    def book(self, worker: Command, code: int) -> int:
        """Add up what it said of its time in streams."""
        now, begun = time.time(), None
        for line in worker.text.decode().splitlines():
            event = json.loads(line) if line.startswith("{") else {"message": "", "time": None}
            message = event["message"]
            if message.startswith("at record"):
                begun = datetime.fromisoformat(event["time"]).timestamp()
            elif begun and message.startswith(("stream complete", "left stream", "its stream is complete")):
                self.in_streams += datetime.fromisoformat(event["time"]).timestamp() - begun
                begun = None
            self.counts["fenced"] += message.startswith("left stream")
        self.in_streams += now - begun if begun else 0.0
        self.counts[f"exit: {code}"] += 1
        if code not in (0, 75, -signal.SIGKILL, -signal.SIGTERM):
            self.problems.append(f"ended with {code}: {worker.tail()}")
        return code


def drive(fleet: Fleet, most: int, draw: random.Random, limit: float) -> None:
    """Let workers come and go until all streams are finished."""
    next_draw = 0.0
    while time.monotonic() < limit and not fleet.problems:
        if fleet.reap():
            break
        if time.monotonic() >= next_draw:
            size = draw.randint(1, most)
            while len(fleet.workers) > size:
                kind = signal.SIGKILL if draw.random() < KILL_SHARE else signal.SIGTERM
                fleet.end(draw.choice(fleet.workers), kind)
            next_draw = time.monotonic() + draw.uniform(*DRAW_EVERY)
        while len(fleet.workers) < size:
            fleet.start()
        time.sleep(0.05)
    for worker in list(fleet.workers):
        fleet.end(worker, signal.SIGTERM)


def committed_seconds(location: str, streams: int) -> tuple[float, int, int]:
    """What the commits account for: seconds of the workers' loops, batches, and attempts that committed something."""
    storage, seconds, batches, attempts = open_storage(location), 0.0, 0, 0
    for number in range(streams):
        names = checkpoint.list_commits(storage, number)
        totals = parse_commit(storage.read(names[-1]), names[-1]).totals
        seconds += sum(value for stage, value in totals.seconds.items() if stage != "upload")
        batches, attempts = batches + len(names), attempts + totals.attempts
    return seconds, batches, attempts


@click.command()
@click.option("--streams", default=40, show_default=True)
@click.option("--records", default=60, show_default=True, help="In each stream.")
@click.option("--workers", default=8, show_default=True, help="The most at a time; at least one.")
@click.option("--idle-after", default=6.0, show_default=True, help="Seconds, as in the flag of run.")
@click.option("--backend", default="local", type=click.Choice(["local", "gcs"]), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@gives_results
def main(streams: int, records: int, workers: int, as_json: bool, output: Path | None, **options: object) -> None:
    """Run the fleet and judge what it made."""
    RecordTokenizer(MODEL, "auto")  # imports what a tokenizer needs, once for all forks
    work = Path(tempfile.mkdtemp(prefix="any-stream-"))
    texts = [text_of(i, 20 + i * 37 % 200) for i in range(streams * records)]
    make_streams(write_corpus(work / "corpus", texts), work / "streams", streams)
    with open_backend(options["backend"], work / "run") as backend:
        common = ["run", "--model", MODEL, "--streams", work / "streams", "--compile-cache", work / "cache", *FLAGS]
        run(*common, "--output", work / "warm", "--worker-id", 0, "--max-records", 1)  # fills the compilation cache
        fleet = Fleet(
            [
                *common,
                "--output",
                backend.location,
                "--stream",
                "any",
                "--idle-after",
                options["idle_after"],
                "--log-format",
                "json",
            ]
        )
        begin = time.monotonic()
        drive(fleet, workers, random.Random(options["seed"]), begin + 1500)
        seconds = time.monotonic() - begin
        code, text = run("verify", backend.location)
        if code:
            fleet.problems.append(f"verify ended with {code}: {text[-2000:]}")
        used, batches, attempts = committed_seconds(backend.location, streams)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, other work beside",
        "streams": streams,
        "records": streams * records,
        "batches": batches,
        "most_workers": workers,
        **options,
        "seconds": round(seconds, 1),
        "counts": dict(sorted(fleet.counts.items())),
        "attempts_that_committed": attempts,
        "seconds_in_streams": round(fleet.in_streams, 1),
        "seconds_committed": round(used, 1),
        "thrown_away": round(1 - used / fleet.in_streams, 3),
        "verify": "proven" if code == 0 else text.strip(),
        "problems": fleet.problems,
    }
    give(results, json.dumps(results, indent=2), as_json, output)
    shutil.rmtree(work)
    sys.exit(bool(fleet.problems))


if __name__ == "__main__":
    main()
