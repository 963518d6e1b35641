"""Choosing a stream: workers without numbers, as many as there happen to be, on as many streams as were cut.

In: the output of a run and the number of its streams. Out: the number of a stream to take on next. Streams where
nobody was at work lately, or whose worker was told to stop, come first, in an order that differs from worker to worker;
"lately" is told by the store's timestamps. Of workers that choose the same stream at once all but the first leave it
again, by the notes of their starts, before they compute anything. Nothing depends on the choice but how much is
computed twice: who may commit is decided by the commit chain.

Cost: a few requests for a look at a stream. A stream that is being worked on is looked at again only when it may have
become free, and one of those, drawn by lot, in each round, to see whether all are finished.
"""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ..core.errors import DamagedData, ExtractionError, Fenced, TryAgain
from ..core.logs import say
from ..format.attempts import list_starts, note_start
from ..format.commit import Instance
from ..format.stream_state import Standing, read_standing
from ..storage import Storage

_AT_ONCE = 16
_LONGEST_WAIT = 30.0


class StreamChooser:
    """Finds free streams. `idle_after`: seconds without a sign of work after which a stream counts as free."""

    def __init__(self, storage: Storage, num_streams: int, idle_after: float):
        self._storage, self._idle_after = storage, idle_after
        self._free_at = dict.fromkeys(range(num_streams), 0.0)  # of each open stream, at the earliest
        self._stopped: dict[int, float] = {}  # streams whose last worker was told to stop, and when
        self._random = random.SystemRandom()

    def close(self, stream: int) -> None:
        """This stream is none of ours any more: it is finished, or cannot be worked on."""
        self._free_at.pop(stream, None)

    def choose(self) -> int | None:
        """A free stream, or None if somebody is at work on each that is not finished."""
        now = self._storage.now()
        order = list(self._free_at)
        self._random.shuffle(order)
        due = [stream for stream in order if self._free_at[stream] <= now]
        for standing in self._look_at(due):
            if self._is_free(standing, now):
                return standing.stream
        for stream in order:
            if stream in self._free_at and stream not in due:
                if self._is_free(read_standing(self._storage, stream), now):
                    return stream
                if stream in self._free_at:  # somebody is at work: not all are finished
                    break
        return None

    def _is_free(self, standing: Standing, now: float) -> bool:
        if standing.finished:
            self.close(standing.stream)
            return False
        if standing.stopped is not None:
            self._stopped[standing.stream] = standing.stopped
            return True
        self._free_at[standing.stream] = standing.active + self._idle_after
        return self._free_at[standing.stream] <= now

    def take(self, stream: int) -> Instance | None:
        """Leave word that we work on a free stream from now on; None if another did so before us since it was free."""
        instance = Instance()
        note_start(self._storage, stream, instance)
        since = max(self._storage.now() - self._idle_after, self._stopped.get(stream, 0.0))
        recent = [info for info in list_starts(self._storage, stream) if info.updated > since]
        first = min(recent, key=lambda info: (info.updated, info.name), default=None)
        return instance if first is None or instance.attempt in first.name else None

    def wait_for_one(self, stop: threading.Event) -> int | None:
        """A free stream, as soon as there is one; None when all are finished. Raises TryAgain when told to stop."""
        waiting = False
        while not stop.is_set():
            stream = self.choose()
            if stream is not None or not self._free_at:
                return stream
            if not waiting:
                waiting = True
                say(
                    f"waits for one of {len(self._free_at):,} streams to become free: others are at work on them, or "
                    f"were within --idle-after {self._idle_after:g} s"
                )
            stop.wait(min(self._idle_after / 4, _LONGEST_WAIT) * self._random.uniform(0.5, 1.0))
        raise TryAgain("told to stop while waiting for a stream")

    def _look_at(self, streams: list[int]) -> Iterator[Standing]:
        # A first look at one: where most streams are free there is no need to see more.
        groups = [streams[:1], *(streams[first : first + _AT_ONCE] for first in range(1, len(streams), _AT_ONCE))]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for group in groups:
                yield from pool.map(lambda stream: read_standing(self._storage, stream), group)


def work_all(
    chooser: StreamChooser, work: Callable[[int, Instance], None], tell: Callable[[str], None], stop: threading.Event
) -> None:
    """Take streams and `work` each to its end until all are finished.

    A stream that a rival won is left to it. One that is damaged is left too, and its DamagedData raised at the end, so
    that one bad object does not stop every worker.
    """
    trouble: ExtractionError | None = None
    while (stream := chooser.wait_for_one(stop)) is not None:
        instance = chooser.take(stream)
        if instance is None:
            continue
        try:
            work(stream, instance)
            chooser.close(stream)
        except Fenced as fenced:
            tell(f"left stream {stream} to another worker: {fenced}")
        except DamagedData as error:
            tell(f"left stream {stream}, which is damaged: {error}")
            chooser.close(stream)
            trouble = trouble or error
    if trouble is not None:
        raise trouble
