"""Progress for people: a live bar on a terminal, a line every 30 seconds elsewhere.

In: items as they are done, or counts. Out: lines or a bar on stderr. Guarantee: items are not read ahead; a terminal
that is gone ends nothing. Cost: one look at the clock for each item.
"""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from .logs import say

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


class ProgressBar:
    """A bar on a terminal, nothing elsewhere; may be updated from several threads. Use as a context manager."""

    def __init__(self, title: str, total: int | None, done: int = 0, visible: bool = True):
        self._bar = None
        if visible and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def __bool__(self) -> bool:
        return self._bar is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def expect(self, count: int) -> None:
        """Add so many items to the total."""
        if self._bar:
            self._bar.update(self._task, total=(self._bar.tasks[0].total or 0) + count)

    def advance(self, count: int = 1) -> None:
        """Count so many items as done."""
        if self._bar:
            self._bar.update(self._task, advance=count)

    def update(self, done: int, note: str) -> None:
        """Show that so many items are done, with a note behind the bar."""
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._bar.stop()


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and count them on stderr as `what`."""
    said = time.monotonic()
    with ProgressBar(what, total) as bar:
        for number, item in enumerate(items, 1):
            yield item
            bar.advance()
            if not bar and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say(f"{what}: {number:,}" + (f" of {total:,}" if total else ""))
