"""Workers killed at random moments, over and over, and what they committed compared with a run that nobody disturbed.

In: how many kills. Out: a JSON file of kills, resumes, batches, objects and mismatches, by backend and by phase.

A round extracts all streams into a new output, in a local folder or on the GCS server of the tests, which also gets
503s, resets, lost answers and the like to hand out. One worker runs at a time, on a stream drawn at random; at a random
moment it gets SIGKILL and is started again, until every stream is complete. A small share gets SIGTERM, or is stopped
by SIGSTOP and goes on beside a rival that was started on its stream. Then `verify` must say proven, and the output must
hold the same objects with the same bytes as the undisturbed one, and nothing else. Any exit code that is not as
documented is a problem too.

A worker is a process that runs the real command: forked from one that has imported the modules (forked.py) or, with
`--exec-share`, a new interpreter. All that is drawn comes from the seed. Stopped, by whatever means, the campaign goes
on from its state folder; only finished rounds count, and a round is made by one state of the code.

    python benchmarks/fault_campaign.py --state DIR --kills 1000
"""

import importlib.metadata
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
from fault_findings import AT_RECORD, differences, phase_of, snapshot
from forked import ROOT, Backend, Command, open_backend, run

from extraction.batching.tokenizer import RecordTokenizer
from extraction.models.config_file import read_model_config
from tests.helpers.workers import MODEL, make_streams, text_of, write_corpus

FLAGS = ("--layers", "1,-1", "--seq-len", "128", "--batch-size", "8", "--steps-per-batch", "2", "--no-progress")
BACKENDS = ("local", "gcs")
EARLY_SHARE = 0.4  # of the kills are drawn over the start-up, the others over the work
SETTLE = 0.15  # seconds for a request that was on its way to land after its sender has died
LONGEST_START = 300  # seconds
FAULTS = (
    ("insert", "*/batches/*", "land-then-break", {}),
    ("insert", "*/commits/*", "land-then-break", {}),
    ("insert", "*/batches/*", "throttle", {"rate": 5e6}),
    ("insert", "*/batches/*", "cut", {}),
    ("insert", "*/commits/*", "hold", {"seconds": 0.2}),
    ("insert", "*/worker-*", "hold", {"seconds": 2.0}),  # what a dead worker sent lands beside the next one
    ("insert", "*", "fail", {"status": 503, "count": 2}),
    ("insert", "*", "fail", {"status": 429}),
    ("insert", "*", "fail", {"status": 500}),
    ("insert", "*", "fail", {"status": 408}),
    ("get", "*", "fail", {"status": 503}),
    ("list", "*", "fail", {"status": 503}),
    ("read", "*.json", "corrupt", {}),
    ("*", "*", "reset", {}),
)


@dataclass
class Round:
    """One output, from its first start to the comparison. Counts have keys such as `kill: upload`."""

    number: int
    backend: str
    code: str
    starts: int = 0
    complete: list[int] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = Counter(self.counts)

    @property
    def kills(self) -> int:
        return sum(part(self.counts, "kill").values())

    def wrong(self, what: str, command: Command) -> None:
        self.problems.append(f"start {self.starts} {what}: {command.tail()}")


@dataclass(frozen=True)
class Draw:
    """What chance decides about one start."""

    stream: int
    full: bool
    ending: str
    early: bool
    share: float
    faults: tuple

    @classmethod
    def of(cls, seed: str, streams: list[int], options: dict) -> "Draw":
        draw = random.Random(seed)
        others = {"SIGTERM": options["sigterm_share"], "rival": options["rival_share"]}
        endings = {"kill": 1 - sum(others.values())} | others
        return cls(
            stream=draw.choice(streams),
            full=draw.random() < options["exec_share"],
            ending=draw.choices(list(endings), list(endings.values()))[0],
            early=draw.random() < EARLY_SHARE,
            share=draw.random(),
            faults=tuple(draw.sample(FAULTS, draw.choice([0, 1, 2]))),
        )


def part(counts: dict[str, int], kind: str) -> dict[str, int]:
    """The counts whose keys begin with `kind: `, under the rest of the key."""
    return {key.removeprefix(f"{kind}: "): counts[key] for key in sorted(counts) if key.startswith(f"{kind}: ")}


