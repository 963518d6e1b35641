"""The state, pace and time left of every stream of a run, from its output.

In: OUTPUT. Out: a `RunStatus`, as JSON or as a table. Ages and rates are by the store's clock. Numbers come from each
stream's last commit, which sums up its chain; `verify` is the proof.

Cost: three requests for the run, a few for each stream that was begun (see `format/stream_state.py`), 32
at a time.
"""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import compress
from typing import TYPE_CHECKING

from ..core.errors import TryAgain
from ..core.text import printable
from ..format.commit import worker_number
from ..format.not_finite import NotFinite, described
from ..format.run_config import read_existing_run
from ..format.stream_state import STATES, StreamState, read_stream_state
from ..storage import open_storage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

THREADS = 32
WINDOW = 300.0  # seconds over which "now" is measured
STUCK_AFTER = 900.0
_MILLENNIUM = 1000 * 365.25 * 86400


@dataclass(frozen=True)
class StreamStatus:
    """One stream. Rates are in tokens per second, times in seconds; None is unknown, or has no meaning in this state.

    `tokens` are those of the committed records, `rows` those that are stored; `not_finite` counts the NaN and infinite
    values of these, {hook point: {"nan": n, "inf": n}}.

    `stages`: the share of the worker's loop that each stage took, and `upload` in proportion to the same time.
    """

    stream: int
    state: str
    message: str
    num_records: int | None
    records: int
    batches: int
    tokens: int
    rows: int
    bytes: int
    rate_now: float | None
    rate_mean: float | None
    seconds_left: float | None
    age: float | None
    preemptions: int
    stages: dict[str, float]
    host: str
    not_finite: NotFinite


@dataclass(frozen=True)
class RunStatus:
    """A run at the moment `time` of the store's clock."""

    output: str
    time: float
    streams: tuple[StreamStatus, ...]
    is_size_known: bool

    @property
    def finished(self) -> bool:
        """Whether every stream of the run is finished."""
        return self.is_size_known and all(stream.state == "finished" for stream in self.streams)

    @property
    def exit_code(self) -> int:
        """The exit code of `status`."""
        return 0 if self.finished else TryAgain.exit_code

    def total(self, name: str) -> int | float:
        """Return the sum of a number over all streams that have it."""
        return sum(getattr(stream, name) or 0 for stream in self.streams)

    @property
    def states(self) -> dict[str, int]:
        """How many streams are in each state."""
        return dict(Counter(stream.state for stream in self.streams))

    @property
    def seconds_left(self) -> float | None:
        """Until the last stream ends: at the pace of now, each stream by its own worker or all by all."""
        rate, tokens, records = self.total("rate_now"), self.total("tokens"), self.total("records")
        if self.finished or not rate or not records or not self.is_size_known:
            return 0.0 if self.finished else None
        together = (self.total("num_records") - records) * tokens / records / rate
        return max([together, *(stream.seconds_left or 0.0 for stream in self.streams if stream.state == "running")])

    def to_json(self) -> dict:
        """Return what `status --json` prints."""
        names = ("num_records", "records", "batches", "tokens", "rows", "bytes", "rate_now", "preemptions")
        found = {"output": self.output, "time": self.time, "finished": self.finished, "states": self.states}
        found |= {"seconds_left": self.seconds_left} | {name: self.total(name) for name in names}
        return found | {"streams": [asdict(stream) for stream in self.streams]}


def read_status(output: str, stuck_after: float = STUCK_AFTER) -> RunStatus:
    """Return the status of every stream.

    Raises InvalidRequest where there is no run, DamagedData for `run.json`, and what storage raises.
    """
    storage = open_storage(output)
    run, now = read_existing_run(storage), storage.now()
    begun = [number for folder in storage.folders() if (number := worker_number(folder)) is not None]
    sizes = dict(enumerate(run.records_per_stream))
    with ThreadPoolExecutor(THREADS) as pool:
        states = list(pool.map(lambda number: read_stream_state(storage, number), begun))
    found = {state.stream: state for state in states}
    streams = [
        _status(found.get(number, StreamState(number)), sizes.get(number), now, stuck_after)
        for number in sorted(sizes.keys() | found.keys())
    ]
    return RunStatus(output, now, tuple(streams), bool(sizes))


