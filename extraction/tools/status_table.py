"""The status of a run as a table for people, those streams first that need one.

In: a `RunStatus`. Out: a rich table, once or again and again. Cost: none beside reading the status.
"""

from datetime import UTC, datetime
from itertools import compress
from typing import TYPE_CHECKING

from ..core.printable import printable
from ..format.stream_state import STATES
from .status import RunStatus, StreamStatus, format_bytes, format_seconds, watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


WIDTH = 200  # of a table that goes elsewhere than to a terminal
_COLUMNS = (
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
    "time goes to",
)
_LEAST_NEEDED = ("time goes to", "preempted", "stored", "mean", "last commit", "records", "left", "tokens")
_ROOM_FOR_TEXT = 24  # characters, in which "time goes to" still reads well


def table(status: RunStatus, most_rows: int, width: int = WIDTH) -> "Table":
    """Return the status as a rich table, streams with problems first, at most `most_rows` streams.

    Where `width` is too small for all columns, the least needed are left out, so that no number is cut; messages then
    follow below.
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
    kept = [name not in left_out for name in _COLUMNS]
    for name in compress(_COLUMNS, kept):
        is_text = name in ("state", "time goes to")
        shown.add_column(name, justify="left" if is_text else "right", no_wrap=name != "time goes to")
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
    )
    shown.add_row(*compress(total, kept), style="bold")
    if left_out:
        shown.caption_justify = "left"
        notes = [f"{stream.stream}: {printable(stream.message)}" for stream in ordered[:most_rows] if stream.message]
        shown.caption = Text("\n".join(notes)) if notes else None
    return shown


_BAR = 8  # characters
_STYLES = {
    "failed": "red",
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
    why = stream.message or ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.005)
    return (
        str(stream.stream),
        f"[{style}]{stream.state}[/{style}]" if style else stream.state,
        f"{stream.records:,}",
        _share(stream.records, stream.num_records),
        f"{stream.tokens:,}",
        format_bytes(stream.bytes),
        f"{stream.rate_now:,.0f}" if stream.rate_now else "",
        f"{stream.rate_mean:,.0f}" if stream.rate_mean else "",
        format_seconds(stream.seconds_left),
        f"{format_seconds(stream.age)} ago" if stream.age is not None else "",
        str(stream.preemptions),
        Text(printable(why)),
    )


def _share(part: float, whole: float | None) -> str:
    """Return text such as `████░░░░  52.3%`."""
    if whole is None:
        return ""
    share = part / whole if whole else 1.0
    full = int(share * _BAR)
    return f"[green]{'█' * full}[/green][dim]{'░' * (_BAR - full)}[/dim] {share:6.1%}"


def watch_table(output: str, stuck_after: float, every: float, most_rows: int, console: "Console") -> RunStatus:
    """Show the status as a table: on a terminal one that changes, elsewhere one after the other."""
    from rich.live import Live

    if not console.is_terminal:
        return watch(output, stuck_after, every, lambda status: console.print(table(status, most_rows, console.width)))
    with Live(console=console, auto_refresh=False) as live:
        return watch(
            output,
            stuck_after,
            every,
            lambda status: live.update(table(status, most_rows, console.width), refresh=True),
        )