class Campaign:
    """Rounds until there were enough kills; everything that has to outlive the process is in `state.json`."""

    def __init__(self, folder: Path, options: dict):
        self.folder, self.options, self.path = folder, options, folder / "state.json"
        state = {"seed": options["seed"], "rounds": [], "open": None}
        if self.path.exists():
            state = json.loads(self.path.read_text())
        self.seed, self.code = state["seed"], describe_code()
        self.rounds = [Round(**value) for value in state["rounds"]]
        opened = state["open"] and Round(**state["open"])
        self.open = opened if opened and opened.code == self.code else None
        self.start_up, self.batch_seconds = {False: 0.6, True: 5.0}, 0.05  # what was seen lately
        self.stopping = False

    def save(self) -> None:
        state = {"seed": self.seed, "rounds": [vars(r) for r in self.rounds], "open": self.open and vars(self.open)}
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(state))
        temporary.replace(self.path)

    def prepare(self) -> None:
        """Streams, a filled compilation cache, and what an undisturbed run writes with this code."""
        RecordTokenizer(MODEL, "auto")  # this and the next line import what they need, once for all forks
        read_model_config(MODEL)
        if not (self.folder / "streams/manifest.json").exists():
            texts = [text_of(i, 5 + i * 37 % 300) for i in range(self.options["records"])]
            make_streams(write_corpus(self.folder / "corpus", texts), self.folder / "streams", self.options["streams"])
        self.expected = {kind: self.reference(kind) for kind in BACKENDS}
        self.batches_per_stream = sum("/commits/" in name for name in self.expected["local"]) / self.options["streams"]

    def reference(self, kind: str) -> dict[str, str]:
        path = self.folder / f"reference-{self.code}-{kind}.json"
        if not path.exists():
            work = self.folder / f"reference-{kind}"
            shutil.rmtree(work, ignore_errors=True)
            with open_backend(kind, work) as backend:
                for number in range(self.options["streams"]):
                    code, text = run(*self.arguments(backend, number))
                    if code:
                        raise click.ClickException(f"the undisturbed run ended with {code}: {text[-2000:]}")
                path.write_text(json.dumps(snapshot(backend.location)))
        return json.loads(path.read_text())

    def arguments(self, backend: Backend, number: int) -> tuple[object, ...]:
        return (
            "run",
            "--model",
            MODEL,
            "--streams",
            self.folder / "streams",
            "--output",
            backend.location,
            "--worker-id",
            number,
            "--compile-cache",
            self.folder / "cache",
            *FLAGS,
        )

    def stop(self, *_: object) -> None:
        """A signal's handler: stop after the start that is going on. Raising here could end in the middle of a fork."""
        self.stopping = True

    def run(self) -> None:
        """Rounds, on one backend after the other, until there were enough kills or a signal stops it."""
        while sum(r.kills for r in self.rounds) < self.options["kills"] or len(self.rounds) < len(BACKENDS):
            number = len(self.rounds)
            work = self.folder / f"round-{number:04d}"
            if self.open is None:
                shutil.rmtree(work, ignore_errors=True)
                self.open = Round(number, BACKENDS[number % len(BACKENDS)], self.code)
            with open_backend(self.open.backend, work) as backend:
                while len(self.open.complete) < self.options["streams"] and len(self.open.problems) < 3:
                    if self.stopping:
                        return
                    self.one_start(self.open, backend)
                    self.save()
                self.judge(self.open, backend)
            if not self.open.problems:
                shutil.rmtree(work)  # else it is kept for inspection
            self.rounds.append(self.open)
            self.open = None
            self.save()
            self.say(self.rounds[-1])

    def one_start(self, now: Round, backend: Backend) -> None:
        """Start a worker on an unfinished stream and end it at the moment that was drawn, if it lives so long."""
        unfinished = [number for number in range(self.options["streams"]) if number not in now.complete]
        draw = Draw.of(f"{self.seed}:{now.number}:{now.starts}", unfinished, self.options)
        for operation, name, action, settings in draw.faults if backend.address else ():
            backend.instruct(operation, name, action, settings)
            now.counts[f"fault: {action} {operation} {name} {json.dumps(settings)}"] += 1
        had = backend.look(draw.stream)
        now.starts += 1
        now.counts[f"start: {'exec' if draw.full else 'fork'}"] += 1
        now.counts["resumes"] += bool(had.commits)
        worker = Command(self.arguments(backend, draw.stream), draw.full)
        heard = self.wait(worker, draw, lambda: len(backend.look(draw.stream).commits) - len(had.commits))
        if heard == "ended":
            self.ended(now, draw, worker)
        elif time.monotonic() - worker.began > LONGEST_START:
            worker.end(signal.SIGKILL)
            now.wrong("hung", worker)
        elif draw.ending == "SIGTERM":
            self.stopped(now, draw, worker)
        elif draw.ending == "rival":
            self.rivalled(now, draw, worker, backend)
        else:
            code, at = worker.end(signal.SIGKILL), backend.look(draw.stream)
            time.sleep(SETTLE)
            # Any other code than -9: it was over just before. If its stream is complete, the next start says so.
            phase = phase_of(worker.text, had, at, backend.look(draw.stream))
            now.counts[f"kill: {phase}" if code == -signal.SIGKILL else f"exit: {code}"] += 1

    def wait(self, worker: Command, draw: Draw, made: Callable[[], int]) -> str:
        """Until the moment that was drawn, `ended` if the worker ends before; learns how long things take here."""
        limit = worker.began + LONGEST_START
        heard = worker.listen(worker.began + draw.share * self.start_up[draw.full] if draw.early else limit, AT_RECORD)
        if heard == "said":
            stood = time.monotonic()
            self.start_up[draw.full] += 0.2 * (stood - worker.began - self.start_up[draw.full])
            window = self.batch_seconds * self.batches_per_stream * self.options["window"]
            heard = worker.listen(min(stood + draw.share * window, limit))
            count, seconds = made(), time.monotonic() - stood
            if count or seconds > self.batch_seconds:
                self.batch_seconds += 0.2 * (seconds / max(count, 1) - self.batch_seconds)
        return heard

    def ended(self, now: Round, draw: Draw, worker: Command) -> None:
        """It ended by itself: with 0; on the server also with 75, or with 73 if a dead worker's commit landed."""
        code = worker.end()
        now.counts[f"exit: {code}"] += 1
        if code == 0:
            now.complete.append(draw.stream)
        elif now.backend == "local" or code not in (73, 75):
            now.wrong(f"ended with {code}", worker)

    def stopped(self, now: Round, draw: Draw, worker: Command) -> None:
        """SIGTERM: soon it is gone with 75, or its stream is complete, or it was too young to listen."""
        code = worker.end(signal.SIGTERM)
        now.counts[f"SIGTERM: {code}"] += 1
        if code == 0:
            now.complete.append(draw.stream)
        elif code != 75 and (code != -signal.SIGTERM or AT_RECORD in worker.text):
            now.wrong(f"ended with {code} after SIGTERM", worker)

    def rivalled(self, now: Round, draw: Draw, worker: Command, backend: Backend) -> None:
        """It stands still while a rival takes its stream, then both go on: one of them may lose, with 73."""
        os.kill(worker.pid, signal.SIGSTOP)
        rival = Command(self.arguments(backend, draw.stream))
        rival.listen(rival.began + draw.share * 3 * self.start_up[False])
        os.kill(worker.pid, signal.SIGCONT)
        hung = [one.listen(time.monotonic() + LONGEST_START) == "time" for one in (worker, rival)]
        codes = [one.end(signal.SIGKILL if any(hung) else None) for one in (worker, rival)]
        now.counts[f"rivals: {min(codes)} and {max(codes)}"] += 1
        if 0 in codes:
            now.complete.append(draw.stream)
        if not set(codes) <= {0, 73, *([75] if backend.address else [])} or (codes == [73, 73] and not backend.address):
            now.wrong(f"ended with {codes[0]}, its rival with {codes[1]} ({rival.tail()})", worker)

    def judge(self, now: Round, backend: Backend) -> None:
        """`verify`, and the comparison with the undisturbed run."""
        code, text = run("verify", backend.location)
        if code or ": proven." not in text:
            now.problems.append(f"verify ended with {code}: {text[-2000:]}")
        found = snapshot(backend.location)
        wrong = differences(self.expected[now.backend], found)
        now.problems += wrong
        now.counts["mismatches"] += len(wrong)
        now.counts["objects"] += len(found)
        now.counts["batches"] += sum("/commits/" in name for name in found)

    def say(self, last: Round) -> None:
        kills = sum(r.kills for r in self.rounds)
        found = f"{last.kills} kills, {last.counts['batches']} batches, {len(last.problems)} problems"
        print(
            f"round {last.number}, {last.backend}, {last.code}: {found}; {kills} kills in all",
            *last.problems,
            sep="\n  ",
            file=sys.stderr,
            flush=True,
        )

    def results(self) -> dict:
        """What the finished rounds add up to."""
        total, code = Counter(), {}
        by_backend = {kind: Counter() for kind in BACKENDS}
        for finished in self.rounds:
            total.update(finished.counts)
            by_backend[finished.backend].update(finished.counts)
            code.setdefault(finished.code, Counter()).update(rounds=1, kills=finished.kills)
        command = f"python benchmarks/fault_campaign.py --state DIR --kills {self.options['kills']} --seed {self.seed}"
        packages = ("jax", "jaxlib", "numpy", "pyarrow", "google-cloud-storage", "transformers")
        return {
            "command": command,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "code": code,
            "seed": self.seed,
            "rounds": len(self.rounds),
            "streams": len(self.rounds) * self.options["streams"],
            "kills": sum(finished.kills for finished in self.rounds),
            "kills_by_phase": {kind: part(counts, "kill") for kind, counts in by_backend.items()},
            "starts": part(total, "start"),
            **{name: total[name] for name in ("resumes", "batches", "objects", "mismatches")},
            "by_backend": {
                kind: {name: counts[name] for name in ("resumes", "batches", "objects", "mismatches")}
                for kind, counts in by_backend.items()
            },
            "sigterms_by_exit_code": part(total, "SIGTERM"),
            "two_on_one_stream_by_exit_codes": part(total, "rivals"),
            "ends_without_signal_by_exit_code": part(total, "exit"),
            "faults_told_to_the_server": part(total, "fault"),
            "problems": [f"round {r.number}: {problem}" for r in self.rounds for problem in r.problems],
        }


