"""Progress of making streams: a live bar on a terminal, a line every 30 seconds elsewhere.

In: items as they are done. Out: the same items, and lines on stderr. Guarantee: items are not read ahead. Cost: one
look at the clock for each item.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from .logs import say

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and count them on stderr as `what`."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as show

        yield from show(items, what, total, console=Console(stderr=True), transient=True)
        return
    said = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{what}: {number:,}" + (f" of {total:,}" if total else ""))
