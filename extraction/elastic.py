"""Choosing a stream: workers without numbers, as many as there happen to be, on as many streams as were cut.

In: the output of a run and the number of its streams. Out: the number of a stream to take on next. Streams where
nobody was at work lately come first, in an order that differs from worker to worker; "lately" is told by the store's
timestamps. Nothing depends on the choice but how much is computed twice: who may commit is decided by the commit chain.

Cost: some listings for a choice, each stream's until one is found that is free.
"""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from .errors import DamagedData, ExtractionError, Fenced, TryAgain
from .standing import Standing, read_standing
from .storage import Storage

_AT_ONCE = 16
_LONGEST_WAIT = 30.0


class StreamChooser:
    """Finds free streams. `idle_after`: seconds without a sign of work after which a stream counts as free."""

    def __init__(self, storage: Storage, num_streams: int, idle_after: float):
        self._storage, self._idle_after = storage, idle_after
        self._open = set(range(num_streams))
        self._random = random.SystemRandom()

    def close(self, stream: int) -> None:
        """This stream is none of ours any more: it is finished, or cannot be worked on."""
        self._open.discard(stream)

    def choose(self) -> int | None:
        """A free stream, or None if somebody is at work on each that is not finished."""
        now = self._storage.now()
        for standing in self._look_around():
            if standing.finished:
                self.close(standing.worker_id)
            elif now - standing.active >= self._idle_after:
                return standing.worker_id
        return None

    def wait_for_one(self, stop: threading.Event) -> int | None:
        """A free stream, as soon as there is one; None when all are finished. Raises TryAgain when told to stop."""
        while not stop.is_set():
            stream = self.choose()
            if stream is not None or not self._open:
                return stream
            stop.wait(min(self._idle_after / 4, _LONGEST_WAIT) * self._random.uniform(0.5, 1.0))
        raise TryAgain("told to stop while waiting for a stream")

    def _look_around(self) -> Iterator[Standing]:
        order = list(self._open)
        self._random.shuffle(order)
        # A first look at one: where most streams are free there is no need to see more.
        groups = [order[:1], *(order[first : first + _AT_ONCE] for first in range(1, len(order), _AT_ONCE))]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for group in groups:
                yield from pool.map(lambda stream: read_standing(self._storage, stream), group)


def work_all(
    chooser: StreamChooser, work: Callable[[int], None], say: Callable[[str], None], stop: threading.Event
) -> None:
    """Take streams and `work` each to its end until all are finished.

    A stream that a rival won is left to it. One that is damaged is left too, and its DamagedData raised at the end, so
    that one bad object does not stop every worker.
    """
    trouble: ExtractionError | None = None
    while (stream := chooser.wait_for_one(stop)) is not None:
        try:
            work(stream)
            chooser.close(stream)
        except Fenced as fenced:
            say(f"left stream {stream} to another worker: {fenced}")
        except DamagedData as error:
            say(f"left stream {stream}, which is damaged: {error}")
            chooser.close(stream)
            trouble = trouble or error
    if trouble is not None:
        raise trouble