def describe_code() -> str:
    """The commit that is tested, marked if files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("-changed" if git("status", "--porcelain") else "")


@click.command()
@click.option("--state", required=True, type=click.Path(path_type=Path), help="Folder that the campaign lives in.")
@click.option("--kills", default=1000, show_default=True, help="It ends with the round that reaches so many.")
@click.option("--seed", type=int, help="Of all that is drawn; by default a new one. It is kept in --state.")
@click.option("--exec-share", default=0.1, show_default=True, help="Share of starts that are a new interpreter.")
@click.option("--sigterm-share", default=0.05, show_default=True, help="Share of interruptions that are SIGTERM.")
@click.option("--rival-share", default=0.03, show_default=True, help="Share that meets a rival instead.")
@click.option("--window", default=0.2, show_default=True, help="Part of a stream in which a working start is ended.")
@click.option("--streams", default=3, show_default=True)
@click.option("--records", default=1000, show_default=True, help="In all streams together.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results/fault_campaign.json")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON at the end.")
def main(state: Path, output: Path, as_json: bool, **options: object) -> None:
    """Kill workers at random; exit 1 if anything was not as it has to be, 130 if stopped before the end."""
    state = state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    options["seed"] = random.SystemRandom().randrange(1 << 32) if options["seed"] is None else options["seed"]
    campaign = Campaign(state, options)
    rounds = f"{len(campaign.rounds)} rounds done"
    print(f"seed {campaign.seed}, code {campaign.code}, {rounds}", file=sys.stderr, flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, campaign.stop)
    campaign.prepare()
    campaign.run()
    if campaign.stopping:
        print("stopped; the same command goes on", file=sys.stderr, flush=True)
    results = campaign.results()
    output.write_text(json.dumps(results, indent=2) + "\n")
    if as_json:
        print(json.dumps(results))
    sys.exit(1 if results["problems"] else 130 if campaign.stopping else 0)


if __name__ == "__main__":
    main()
