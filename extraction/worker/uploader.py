"""The background writer: finished batches in, commits out, in order, on a thread of its own.

In: batches with their data from the pipeline, and what else belongs into the commits. Out: commits through the chain,
in the order of submission.
Guarantee: at most `max_bytes` of data wait (one batch may always wait, however large); beyond that `submit` blocks, so
compute waits for the bucket and the bucket never waits for compute while there is data. The first error ends the
writer; it reaches the caller, with its traceback, at the next `submit` or at `close`, and nothing after the failed batch
is written.

Host memory for results, however slow the bucket: `max_bytes` or one data object, whichever is larger, that waits or is
being stored; two data objects that the pipeline fills (STEPS_IN_FLIGHT reaches into the next one, not further); and the
request in hand, two copies of an object of up to 8 MiB, or 32 MiB of a larger one.
"""

import threading
from collections import deque
from collections.abc import Callable

from ..batching.packing import PackedBatch

CommitFunction = Callable[..., object]


class BackgroundWriter:
    """Calls `commit` for each submitted batch. Use as a context manager: leaving it waits until all is committed."""

    def __init__(self, commit: CommitFunction, max_bytes: int, on_commit: Callable[[object], None]):
        self._commit, self._max_bytes, self._on_commit = commit, max_bytes, on_commit
        self._waiting: deque[tuple] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, batch: PackedBatch, data: memoryview | None, *facts: dict[str, float]) -> None:
        """Queue a batch, to be committed with these facts; blocks while the queue is full. Raises the error that ended
        the writer.
        """
        size = 0 if data is None else len(data)
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._waiting or self._waiting_bytes + size <= self._max_bytes
            )
            self._raise()
            self._waiting.append((batch, data, *facts))
            self._waiting_bytes += size
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until everything submitted is committed. Raises the error that ended the writer."""
        self._drain()
        self._raise()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._drain()  # what came before an error of the caller is good, and is kept
        if kind is None:
            self._raise()

    def _drain(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._on_commit(self._commit(*item))
                with self._changed:
                    # Only now: data counts as waiting until it is stored.
                    self._waiting.popleft()
                    self._waiting_bytes -= 0 if item[1] is None else len(item[1])
                    self._changed.notify_all()
        except BaseException as error:  # handed to the caller, whatever it is
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> tuple | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting[0] if self._waiting else None
