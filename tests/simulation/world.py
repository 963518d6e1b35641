"""One execution: workers on simulated machines until all streams are finished, then the proof.

In: a scenario and the seed of every choice within it. Out: an `Outcome`. An execution goes through three phases. In the
first, workers run and are disturbed. When each has ended for good, an operator starts undisturbed workers until all
streams are finished; requests that were delayed may still land then. At last the real `verify --deep` has to say proven.

Violations are any exit code or error that is not documented for what happened to that worker, exit 0 before the stream
is finished, a worker that is fenced by itself, an object that was overwritten, and an execution that does not end.
"""

import re
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from extraction.audit import verify
from extraction.core.errors import Fenced, Stopped
from extraction.format.commit import Commit, commit_name, parse_commit
from tests.simulation.bucket import Bucket, Object
from tests.simulation.network import Faults
from tests.simulation.scenario import Outcome, Scenario
from tests.simulation.scheduler import START, Process, Scheduler, Stuck
from tests.simulation.worker import OUTPUT, Launcher, WorkerProcess
from tests.simulation.workload import STREAMS, Workload

PREFIX = OUTPUT.removeprefix("gs://bucket/") + "/"
MOST_STEPS = 300_000
_PLACES = re.compile(
    r".*/((?:extraction/(?!core/|storage/)|checkpoint\.py).*)"
)  # the code that uses storage and threads


