"""Choose a stream for a worker without a number (`--stream any`).

In: the output of a run and the number of its streams. Out: the number of the stream to work on next. Streams on which
no attempt began or committed lately, or whose last attempt ended by a shutdown signal, come first, in an order that
differs from worker to worker; the store's timestamps decide what is lately. Of workers that choose the same stream at
once all but the first leave it again, by the notes of their attempts, before they compute anything. Guarantee: the
choice decides only how much is computed twice; the commit chain decides who may commit.

Cost: a few requests for a look at a stream. A stream that another worker works on is looked at again only when it may
be free, and one of those, drawn by lot, in each round, to see whether all are finished.
"""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ..core.count_of import count_of
from ..core.errors import DamagedData, DtypeOverflow, ExtractionError, Fenced, TryAgain
from ..core.logs import say
from ..format.commit import Attempt
from ..format.stream_state import BEGIN, StreamState, list_notes, read_stream_state
from ..storage import Storage
from .attempts import new_attempt, note_begin

_AT_ONCE = 16
_LONGEST_WAIT = 30.0


class StreamChooser:
    """Finds free streams; a stream is free `idle_after` seconds after an attempt last began or committed."""

    def __init__(self, storage: Storage, num_streams: int, idle_after: float):
        self._storage, self._idle_after = storage, idle_after
        self._free_at = dict.fromkeys(range(num_streams), 0.0)  # of each open stream, at the earliest
        self._stopped: dict[int, float] = {}  # when the last attempt on a stream ended by a shutdown signal
        self._random = random.SystemRandom()

    def close(self, stream: int) -> None:
        """Leave this stream out from now on: it is finished, or no worker can finish it."""
        self._free_at.pop(stream, None)

    def choose(self) -> int | None:
        """Return a free stream, or None if every stream that is not finished is worked on."""
        now = self._storage.now()
        order = list(self._free_at)
        self._random.shuffle(order)
        due = [stream for stream in order if self._free_at[stream] <= now]
        for state in self._look_at(due):
            if self._is_free(state, now):
                return state.stream
        for stream in order:
            if stream in self._free_at and stream not in due:
                if self._is_free(read_stream_state(self._storage, stream), now):
                    return stream
                if stream in self._free_at:  # another worker works on it: not all are finished
                    break
        return None

    def _is_free(self, state: StreamState, now: float) -> bool:
        if state.finished:
            self.close(state.stream)
            return False
        if state.stopped_at is not None:
            self._stopped[state.stream] = state.stopped_at
            return True
        self._free_at[state.stream] = state.last_active + self._idle_after
        return self._free_at[state.stream] <= now

    def take(self, stream: int) -> Attempt | None:
        """Begin an attempt on a free stream; return None if another worker began one since the stream was free."""
        attempt = new_attempt()
        note_begin(self._storage, stream, attempt)
        since = max(self._storage.now() - self._idle_after, self._stopped.get(stream, 0.0))
        recent = [(info.updated or 0.0, info.name) for info in list_notes(self._storage, stream, BEGIN)]
        first = min((note for note in recent if note[0] > since), default=None)
        return attempt if first is None or attempt.id in first[1] else None

    def wait_for_one(self, stop: threading.Event) -> int | None:
        """Return a free stream as soon as there is one, None when all are finished. Raises TryAgain on `stop`."""
        waiting = False
        while not stop.is_set():
            stream = self.choose()
            if stream is not None or not self._free_at:
                return stream
            if not waiting:
                waiting = True
                say(
                    f"waiting for a free stream: other workers used the remaining "
                    f"{count_of(len(self._free_at), 'stream')} within the last {self._idle_after:g} s (--idle-after)"
                )
            stop.wait(min(self._idle_after / 4, _LONGEST_WAIT) * self._random.uniform(0.5, 1.0))
        raise TryAgain("shutdown signal while waiting for a stream")

    def _look_at(self, streams: list[int]) -> Iterator[StreamState]:
        # A first look at one: where most streams are free there is no need to see more.
        groups = [streams[:1], *(streams[first : first + _AT_ONCE] for first in range(1, len(streams), _AT_ONCE))]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for group in groups:
                yield from pool.map(lambda stream: read_stream_state(self._storage, stream), group)


def work_all(
    chooser: StreamChooser, work: Callable[[int, Attempt], None], tell: Callable[[str], None], stop: threading.Event
) -> None:
    """Take streams and `work` on each to its end until all are finished.

    A worker that is fenced leaves the stream to its rival. It leaves a stream that is damaged or that the stored dtype
    does not hold, too, and raises the first such error at the end, so that one bad stream does not stop every worker.
    """
    trouble: ExtractionError | None = None
    while (stream := chooser.wait_for_one(stop)) is not None:
        attempt = chooser.take(stream)
        if attempt is None:
            continue
        try:
            work(stream, attempt)
            chooser.close(stream)
        except Fenced as fenced:
            tell(f"left stream {stream} to another worker: {fenced}")
        except (DamagedData, DtypeOverflow) as error:
            tell(f"left stream {stream}: {error}")
            chooser.close(stream)
            trouble = trouble or error
    if trouble is not None:
        raise trouble
