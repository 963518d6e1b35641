"""Show the progress of a running worker: a bar on a terminal, a line every 30 s elsewhere, `progress.json`.

In: each step, each commit. Out: text on stderr, and at most one overwrite of `progress.json` in 10 s. Guarantee:
resuming trusts nothing of it; where overwriting is refused it is not written. Cost: some microseconds for each step.
"""

import json
import time

from ..batching.packing import PackedBatch
from ..core.amounts import format_seconds
from ..core.count_of import count_of
from ..core.errors import ExtractionError, PermissionDenied
from ..core.logs import say
from ..core.progress_bar import SECONDS_BETWEEN_LINES, ProgressBar
from ..format.commit import Commit, commit_name, worker_folder
from ..storage import Storage

FILE_EVERY = 10.0


class ProgressWriter:
    """Follows one worker through a stream of `total` records, of which `done` are committed.

    `peak_rate`: the tokens per second at the peak of the chips, None if unknown.
    """

    def __init__(
        self, storage: Storage, stream: int, total: int, done: int, visible: bool, peak_rate: float | None = None
    ):
        self._storage, self._stream, self._total, self._done = storage, stream, total, done
        self._tokens = self._computed = 0
        self._begin = time.monotonic()
        self._last_line = self._begin - SECONDS_BETWEEN_LINES
        self._last_file = self._begin - FILE_EVERY
        self._writes_file = True
        self._begun: float | None = None
        self._peak_rate = peak_rate
        self._bar = ProgressBar(f"worker {stream}", total, done, visible)
        self._lines = visible and not self._bar

    def on_step(self, batch: PackedBatch, share: float) -> None:
        """Show that this share of the batch is computed. The records in it are taken to be equally long."""
        tokens, first, last = batch.num_tokens, batch.cursor_before.record, batch.cursor_after.record
        records, now = first + share * (last - first), time.monotonic()
        rate = (self._computed + share * tokens) / max(now - self._begin, 1e-9)
        self._computed += tokens if share == 1 else 0
        self._bar.update(int(records), f"{rate:,.0f} tokens/s")
        if self._lines and now - self._last_line >= SECONDS_BETWEEN_LINES and records > self._done:
            self._last_line = now
            left = format_seconds((self._total - records) * (now - self._begin) / (records - self._done))
            of_all = f"{int(records):,} of {count_of(self._total, 'record')}"
            say(f"{of_all} computed, {rate:,.0f} tokens/s, {left} left", worker=self._stream)

    def on_commit(self, commit: Commit) -> None:
        """Note one more commit."""
        self._tokens += commit.num_tokens
        now = time.monotonic()
        rate = self._tokens / max(now - self._begin, 1e-9)
        if self._writes_file and (now - self._last_file >= FILE_EVERY or commit.end_of_stream):
            self._last_file = now
            self._write_file(commit, rate)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _write_file(self, commit: Commit, rate: float) -> None:
        name = f"{worker_folder(self._stream)}/progress.json"
        try:
            if self._begun is None:
                self._begun = self._storage.stat(commit_name(self._stream, 0)).updated
            content = {
                "batch": commit.batch,
                "begun": self._begun,
                "records": commit.cursor_after.record,
                "num_records": self._total,
                "tokens_per_second": round(rate, 1),
                "mfu": self._peak_rate and round(rate / self._peak_rate, 4),
                "host": commit.host,
                "finished": commit.end_of_stream,
            }
            self._storage.replace(name, (json.dumps(content) + "\n").encode())
        except PermissionDenied as error:
            self._writes_file = False
            say(f"progress.json is not written: {error}", "WARNING")
        except ExtractionError:
            pass  # storage is busy: the next one, 10 s later, replaces it
