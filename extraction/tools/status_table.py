"""The status of a run as a table for people, those streams first that need one.

In: a `RunStatus`. Out: a rich table, once or again and again. Cost: none beside reading the status.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import compress
from typing import TYPE_CHECKING

from ..core.amounts import consecutive, format_bytes, format_seconds
from ..core.printable import printable
from ..format.stream_state import STATES
from .status import RunStatus, StreamStatus, watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


WIDTH = 280  # of a table that goes elsewhere than to a terminal
COLUMNS = (
    "stream",
    "state",
    "records",
    "done",
    "tokens",
    "stored",
    "tok/s now",
    "mean",
    "left",
    "last commit",
    "preempted",
    "host",
    "chips",
    "tok/s chip",
    "MFU",
    "time goes to",
    "message",
)
_TEXTS = ("state", "host", "chips", "time goes to", "message")
_LEAST_NEEDED = (
    "message",
    "time goes to",
    "host",
    "chips",
    "MFU",
    "tok/s chip",
    "preempted",
    "stored",
    "mean",
    "last commit",
    "records",
    "left",
    "tokens",
)
_ROOM_FOR_TEXT = 24  # characters, in which a message still reads well


def table(status: RunStatus, most_rows: int, width: int = WIDTH) -> "Table":
    """Return the status as a rich table, streams with problems first, at most `most_rows` streams.

    Where `width` is too small for all columns, the least needed are left out, so that no number is cut. Messages that
    several streams share follow below, all of them where their column is left out.
    """
    from rich.console import Console

    measure, left_out = Console(width=10_000).measure, 0
    while left_out < len(_LEAST_NEEDED):
        numbers = measure(_table(status, most_rows, _LEAST_NEEDED[: max(left_out, 1)])).maximum
        if numbers + (0 if left_out else _ROOM_FOR_TEXT) <= width:
            break
        left_out += 1
    return _table(status, most_rows, _LEAST_NEEDED[:left_out])


def _table(status: RunStatus, most_rows: int, left_out: tuple[str, ...]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(f"{status.states[state]:,} {state}" for state in STATES if state in status.states)
    moment = datetime.fromtimestamp(status.time, UTC)
    shown = Table(
        title=Text(printable(f"{status.output} at {moment:%Y-%m-%d %H:%M:%S} UTC: {counts}")),
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    kept = [name not in left_out for name in COLUMNS]
    for name in compress(COLUMNS, kept):
        shown.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=name != "message")
    ordered = sorted(status.streams, key=lambda stream: (STATES.index(stream.state), stream.stream))
    for stream in ordered[:most_rows]:
        shown.add_row(*compress(_row(stream), kept))
    if len(ordered) > most_rows:
        shown.add_row("...", f"and {len(ordered) - most_rows:,} more")
    shown.add_section()
    records, size = status.total("records"), status.total("num_records")
    total = (
        "all",
        "finished" if status.finished else "",
        f"{records:,}",
        _share(records, size if status.is_size_known else None),
        f"{status.total('tokens'):,}",
        format_bytes(status.total("bytes")),
        f"{status.total('rate_now'):,.0f}",
        "",
        format_seconds(status.seconds_left),
        "",
        f"{status.total('preemptions'):,}",
        "",
        "",
        _number(status.rate_per_chip),
        "",
        "",
        "",
    )
    shown.add_row(*compress(total, kept), style="bold")
    shared = [
        f"{_ranges(numbers)}: {printable(text)}" + (" (and similar)" if len(numbers) > 1 else "")
        for text, numbers in status.causes.items()
        if left_out or len(numbers) > 1
    ]
    shown.caption_justify = "left"
    shown.caption = Text("\n".join([*shared[:most_rows], *_of_run(status)]))
    return shown


def _of_run(status: RunStatus) -> list[str]:
    """Return what is known of the whole run: preemptions, hours of chips, and what they cost."""
    used, left = status.total("chip_hours"), status.chip_hours_left
    if not used:
        return []
    hours = f"{used:,.2f} chip-hours so far" + ("" if left is None else f", {left:,.2f} to come")
    if status.price is not None:
        hours += f"; cost {used * status.price:,.2f} so far"
        hours += "" if left is None else f", {left * status.price:,.2f} to come"
    often = f"{status.preemptions_per_hour or 0:.2f} preemptions in an hour of work"
    return [f"{often}; {hours} (of committed work, without starts)"]


def _ranges(numbers: Sequence[int]) -> str:
    """Return text such as `2, 5-9` of ascending numbers."""
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in consecutive(numbers))


def _number(value: float | None) -> str:
    return f"{value:,.0f}" if value else ""


_BAR = 8  # characters
_STYLES = {
    "failed": "red",
    "crashing": "red",
    "fenced": "red",
    "stuck": "yellow",
    "stopped": "yellow",
    "running": "green",
    "finished": "dim",
}


def _row(stream: StreamStatus) -> tuple["str | Text", ...]:
    from rich.text import Text

    style = _STYLES.get(stream.state, "")
    in_the_loop = [(name, share) for name, share in stream.stages.items() if name != "upload"]
    largest = sorted(in_the_loop, key=lambda item: -item[1])[:2]
    chips = f"{stream.chips or '?'} x {stream.device}" if stream.device else ""
    return (
        str(stream.stream),
        f"[{style}]{stream.state}[/{style}]" if style else stream.state,
        f"{stream.records:,}",
        _share(stream.records, stream.num_records),
        f"{stream.tokens:,}",
        format_bytes(stream.bytes),
        _number(stream.rate_now),
        _number(stream.rate_mean),
        format_seconds(stream.seconds_left),
        f"{format_seconds(stream.age)} ago" if stream.age is not None else "",
        str(stream.preemptions),
        Text(printable(stream.host)),
        Text(printable(chips)),
        _number(stream.rate_now / stream.chips if stream.rate_now and stream.chips else None),
        "" if stream.mfu is None else f"{stream.mfu:.1%}",
        ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.005),
        Text(printable(stream.message)),
    )


def _share(part: float, whole: float | None) -> str:
    """Return text such as `████░░░░  52.3%`."""
    if whole is None:
        return ""
    share = part / whole if whole else 1.0
    full = int(share * _BAR)
    return f"[green]{'█' * full}[/green][dim]{'░' * (_BAR - full)}[/dim] {share:6.1%}"


def watch_table(read: Callable[[], RunStatus], every: float, most_rows: int, console: "Console") -> RunStatus:
    """Show the status as a table: on a terminal one that changes, elsewhere one after the other."""
    from rich.live import Live

    if not console.is_terminal:
        return watch(read, every, lambda status: console.print(table(status, most_rows, console.width)))
    with Live(console=console, auto_refresh=False) as live:
        return watch(
            read,
            every,
            lambda status: live.update(table(status, most_rows, console.width), refresh=True),
        )
