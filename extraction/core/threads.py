"""Bounded look-ahead: `look_ahead` in order, `prefetch` on a pool of threads, `read_ahead` and `in_background` on one.

In: items and a function to load them, an iterable, or a function that makes an iterator and asks
`Budget.reserve(bytes)` before it makes each item. Out: the results in the order of the items. Guarantee: results that
wait or are in use fit the depth or the budget, or are one; an error is raised, with its traceback, after the items
before it; closing the result cancels work that has not begun. Cost: the threads of the pool, or one thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
JOIN_SECONDS = 5.0  # how long closing waits for a read that is under way


def look_ahead(
    items: Iterable[Item], depth: int, discard: Callable[[Item], object] = lambda item: None
) -> Generator[Item, None, None]:
    """Yield the same items, each taken from its source while up to `depth` earlier ones wait for their use.

    Raises what the source raises, after the items before the error. Closing passes the waiting items to `discard`.
    """
    waiting: deque[Item] = deque()
    source = iter(items)
    trouble: Exception | None = None
    try:
        while trouble is None:
            try:
                waiting.append(next(source))
            except StopIteration:
                break
            except Exception as error:
                trouble = error
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
        if trouble is not None:
            raise trouble
    finally:
        for item in waiting:
            discard(item)


def prefetch(
    items: Iterable[Item], load: Callable[[Item], Loaded], depth: int, pool: Executor
) -> Generator[Loaded, None, None]:
    """Yield `load(item)` of each item in order, with up to `depth` results loaded or loading besides the one in use.

    Raises what `load` or the iterable raises, after the results of the items before it.
    """
    with closing(look_ahead((pool.submit(load, item) for item in items), depth, Future.cancel)) as futures:
        yield from map(Future.result, futures)


class Budget:
    """Bytes, or items, that may be held at once. One reservation is always granted when nothing is held."""

    def __init__(self, limit: int):
        self._limit, self._held, self._closed = limit, 0, False
        self._changed = threading.Condition()

    def reserve(self, size: int) -> bool:
        """Wait until `size` bytes may be held. Return False if the budget was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._held or self._held + size <= self._limit)
            self._held += size
            return not self._closed

    def release(self, size: int) -> None:
        """Give back the bytes of an item."""
        with self._changed:
            self._held -= size
            self._changed.notify()

    def close(self) -> None:
        """End all waiting: no further item is wanted."""
        with self._changed:
            self._closed = True
            self._changed.notify()


def read_ahead(make: Callable[[Budget], Iterator[tuple[Item, int]]], limit: int) -> Generator[Item, None, None]:
    """Yield the items of `make(budget)`, made on a thread up to `limit` bytes ahead.

    Args:
        make: makes the iterator, which yields each item with the bytes that it reserved for it.
        limit: bytes that may be held at once.
    """
    budget = Budget(limit)
    made: SimpleQueue[tuple[Item, int] | BaseException | None] = SimpleQueue()  # an error or None is the end

    def work() -> None:
        try:
            for pair in make(budget):
                made.put(pair)
                del pair  # otherwise this thread would hold the last item, too
            made.put(None)
        except BaseException as error:  # raised again in the reader's thread
            made.put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (pair := made.get()) is not None:
            if isinstance(pair, BaseException):
                raise pair
            item, size = pair
            del pair
            yield item
            del item
            budget.release(size)
    finally:
        budget.close()
        thread.join(JOIN_SECONDS)


def in_background(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the same items, made on a thread; up to `depth` wait for their use besides the one in use."""

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
