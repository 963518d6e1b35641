"""Stand-ins for `threading`, `time`, `queue`, `random`, `uuid`, `os` and `sys` in the modules of the product.

In: the scheduler of an execution, set by `use`. Out: with `installed()`, every global of a module of the product (and
of concurrent.futures, whose ThreadPoolExecutor it uses) that is one of those standard modules is replaced, so the real
code waits, reads clocks, draws numbers and starts threads in the simulation. A new module of the product is covered
without being named here; a clock or a thread that escapes shows up as a seed that does not replay.
"""

import contextlib
import os
import queue
import random
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from tests.simulation.scheduler import Scheduler, Task

PRODUCT = ("extraction", "checkpoint", "concurrent.futures")
_active: list[Scheduler] = []


def use(scheduler: Scheduler) -> None:
    """Let the stand-ins act in this execution."""
    _active[:] = [scheduler]


def active() -> Scheduler:
    """Return the scheduler of the execution."""
    return _active[0]


class Lock:
    """threading.Lock."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Task] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for the lock. Raises Killed."""
        while self._held:
            if not blocking:
                return False
            self._waiting.append(active().alive())
            active().park()
        self._held = True
        return True

    def release(self) -> None:
        """Give the lock to one that waits."""
        self._held = False
        if self._waiting:
            active().wake(self._waiting.popleft())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class Condition:
    """threading.Condition."""

    def __init__(self, lock: Lock | None = None):
        self._lock = lock or Lock()
        self._waiting: list[Task] = []
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        active().pause()
        return self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a notification; return False if the time was over first. Raises Killed."""
        task = active().alive()
        self._waiting.append(task)
        self._lock.release()
        woken = active().park(timeout)
        if not woken:
            self._waiting.remove(task)
        self._lock.acquire()
        return woken

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> object:
        """Wait until the predicate holds; return what it gives. Raises Killed."""
        end = None if timeout is None else active().now + timeout
        while not (found := predicate()):
            left = None if end is None else end - active().now
            if left is not None and left <= 0:
                break
            self.wait(left)
        return found

    def notify(self, n: int = 1) -> None:
        """Wake up to n that wait."""
        for task in self._waiting[:n]:
            active().wake(task)
        del self._waiting[:n]

    def notify_all(self) -> None:
        """Wake all that wait."""
        self.notify(len(self._waiting))


class Semaphore:
    """threading.Semaphore, as ThreadPoolExecutor uses it: it never waits."""

    def __init__(self, value: int = 1):
        self._value = value

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Return whether one was free."""
        if not self._value:
            return False
        self._value -= 1
        return True

    def release(self, n: int = 1) -> None:
        """Give n back."""
        self._value += n


class Event:
    """threading.Event."""

    def __init__(self) -> None:
        self._cond, self._flag = Condition(), False

    is_set = threading.Event.is_set
    set = threading.Event.set
    wait = threading.Event.wait


class Thread:
    """threading.Thread. An error that ends it is an error of the execution."""

    def __init__(self, target: Callable, name: str = "", args: tuple = (), kwargs: dict | None = None, daemon=None):
        self._call = lambda: target(*args, **(kwargs or {}))
        self.name, self._task, self._number = name, None, active().next_number()

    def __hash__(self) -> int:
        return self._number  # a pool keeps its threads in a set, whose order must not depend on addresses

    def start(self) -> None:
        """Let it run from now on, without waiting."""
        self._task = active().alive().process.spawn(self._call)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end; return at once in a process that has ended, since a `finally` may call it. Raises Killed."""
        scheduler = active()
        task = scheduler.current
        if task is None or task.process.ended or self._task is None or self._task.done:
            return
        self._task.joiners.append(task)
        scheduler.park(timeout)

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._task is not None and not self._task.done


class SimpleQueue:
    """queue.SimpleQueue."""

    def __init__(self) -> None:
        self._items: deque = deque()
        self._changed = Condition()

    def put(self, item: object) -> None:
        """Add an item, without waiting."""
        self._items.append(item)
        self._changed.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        """Return the first item. Raises queue.Empty or Killed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or not block, timeout)
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> object:
        """Return the first item. Raises queue.Empty."""
        return self.get(block=False)


class ProcessSet:
    """A set of a module, of which each simulated process has its own."""

    def __contains__(self, item: object) -> bool:
        return item in active().alive().process.held

    def add(self, item: object) -> None:
        """Add an item to the set of the current process."""
        active().alive().process.held.add(item)


class _Module:
    """A module whose other names are those of the real one."""

    def __init__(self, real: object, **names: object):
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


class _Os(_Module):
    @property
    def environ(self) -> dict[str, str]:
        task = active().current
        return task.process.environ if task else {}


def _now() -> float:
    return active().now


def _exit(code: int) -> None:
    active().alive().process.exit(code)


def _uuid4() -> uuid.UUID:
    made = uuid.UUID(int=active().random.getrandbits(128), version=4)
    active().alive().process.ids.append(made.hex)
    return made


_THREADS = {"Thread": Thread, "Lock": Lock, "Condition": Condition, "Semaphore": Semaphore, "Event": Event}
_CLOCK = {
    "time": _now,
    "monotonic": _now,
    "perf_counter": _now,
    "sleep": lambda seconds: active().park(seconds) and None,
    "gmtime": lambda seconds=None: time.gmtime(_now() if seconds is None else seconds),
}
_LINES = SimpleNamespace(
    write=lambda text: text.strip() and active().note(text.strip()), flush=lambda: None, isatty=lambda: False
)
_STAND_INS = {
    id(threading): _Module(threading, **_THREADS),
    id(time): _Module(time, **_CLOCK),
    id(queue): _Module(queue, SimpleQueue=SimpleQueue),
    id(queue.SimpleQueue): SimpleQueue,
    id(random): _Module(
        random, uniform=lambda first, last: active().random.uniform(first, last), SystemRandom=lambda: active().random
    ),
    id(uuid): _Module(uuid, uuid4=_uuid4),
    id(os): _Os(os, _exit=_exit),
    id(sys): _Module(sys, stderr=_LINES),
}


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Put the stand-ins into the modules of the product, and the real ones back at the end."""
    replaced = [
        (module, name, value)
        for module_name, module in list(sys.modules.items())
        if module_name.startswith(PRODUCT)
        for name, value in list(vars(module).items())
        if id(value) in _STAND_INS
    ]
    for module, name, value in replaced:
        setattr(module, name, _STAND_INS[id(value)])
    try:
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)
