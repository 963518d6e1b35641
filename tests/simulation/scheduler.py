"""A clock, processes and threads in one real thread: each choice comes from one random number generator.

In: a seed. Out: `Scheduler`, which runs the tasks of simulated processes one at a time, and `Process`, which can be
killed, frozen, or end with an exit code. A task is a greenlet: it runs until it waits, and then the scheduler draws the
next task that can run. When no task can run, the clock advances to the next event. Nothing waits in real time.

A killed process raises `Killed` in each of its tasks and in every wait after it, so that no `finally` has an effect on
the outside world. The same seed and the same code give the same execution, which `Scheduler.digest` confirms.
"""

import heapq
import random
from collections.abc import Callable

from greenlet import getcurrent, greenlet

START = 1_800_000_000.0  # seconds since 1970 at which each execution begins


class Killed(BaseException):
    """Ends the tasks of a process that was killed, or that has called `os._exit`."""


class Stuck(Exception):
    """An execution took more steps than an execution can need."""


class Task:
    """A thread of a simulated process."""

    def __init__(self, process: "Process", number: int, run: Callable[[], None]):
        self.process, self.number = process, number
        self.greenlet = greenlet(self._main, process.scheduler.hub)
        self.done = self.parked = False
        self.ticket = 0  # of the last wait, so that a late timeout wakes nobody
        self.woken = False
        self.joiners: list[Task] = []
        self.doing: object = None  # the request that it waits for, for people
        self._run = run

    def _main(self) -> None:
        try:
            self._run()
        except Killed:
            pass
        finally:
            self.done = True
            for task in self.joiners:
                self.process.scheduler.wake(task)


class Process:
    """A simulated process. `code` is its exit code, None for one that was killed; `on_end` is called once."""

    def __init__(self, scheduler: "Scheduler", name: str, environ: dict[str, str], on_end: Callable[["Process"], None]):
        self.scheduler, self.name, self.environ, self._on_end = scheduler, name, environ, on_end
        self.began = scheduler.now
        self.tasks: list[Task] = []
        self.ids: list[str] = []  # that it drew, such as those of its attempts
        self.held: set = set()  # what a set of a module holds in this process
        self.refused = False  # whether a request was answered with 401 or 403
        self.ended, self.code = False, None
        self.steps, self.kill_at = 0, -1  # `kill_at`: the step at which it is killed
        self.writes, self.kill_at_write = 0, -1  # the same for the moments before and after a write takes effect
        self.freeze_at, self.freeze_at_write, self.freeze_seconds = -1, -1, 0.0
        self._frozen: list[Task] | None = None

    def spawn(self, run: Callable[[], None]) -> Task:
        """Start a thread."""
        task = Task(self, self.scheduler.next_number(), run)
        self.tasks.append(task)
        self.scheduler.runnable.append(task)
        return task

    def step(self, is_write: bool = False) -> bool:
        """Count a step; return whether the process still runs after what happens at this step."""
        self.steps += 1
        self.writes += is_write
        if self.steps == self.kill_at or (is_write and self.writes == self.kill_at_write):
            self.kill()
        elif self.steps == self.freeze_at or (is_write and self.writes == self.freeze_at_write):
            self._frozen = []
            self.scheduler.after(self.freeze_seconds, self._thaw)
        return not self.ended

    def hold(self, task: Task) -> bool:
        """Keep a task that could run until the process is no longer frozen; return whether it is frozen."""
        if self._frozen is None:
            return False
        self._frozen.append(task)
        return True

    def _thaw(self) -> None:
        held, self._frozen = self._frozen or [], None
        self.scheduler.runnable += held

    def exit(self, code: int) -> None:
        """End the process from one of its own tasks, like `os._exit`."""
        if not self.ended:
            self.ended, self.code = True, code
        raise Killed

    def kill(self) -> None:
        """Kill the process, from outside."""
        if not self.ended:
            self.scheduler.on_kill(self)
            self.ended = True
            self.reap()

    def reap(self) -> None:
        """Unwind the tasks of a process that has ended, and report its end."""
        for task in self.tasks:
            if not task.done and task.greenlet:
                task.greenlet.throw(Killed)
        self.tasks.clear()
        self.scheduler.runnable = [task for task in self.scheduler.runnable if task.process is not self]
        self._on_end(self)


class Scheduler:
    """Decides what happens next. `now` is in seconds; `on_kill` is called with a process before its tasks unwind."""

    def __init__(self, seed: int, most_steps: int):
        self.random = random.Random(seed)
        self.now, self.hub = START, getcurrent()
        self.runnable: list[Task] = []
        self.current: Task | None = None
        self.digest, self.num_steps = 0, 0
        self.on_kill: Callable[[Process], None] = lambda process: None
        self.log: list[str] | None = None
        self._most_steps = most_steps
        self._events: list[tuple] = []
        self._numbers = 0

    def next_number(self) -> int:
        """Return a number that was not used before."""
        self._numbers += 1
        return self._numbers

    def after(self, seconds: float, call: Callable, *arguments: object) -> None:
        """Call a function from the hub at a later time."""
        heapq.heappush(self._events, (self.now + seconds, self.next_number(), call, arguments))

    def run(self) -> None:
        """Run until nothing is left to happen. Raises Stuck."""
        while self.runnable or self._events:
            self.num_steps += 1
            if self.num_steps > self._most_steps:
                raise Stuck(f"no end after {self.num_steps:,} steps")
            if self.runnable:
                number = self.random.randrange(len(self.runnable)) if len(self.runnable) > 1 else 0
                task = self.runnable.pop(number)
                if not task.process.hold(task) and task.process.step():
                    self._resume(task)
            else:
                when, _, call, arguments = heapq.heappop(self._events)
                self.now = max(self.now, when)
                call(*arguments)

    def _resume(self, task: Task) -> None:
        self.digest = hash((task.number, self.now, self.digest))
        self.current = task
        task.greenlet.switch()
        self.current = None
        if task.process.ended:
            task.process.reap()
        elif task.done:
            task.process.tasks.remove(task)

    def park(self, seconds: float | None = None) -> bool:
        """Let the current task wait until it is woken; return False if the time was over first. Raises Killed."""
        task = self.alive()
        task.ticket += 1
        task.parked, task.woken = True, False
        if seconds is not None:
            self.after(max(seconds, 0.0), self._time_is_over, task, task.ticket)
        self.hub.switch()
        if task.process.ended:
            raise Killed
        return task.woken

    def pause(self) -> None:
        """Perhaps let another task run first. Raises Killed."""
        if self.runnable and self.current and not self.current.process.ended and self.random.random() < 0.3:
            task = self.current
            self.runnable.append(task)
            self.hub.switch()
            if task.process.ended:
                raise Killed

    def _time_is_over(self, task: Task, ticket: int) -> None:
        if task.parked and task.ticket == ticket and not task.process.ended:
            task.parked = False
            self.runnable.append(task)

    def wake(self, task: Task) -> None:
        """Let a waiting task run on."""
        if task.parked and not task.process.ended:
            task.parked, task.woken = False, True
            self.runnable.append(task)

    def alive(self) -> Task:
        """Return the current task. Raises Killed in a process that has ended."""
        if self.current is None or self.current.process.ended:
            raise Killed
        return self.current

    def note(self, text: str) -> None:
        """Add a line to the log of this execution, if one is kept."""
        if self.log is not None:
            who = self.current.process.name if self.current else "-"
            self.log.append(f"{self.now - START:10.3f} {who:12} {text}")