class World:
    """An execution that is under way."""

    def __init__(self, seed: int, scenario: Scenario, workload: Workload, folder: Path, flavour: int | None = None):
        self.scenario, self.outcome, self._folder = scenario, Outcome(seed), folder
        self.scheduler = Scheduler(seed, MOST_STEPS)
        self.scheduler.on_kill = self._on_kill
        self.workload = workload
        self.bucket = Bucket(scenario.page_size)
        self.faults = Faults(scenario.fault_rate, scenario.refusals, counts=self.outcome.faults)
        self._kills, self._freezes = scenario.kills, scenario.freezes
        self._flavour, self._quiet = flavour, False
        self._open, self._launchers = 0, 0
        self._tries = 0
        self.writers: dict[str, Launcher] = {}  # {attempt: its launcher}

    # ------------------------------------------------------------------------------------------ the phases

    def run(self) -> Outcome:
        """Run to the end; return the outcome."""
        outcome = self.outcome
        try:
            numbers = [None] * (self.scenario.workers + 1) if self.scenario.any_stream else self._seats()
            self._open = len(numbers)
            for number in numbers:
                self.scheduler.after(self.scheduler.random.uniform(0, 5), self._begin, number, 1)
            for _ in range(self.scenario.outages):
                self.scheduler.after(10 ** self.scheduler.random.uniform(0.5, 2.5), self._outage)
            self.scheduler.run()
            self._prove()
        except Stuck as error:
            outcome.violations.append(str(error))
        except Exception:
            outcome.violations.append(traceback.format_exc())
        outcome.violations += self.bucket.violations
        outcome.steps, outcome.digest = self.scheduler.num_steps, self.scheduler.digest
        outcome.seconds, outcome.requests = self.scheduler.now - START, self.bucket.requests
        return outcome

    def _seats(self) -> list[int]:
        streams = list(range(self.workload.num_streams))
        return streams + [self.scheduler.random.choice(streams) for _ in range(self.scenario.workers)]  # rivals

    def _begin(self, stream: int | None, machine: int) -> None:
        """Start a machine; it may be lost later, with a notice or without one, and then another one follows."""
        draw = self.scheduler.random
        launcher = self._launch(stream, lambda launcher: self._machine_ended(launcher, machine))
        if machine < self.scenario.machines:
            lifetime = 10 ** draw.uniform(0.3, 2.2)
            if draw.random() < 0.5:
                self.scheduler.after(lifetime, self._give_notice, launcher)
                lifetime += draw.choice((0.1, 3.0, 30.0))
            self.scheduler.after(lifetime, self._lose_machine, launcher)

    def _outage(self) -> None:
        """Let the service fail for some seconds or minutes."""
        if not self._quiet:
            self.faults.down_until = self.scheduler.now + 10 ** self.scheduler.random.uniform(0.5, 2.5)

    def _give_notice(self, launcher: Launcher) -> None:
        if not launcher.ended:
            self.outcome.notices += 1
            launcher.terminate()

    def _lose_machine(self, launcher: Launcher) -> None:
        if not launcher.ended:
            self.outcome.machines_lost += 1
            launcher.lose_machine()

    def _launch(self, stream: int | None, on_end: Callable[[Launcher], None]) -> Launcher:
        self._launchers += 1
        return Launcher(self, f"{'any' if stream is None else stream}-{self._launchers}", stream, self._folder, on_end)

    def _machine_ended(self, launcher: Launcher, machine: int) -> None:
        if launcher.code in (None, 75) and machine < self.scenario.machines:
            delay = self.scheduler.random.uniform(1, 60)
            self.scheduler.after(delay, self._begin, launcher.stream, machine + 1)
            return
        self._open -= 1
        if not self._open:
            self.scheduler.after(0.0, self._finish)

    def _finish(self) -> None:
        """Let an operator start undisturbed workers, one after another, until all streams are finished."""
        self._quiet, self.faults.rate, self.faults.down_until = True, 0.0, 0.0
        unfinished = self.unfinished()
        self._tries += 1
        if unfinished and self._tries > 10 * self.workload.num_streams:
            self.outcome.violations.append(f"streams {unfinished} are not finished by undisturbed workers")
        elif unfinished:
            self._launch(None if self.scenario.any_stream else unfinished[0], lambda launcher: self._finish())

    def _prove(self) -> None:
        """Run `verify --deep`, and compare every object with the undisturbed run."""
        found: list = []
        process = Process(self.scheduler, "verify", {}, lambda process: None)
        process.spawn(lambda: found.append(verify.audit_run(OUTPUT, STREAMS, deep=True)))
        self.scheduler.run()
        if found[0].exit_code:
            self.outcome.violations.append(found[0].to_text())

    # ------------------------------------------------------------------------------------------ what launchers ask

    def flavour_of(self, name: str) -> int:
        """Return the flavour of the devices of a machine."""
        return self.scheduler.random.randrange(self.scenario.flavours) if self._flavour is None else self._flavour

    def prepare(self, process: WorkerProcess) -> None:
        """Draw when a process is killed or frozen."""
        draw = self.scheduler.random
        self.outcome.workers += 1
        if self._quiet:
            return
        if self._kills and draw.random() < 0.95:
            self._kills -= 1
            if draw.random() < 0.4:
                process.kill_at_write = draw.randint(1, 10)
            else:
                process.kill_at = draw.randint(1, draw.choice((8, 15, 40, 80, 150)))
            process.signal = draw.choice(("KILL", "KILL", "SEGV"))
        if self._freezes and draw.random() < 0.5:
            self._freezes -= 1
            self.outcome.freezes += 1
            if draw.random() < 0.5:
                process.freeze_at_write = draw.randint(1, 10)
            else:
                process.freeze_at = draw.randint(1, 150)
            process.freeze_seconds = 10 ** draw.uniform(0.5, 3)

    def _on_kill(self, process: Process) -> None:
        self.outcome.crashes += 1
        self.outcome.positions.add(position_of(process))

    def worker_ended(self, launcher: Launcher, process: WorkerProcess) -> None:
        """Judge how a worker ended."""
        for attempt in process.ids:
            self.writers[attempt] = launcher
        self.outcome.exits["killed" if process.code is None else str(process.code)] += 1
        wrong = self._wrong_end(launcher, process)
        self.scheduler.note(f"{process.name} ends with {process.code}: {process.error}")
        if wrong:
            self.outcome.violations.append(f"{process.name}: {wrong}")

    def _wrong_end(self, launcher: Launcher, process: WorkerProcess) -> str:
        code, error = process.code, process.error
        if code == 0:
            open_streams = [n for n in self.unfinished() if process.stream in (None, n)]
            return f"ends with 0, but streams {open_streams} are not finished" if open_streams else ""
        if isinstance(error, Fenced):
            return "is fenced by itself" if self.writers.get(error.winner) is launcher else ""
        if isinstance(error, Stopped) and not process.stop.is_set():
            return "says that it was asked to stop, and it was not"
        if code in (None, 75) or (code == 77 and process.refused):
            return ""
        return f"ends with {code}: " + "".join(traceback.format_exception(error))

    @property
    def objects(self) -> dict[str, Object]:
        """The objects of the run, by their names in it."""
        return {name.removeprefix(PREFIX): stored for name, stored in self.bucket.objects.items()}

    def unfinished(self) -> list[int]:
        """Return the streams without a commit of their end."""
        return [n for n in range(self.workload.num_streams) if not any(c.end_of_stream for c in commits_of(self, n))]


def commits_of(world: World, stream: int) -> list[Commit]:
    """Return the commits of a stream, as far as they have no gap."""
    found = []
    while stored := world.bucket.objects.get(f"{PREFIX}{commit_name(stream, len(found))}"):
        found.append(_parsed(stored.data, stored.name))
    return found


_parsed = lru_cache(1 << 12)(parse_commit)


def position_of(process: Process) -> str:
    """Return where in the product's code the threads of a process are, and which requests they wait for."""
    places = set()
    for task in process.tasks:
        frame = task.greenlet.gr_frame if task.greenlet else None
        while frame is not None and not (match := _PLACES.match(frame.f_code.co_filename)):
            frame = frame.f_back
        if frame is not None:
            places.add(f"{match[1]}:{frame.f_lineno} {task.doing or ''}".strip())
    return "; ".join(sorted(places))
