"""The state, pace and time left of every stream of a run, from its output.

In: OUTPUT. Out: a `RunStatus`, as JSON; `status_table` shows it. Ages and rates are by the store's clock. Numbers come
from each stream's last commit, which sums up its chain; `verify` is the proof.

Cost: four requests for the run, a few for each stream that was begun (see `format/stream_state.py`), 32
at a time.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import median

from ..core.amounts import format_seconds
from ..core.count_of import count_of
from ..core.errors import TryAgain
from ..core.versions import DEVICE
from ..format.commit import worker_number
from ..format.not_finite import NotFinite, described
from ..format.run_config import read_existing_run
from ..format.stream_state import StreamState, read_stream_state
from ..storage import open_storage

THREADS = 32
WINDOW = 300.0  # seconds over which "now" is measured
STUCK_AFTER = 900.0
BATCHES_LATE, LEAST_LATE = 5, 60.0  # a commit that is late by so many batch times, and seconds, means a stuck stream
SLOW = 1 / 3  # of the median rate
NEEDS_A_PERSON = 3  # an exit code that no worker has


@dataclass(frozen=True)
class StreamStatus:
    """One stream. Rates are in tokens per second, times in seconds; None is unknown, or has no meaning in this state.

    `tokens` are those of the committed records, `rows` those that are stored; `not_finite` counts the NaN and infinite
    values of these, {hook point: {"nan": n, "inf": n}}.

    `needs_person`: whether it goes on only if somebody does something.

    `stages`: the share of the worker's loop that each stage took, and `upload` in proportion to the same time.

    `device` and `chips` are those of the last commit; `mfu` is the share of their peak that the worker reached.
    `work_seconds`: the time of the loop in committed batches, without starts and without what a kill lost.
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
    device: str
    chips: int | None
    mfu: float | None
    work_seconds: float
    not_finite: NotFinite
    needs_person: bool

    @property
    def chip_hours(self) -> float:
        """The hours of chips in committed batches; a host of unknown chips counts as one."""
        return self.work_seconds * (self.chips or 1) / 3600


@dataclass(frozen=True)
class RunStatus:
    """A run at the moment `time` of the store's clock. `price` is that of a chip for an hour, if given."""

    output: str
    time: float
    streams: tuple[StreamStatus, ...]
    is_size_known: bool
    price: float | None = None

    @property
    def finished(self) -> bool:
        """Whether every stream of the run is finished."""
        return self.is_size_known and all(stream.state == "finished" for stream in self.streams)

    @property
    def exit_code(self) -> int:
        """The exit code of `status`: 0 finished, 3 if a stream needs a person, else 75."""
        if any(stream.needs_person for stream in self.streams):
            return NEEDS_A_PERSON
        return 0 if self.finished else TryAgain.exit_code

    def total(self, name: str) -> int | float:
        """Return the sum of a number over all streams that have it."""
        return sum(getattr(stream, name) or 0 for stream in self.streams)

    @property
    def states(self) -> dict[str, int]:
        """The number of streams in each state."""
        return dict(Counter(stream.state for stream in self.streams))

    @property
    def seconds_left(self) -> float | None:
        """Until the last stream ends: at the pace of now, each stream by its own worker or all by all."""
        rate, tokens, records = self.total("rate_now"), self.total("tokens"), self.total("records")
        if self.finished or not rate or not records or not self.is_size_known:
            return 0.0 if self.finished else None
        together = (self.total("num_records") - records) * tokens / records / rate
        return max([together, *(stream.seconds_left or 0.0 for stream in self.streams if stream.state == "running")])

    @property
    def share(self) -> float | None:
        """The share of the records of all streams that are committed, None if their number is unknown."""
        size = self.total("num_records")
        return (self.total("records") / size if size else 1.0) if self.is_size_known else None

    @property
    def rate_per_chip(self) -> float | None:
        """Tokens per second of now for each chip that works."""
        at_work = [stream for stream in self.streams if stream.rate_now and stream.chips]
        chips = sum(stream.chips or 0 for stream in at_work)
        return sum(stream.rate_now or 0.0 for stream in at_work) / chips if chips else None

    @property
    def preemptions_per_hour(self) -> float | None:
        """Preemptions in an hour of one worker's work."""
        hours = self.total("work_seconds") / 3600
        return self.total("preemptions") / hours if hours else None

    @property
    def chip_hours_left(self) -> float | None:
        """The hours of chips that the rest takes, if it goes as what is committed; None if nothing is known."""
        done = self.share
        return self.total("chip_hours") * (1 - done) / done if done else None

    @property
    def causes(self) -> dict[str, tuple[int, ...]]:
        """{message: the streams with that message}, those of most streams first; of similar ones, the first message.

        Messages that differ in numbers alone are similar.
        """
        found: dict[str, tuple[str, list[int]]] = {}
        for stream in self.streams:
            if stream.message:
                found.setdefault(re.sub(r"\d[\d,.]*", "0", stream.message), (stream.message, []))[1].append(
                    stream.stream
                )
        return {text: tuple(numbers) for text, numbers in sorted(found.values(), key=lambda cause: -len(cause[1]))}

    def to_json(self) -> dict:
        """Return what `status --json` prints."""
        names = ("num_records", "records", "batches", "tokens", "rows", "bytes", "rate_now", "preemptions")
        found = {"output": self.output, "time": self.time, "finished": self.finished, "states": self.states}
        found |= {"need_person": [stream.stream for stream in self.streams if stream.needs_person]}
        found |= {"seconds_left": self.seconds_left} | {name: self.total(name) for name in names}
        names = ("share", "rate_per_chip", "preemptions_per_hour", "chip_hours_left", "price")
        found |= {name: getattr(self, name) for name in names} | {"chip_hours": self.total("chip_hours")}
        found |= {"causes": [{"message": text, "streams": numbers} for text, numbers in self.causes.items()]}
        return found | {"streams": [asdict(stream) for stream in self.streams]}


