"""The uploader: finished batches in, commits out, in order, on a thread of its own.

In: batches with their batch files from the loop, and the facts of their commits. Out: commits through the chain, in the
order of submission. Guarantee: at most `max_bytes` of batch files wait (one batch may always wait, however large); a
full queue blocks `submit`. The first error ends the uploader; the next `submit`, or leaving the `with` block, raises it
with its traceback, and nothing after the failed batch is written.

Cost: host memory, however slow the bucket: `max_bytes` or one batch file, whichever is larger, that waits or is being
stored; two batch files that the loop fills (STEPS_IN_FLIGHT reaches into the next one, not further); and the request in
flight, two copies of a batch file of up to 8 MiB, or 32 MiB of a larger one.
"""

import threading
from collections import deque
from collections.abc import Callable

from ..batching.packing import PackedBatch
from ..format.commit import Commit
from ..format.not_finite import NotFinite

CommitFunction = Callable[..., Commit]


class Uploader:
    """Calls `commit` for each submitted batch. Use as a context manager: leaving it waits until all is committed."""

    def __init__(self, commit: CommitFunction, max_bytes: int, on_commit: Callable[[Commit], None]):
        self._commit, self._max_bytes, self._on_commit = commit, max_bytes, on_commit
        self._waiting: deque[tuple] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, batch: PackedBatch, data: memoryview | None, *facts: dict[str, float] | NotFinite) -> None:
        """Queue a batch, to be committed with these facts; block while the queue is full.

        Raises the error that ended the uploader.
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

    def __enter__(self) -> "Uploader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._drain()  # batches before an error of the caller are good
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
        except BaseException as error:  # raised again in the thread of the caller
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> tuple | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting[0] if self._waiting else None