def _status(found: StreamState, num_records: int | None, now: float, stuck_after: float) -> StreamStatus:
    last = found.last
    age = max(now - found.commit_times[-1], 0.0) if found.commit_times else None
    state = found.name(now, stuck_after)
    message = _message(found, state, now)
    not_finite = last.totals.not_finite if last else {}
    notes = [message] * bool(message) + [f"not finite: {described(not_finite)}"] * bool(not_finite)
    records, tokens = (last.cursor_after.record, last.totals.tokens) if last else (0, 0)
    mean = _mean_rate(found)
    rate_now = _rate_now(found, now) if state == "running" else None
    rate, left = rate_now or mean, None
    if state == "running" and num_records is not None and records and tokens and rate:
        left = (num_records - records) * (tokens / records) / rate
    return StreamStatus(
        stream=found.stream,
        state=state,
        message="; ".join(notes),
        num_records=num_records,
        records=records,
        batches=found.num_batches,
        tokens=tokens,
        rows=last.totals.rows if last else 0,
        bytes=last.totals.bytes if last else 0,
        rate_now=rate_now,
        rate_mean=mean,
        seconds_left=left,
        age=age,
        preemptions=max(last.totals.attempts - 1, 0) if last else 0,
        stages=_stages(last.totals.seconds) if last else {},
        host=last.host if last else "",
        not_finite=not_finite,
    )


def _message(found: StreamState, state: str, now: float) -> str:
    if state == "stuck":
        return f"nothing for {format_seconds(now - found.active)}"
    return found.damage or (found.ending.message if found.ending and not found.finished else "")


def _mean_rate(found: StreamState) -> float | None:
    """Return tokens per second since the first commit, pauses included; the time before it is unknown."""
    if found.last is None or found.begun is None or found.commit_times[-1] <= found.begun:
        return None
    share = found.last.batch / found.num_batches
    return found.last.totals.tokens * share / (found.commit_times[-1] - found.begun)


def _rate_now(found: StreamState, now: float) -> float | None:
    """Return tokens per second over the last minutes, or the last commits, taking each batch for an average one."""
    times = found.commit_times
    recent = [time for time in times if time > now - WINDOW]
    since, count = (now - WINDOW, len(recent)) if len(recent) < len(times) else (times[0], len(times) - 1)
    until = max(now, times[-1])  # a bucket tells the time in whole seconds
    if count < 1 or until <= since or found.last is None:
        return None
    return found.last.totals.tokens / found.num_batches * count / (until - since)


def _stages(seconds: dict[str, float]) -> dict[str, float]:
    loop = sum(value for name, value in seconds.items() if name != "upload")
    return {name: round(value / loop, 4) for name, value in seconds.items()} if loop else {}


def format_seconds(seconds: float | None) -> str:
    """Return text such as `3 h 20 min` or `45 s`, none for None, `over 1,000 years` for what nobody waits for."""
    if seconds is None:
        return ""
    if not seconds < _MILLENNIUM:
        return "over 1,000 years"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_bytes(count: float) -> str:
    """Return text such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


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


def watch(output: str, stuck_after: float, every: float, show: Callable[[RunStatus], None]) -> RunStatus:
    """Read the status every some seconds until the run is finished or the user interrupts; `show` gets each one."""
    status = read_status(output, stuck_after)
    try:
        show(status)
        while not status.finished:
            time.sleep(every)
            status = read_status(output, stuck_after)
            show(status)
    except KeyboardInterrupt:
        pass
    return status


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
