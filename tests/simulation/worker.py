"""Simulated workers and the launchers that restart them.

In: a world. Out: `WorkerProcess` runs the real `extraction.worker.worker.extract` in a simulated process and ends with
the exit code that `extract_activations.py` would end with; `Launcher` restarts it by the rules of launch_worker.sh, with
the numbers that are written there.
"""

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from extraction.core.errors import ExtractionError
from extraction.storage import open_storage
from extraction.worker import worker
from extraction.worker.shutdown import Stop
from tests.simulation.scheduler import Process
from tests.simulation.shims import Condition, Lock

LAUNCHER = Path(__file__).parents[2] / "launch_worker.sh"
OUTPUT = "gs://bucket/run"


class WorkerProcess(Process):
    """A process that runs a worker on a stream, or on any for None. `signal` is the one that kills it, if one does."""

    def __init__(self, launcher: "Launcher", environ: dict[str, str], on_end: Callable[[Process], None]):
        self.launcher, self.stream = launcher, launcher.stream
        super().__init__(launcher.world.scheduler, f"{launcher.name}.{len(launcher.processes)}", environ, on_end)
        self.error: Exception | None = None
        self.signal = "KILL"
        self.stop = Stop()
        self.stop._cond, self.stop._once = Condition(), Lock()  # type: ignore[assignment]

    def start(self) -> None:
        """Run the worker from now on."""
        self.spawn(self._main)

    def notify(self) -> None:
        """Let a shutdown signal or preemption notice reach the thread that waits for it."""
        self.spawn(lambda: self.stop.end_process("preemption notice"))

    def _main(self) -> None:
        world = self.launcher.world
        try:
            plan = world.workload.plan(open_storage(OUTPUT), self.stream, world.scenario.idle_after)
            worker.extract(plan, self.stop, world.scheduler.now)
            code = 0
        except ExtractionError as error:
            self.error, code = error, error.exit_code
        except Exception as error:
            self.error, code = error, 1
        self.exit(code)


@cache
def launcher_numbers() -> dict[str, float]:
    """Return the defaults of the variables LAUNCH_... in launch_worker.sh, by the rest of their names."""
    found = re.findall(r"\$\{LAUNCH_([A-Z_]+):-(\d+)\}", LAUNCHER.read_text())
    return {name: float(value) for name, value in found}


class Launcher:
    """Restarts one worker after another, as launch_worker.sh does. `on_end` gets its exit code, None if killed."""

    def __init__(self, world, name: str, stream: int | None, folder: Path, on_end: Callable[["Launcher"], None]):
        self.world, self.name, self.stream, self._on_end = world, name, stream, on_end
        self.flavour = world.flavour_of(name)
        self.processes: list[WorkerProcess] = []
        self.ended, self.code, self._stopping = False, None, False
        self._pause, self._failures, self._kills, self._committed = launcher_numbers()["FIRST_PAUSE"], 0, 0, False
        self._commit_file = folder / f"{name}.commit"
        self._environ = {
            "LAUNCH_ATTEMPTS_FILE": str(folder / f"{name}.attempts"),
            "LAUNCH_COMMIT_FILE": str(self._commit_file),
            "EXTRACT_RETRY_DEADLINE": str(world.scenario.retry_deadline),
        }
        self._start()

    def _start(self) -> None:
        if self.ended:
            return
        if self._stopping:
            self._end(75)
            return
        self._commit_file.unlink(missing_ok=True)
        process = WorkerProcess(self, self._environ, self._worker_ended)
        self.processes.append(process)
        self.world.prepare(process)
        process.start()

    def _end(self, code: int | None) -> None:
        self.ended, self.code = True, code
        self._on_end(self)

    def _worker_ended(self, process: Process) -> None:
        """Decide as the loop at the end of launch_worker.sh."""
        self.world.worker_ended(self, process)
        if self.ended:
            return
        code, numbers = process.code, launcher_numbers()
        if self._commit_file.exists():
            self._pause, self._failures, self._kills, self._committed = numbers["FIRST_PAUSE"], 0, 0, True
        if code not in (None, 75) and not (code == 77 and self._committed):
            self._end(code)
            return
        if self._stopping:
            self._end(75)
            return
        if code is None and process.signal == "KILL":
            quick = self.world.scheduler.now - process.began < numbers["QUICK"]
            self._kills = self._kills + 1 if quick else 0
            if self._kills >= numbers["KILLS"]:
                self._end(137)
                return
        elif code != 75:
            self._failures += 1
            if self._failures >= numbers["FAILURES"]:
                self._end(code or 139)
                return
        self.world.scheduler.after(self._pause * self.world.scheduler.random.uniform(0.5, 1.0), self._start)
        self._pause = min(self._pause * 2, numbers["LONGEST_PAUSE"])

    def terminate(self) -> None:
        """Pass SIGTERM on to the worker, and restart it no more."""
        self._stopping = True
        process = self.processes[-1]
        if not process.ended:
            process.notify()

    def lose_machine(self) -> None:
        """End the launcher and its worker at once."""
        self.ended = True
        self.processes[-1].kill()
        self._on_end(self)


def clear(folder: Path) -> None:
    """Remove the files of the launchers of an execution."""
    for entry in os.scandir(folder):
        os.unlink(entry.path)