def read_status(output: str, stuck_after: float = STUCK_AFTER, price: float | None = None) -> RunStatus:
    """Return the status of every stream; `price` is that of a chip for an hour.

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
    return RunStatus(output, now, tuple(_with_slow(streams)), bool(sizes), price)


def _with_slow(streams: list[StreamStatus]) -> Iterator[StreamStatus]:
    """Yield the streams; those with less than a third of the median rate say so. At least three rates are needed."""
    rates = [stream.rate_now for stream in streams if stream.rate_now]
    middle = median(rates) if len(rates) >= 3 else 0.0
    for stream in streams:
        if stream.rate_now and stream.rate_now < middle * SLOW:
            note = f"slow on {stream.host}: {stream.rate_now:,.0f} tokens/s, the median is {middle:,.0f}"
            yield replace(stream, message="; ".join(filter(None, [stream.message, note])))
        else:
            yield stream


def _status(found: StreamState, num_records: int | None, now: float, stuck_after: float) -> StreamStatus:
    last = found.last
    age = max(now - found.commit_times[-1], 0.0) if found.commit_times else None
    state = found.state_at(now, _late_after(found, stuck_after))
    is_long_stuck = state == "stuck" and now - found.last_active > stuck_after
    message = _message(found, state, now)
    not_finite = last.totals.not_finite if last else {}
    notes = [message] * bool(message) + [f"not finite: {described(not_finite)}"] * bool(not_finite)
    records, tokens = (last.cursor_after.record, last.totals.tokens) if last else (0, 0)
    mean = _mean_rate(found)
    rate_now = _rate_now(found, now) if state == "running" else None
    rate, left = rate_now or mean, None
    device, _, mesh = (last.versions.get(DEVICE, "") if last else "").partition(", mesh ")
    chips = re.match(r"data=(\d{1,6}),model=(\d{1,6})", mesh)
    seconds = last.totals.seconds if last else {}
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
        stages=_stages(seconds),
        host=last.host if last else "",
        device=device,
        chips=int(chips[1]) * int(chips[2]) if chips else None,
        mfu=found.mfu,
        work_seconds=_loop_seconds(seconds),
        not_finite=not_finite,
        needs_person=state in ("failed", "crashing", "fenced") or is_long_stuck,
    )


def _late_after(found: StreamState, stuck_after: float) -> float:
    """Return after how many silent seconds a stream is stuck: a few of its batch times, while it commits batches.

    An attempt that has not committed yet loads and compiles, which may take long.
    """
    gaps = [later - earlier for earlier, later in pairwise(found.commit_times)]
    if len(gaps) < 2 or found.last_active > found.commit_times[-1]:
        return stuck_after
    return min(stuck_after, max(BATCHES_LATE * median(gaps), LEAST_LATE))


def _message(found: StreamState, state: str, now: float) -> str:
    if state == "crashing":
        return f"{count_of(found.died, 'attempt died', 'attempts died')} without a commit; see the logs of the last one"
    if state == "stuck":
        return f"nothing for {format_seconds(now - found.last_active)}"
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


def _loop_seconds(seconds: dict[str, float]) -> float:
    """Return the seconds of a worker's loop: of all stages but the upload, which runs beside them."""
    return sum(value for name, value in seconds.items() if name != "upload")


def _stages(seconds: dict[str, float]) -> dict[str, float]:
    loop = _loop_seconds(seconds)
    return {name: round(value / loop, 4) for name, value in seconds.items()} if loop else {}


def watch(read: Callable[[], RunStatus], every: float, show: Callable[[RunStatus], None]) -> RunStatus:
    """Read the status every some seconds until the run is finished or the user interrupts; `show` gets each one."""
    status = read()
    try:
        show(status)
        while not status.finished:
            time.sleep(every)
            status = read()
            show(status)
    except KeyboardInterrupt:
        pass
    return status
