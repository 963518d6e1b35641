"""Working ahead: an iterator runs in a thread of its own, as far ahead as a number of bytes or of items allows.

In: any iterable, or a function that makes an iterator and asks `Budget.reserve(bytes)` before it makes each item. Out:
the same items, in order. Guarantee: what is made and not yet used up is within the budget, or is one item; an error of
the iterator is raised, with its traceback, after the items that came before it; closing the result ends the thread and
the iterator. Cost: one thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
JOIN_SECONDS = 5.0  # how long closing waits for a read that is under way


class Budget:
    """Bytes, or items, that may be held at once. One reservation is always granted when nothing is held."""

    def __init__(self, limit: int):
        self._limit, self._held, self._closed = limit, 0, False
        self._changed = threading.Condition()

    def reserve(self, size: int) -> bool:
        """Wait until `size` bytes may be held; False when nobody wants them any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._held or self._held + size <= self._limit)
            self._held += size
            return not self._closed

    def release(self, size: int) -> None:
        """Give back what an item held."""
        with self._changed:
            self._held -= size
            self._changed.notify()

    def close(self) -> None:
        """Wake whoever waits: nobody wants anything any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class _Handover(Generic[Item]):
    """What the thread puts down and the reader picks up."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Item | None, int, BaseException | None, bool]] = deque()
        self._changed = threading.Condition()

    def put(self, item: Item | None, size: int, error: BaseException | None, last: bool) -> None:
        with self._changed:
            self._waiting.append((item, size, error, last))
            self._changed.notify()

    def take(self) -> tuple[Item | None, int, BaseException | None, bool]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            return self._waiting.popleft()


def read_ahead(make: Callable[[Budget], Iterator[tuple[Item, int]]], limit: int) -> Generator[Item, None, None]:
    """The items of `make(budget)`, which yields each with the bytes it reserved, made up to `limit` bytes ahead."""
    budget, handover = Budget(limit), _Handover()

    def work() -> None:
        error = None
        try:
            for item, size in make(budget):
                handover.put(item, size, None, False)
                del item  # or the last one would be held by this thread, too
        except BaseException as raised:  # whatever it is, it is the reader's to see
            error = raised
        handover.put(None, 0, error, True)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, size, error, last = handover.take()
            if error is not None:
                raise error
            if last:
                return
            yield item
            del item
            budget.release(size)
    finally:
        budget.close()
        thread.join(JOIN_SECONDS)


def in_background(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items; up to `depth` wait for their use, besides the one that is in use."""

    def make(budget: Budget) -> Iterator[tuple[Item, int]]:
        source = iter(items)
        while budget.reserve(1):
            try:
                item = next(source)
            except StopIteration:
                return
            yield item, 1
            del item

    return read_ahead(make, depth + 1)


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """Yield `function(item)` of each item in order; up to `depth` of them are worked on in `pool` while one is used."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
