"""The loop: packed batches in, activations through the model, batch files to the uploader.

In: an iterator of `PackedBatch`es and the compiled step. Out: one batch file for each batch, handed to `submit` in
order. Guarantee: what is submitted depends on the batches alone. At most `STEPS_IN_FLIGHT` steps are dispatched beyond
the one whose results are collected, so the host packs, collects and stores while the device computes; device memory for
results is bounded by one more.

Cost: beside the model, one copy of each stored value, from the device's result to its place in the batch file.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from ..batching.packing import PackedBatch
from ..core.errors import DtypeOverflow
from ..core.logs import say
from ..core.threads import look_ahead
from ..format.batch_file import batch_arrays, ends_of_records
from ..format.dtypes import LOSS_HOOK, has_scale, stored_dtype
from ..format.not_finite import NotFinite, counted
from ..format.run_config import FORMAT
from ..format.safetensors import SafetensorsFile, allocate
from ..format.statistics import (
    COUNTS,
    MAX,
    MAX_AT,
    SCALE,
    SUMS,
    Facts,
    norm_counts,
    unscaled,
)

STEPS_IN_FLIGHT = 2
_WAITS_FOR = {
    "pack": "records that are read, tokenised and packed in the background",
    "dispatch": "the step handed to the device",
    "step": "the device's results, on their way to the host",
    "collect": "results put in record order into the batch file",
    "submit": "room in the queue of uploads",
}
STAGES = tuple(_WAITS_FOR)
Submit = Callable[[PackedBatch, memoryview | None, dict[str, float], dict[str, float], NotFinite], None]
OnStep = Callable[[PackedBatch, float], None]
_BLOCK = 1 << 18  # values that are looked at together


@dataclass
class StageTimes:
    """Seconds that the loop spent in each stage, and how many slots of its steps held tokens, stored or not."""

    pack: float = 0.0
    dispatch: float = 0.0
    step: float = 0.0
    collect: float = 0.0
    submit: float = 0.0
    num_tokens: int = 0
    num_slots: int = 0
    _since: float = field(default_factory=lambda: time.perf_counter())
    _taken: dict[str, float] = field(default_factory=dict)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap to `stage`."""
        now = time.perf_counter()
        setattr(self, stage, getattr(self, stage) + now - self._since)
        self._since = now

    def take(self) -> dict[str, float]:
        """Return the seconds of each stage since the last call: those of one batch and of the batches in flight."""
        now = {name: getattr(self, name) for name in STAGES}
        since, self._taken = self._taken, now
        return {name: value - since.get(name, 0.0) for name, value in now.items()}

    def table(self) -> list[str]:
        """Return a line of totals, then a line for each stage: its seconds, share, and what the loop waited for."""
        stages = {name: getattr(self, name) for name in STAGES}
        slowest, seconds = max(stages, key=lambda name: stages[name]), sum(stages.values())
        padding = 1 - self.num_tokens / max(self.num_slots, 1)
        rate = self.num_tokens / max(seconds, 1e-9)
        lines = [f"{self.num_tokens:,} tokens in {seconds:.1f} s, {rate:,.0f} tokens/s, padding {padding:.1%}"]
        for name, value in stages.items():
            share, mark = value / max(seconds, 1e-9), "  <- limits" if name == slowest else ""
            lines.append(f"  {name:8} {value:9.2f} s {share:6.1%}  {_WAITS_FOR[name]}{mark}")
        return lines


@dataclass(frozen=True)
class BatchLayout:
    """The facts that all batch files of a stream share: the stream, {hook point: width}, and the stored dtype."""

    stream: int
    widths: dict[str, int]
    dtype: np.dtype


class BatchInFlight:
    """A batch whose steps are running, and the object that their results are put into.

    A step of which nothing is stored is not run.
    """

    def __init__(self, batch: PackedBatch, number: int, layout: BatchLayout):
        self.batch, self.number = batch, number
        self.file = _allocate(batch, number, layout)
        self._hooks = {name: self._hook(name, layout.dtype) for name in layout.widths}
        self.step_size = batch.tokens[0].size
        self.steps = np.unique(batch.slots // self.step_size)
        self._num_put = 0

    def _hook(self, name: str, dtype: np.dtype) -> "_HookInFlight":
        ends = None
        if name == LOSS_HOOK:
            ends = ends_of_records(self.file.arrays, self.batch.cursor_before, self.batch.cursor_after)
        return _HookInFlight(name, has_scale(stored_dtype(name, dtype)), ends)

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows of the batch this step computes, and their slots in the step."""
        tokens = np.flatnonzero(self.batch.slots // self.step_size == step)
        return tokens, (self.batch.slots[tokens] - step * self.step_size).astype(np.int32)

    def put(self, tokens: np.ndarray, parts: Iterable, facts: dict) -> None:
        """Put in the results of one step: what each device computed for its part of these rows, and the statistics."""
        for name, places, columns, values in parts:
            self.file.arrays[name][:, columns][tokens[places]] = values
        for name, found in facts.items():
            self._hooks[name].add(self.file.arrays, tokens, found)
        self._num_put += 1

    @property
    def share(self) -> float:
        """The share of the steps that are put in."""
        return self._num_put / len(self.steps)

    def finish(self) -> tuple[memoryview | None, dict[str, float]]:
        """Return the batch file, None without rows, and its reconstruction errors, when all steps are put in."""
        if not self.batch.num_rows:
            return None, {}
        for hook in self._hooks.values():
            hook.finish(self.file.arrays)
        errors = {name: hook.reconstruction_error for name, hook in self._hooks.items() if hook.is_scaled}
        return self.file.data, errors

    @property
    def not_finite(self) -> NotFinite:
        """The counts of NaN and infinite values of the steps that were put in."""
        return {name: hook.not_finite for name, hook in self._hooks.items() if any(hook.not_finite.values())}

    def where_first(self, hook_point: str) -> str:
        """Return the record and position of the first value that is not finite, for people."""
        row, arrays = self._hooks[hook_point].first_odd, self.file.arrays
        record = int(np.searchsorted(arrays["record_offsets"], row, side="right")) - 1
        return f"record {self.batch.record_ids[record]!r} at position {arrays['positions'][row]}"


@dataclass
class _HookInFlight:
    """The sums of a batch's steps at one hook point that are not in the arrays."""

    name: str
    is_scaled: bool
    without_value: np.ndarray | None = None  # rows that are NaN by definition, bool [N]
    largest: float = -1.0
    row: int = 0
    squared_error: float = 0.0
    power: float = 0.0
    not_finite: dict[str, int] = field(default_factory=lambda: {"nan": 0, "inf": 0})
    first_odd: int = -1

    def add(self, arrays: dict[str, np.ndarray], tokens: np.ndarray, found: Facts) -> None:
        """Add one step: `found` of the rows at the places `tokens`, in increasing order."""
        with np.errstate(invalid="ignore"):  # infinities of both signs
            for suffix, part in zip(SUMS, (found.sum, found.sum_of_squares), strict=True):
                arrays[self.name + suffix] += part
        if self.is_scaled:
            arrays[self.name + SCALE][tokens] = found.scales
            self.squared_error += found.squared_error
            self.power += found.power
        arrays[self.name + COUNTS] += norm_counts(found.norms)
        largest, odd = found.largest.copy(), np.flatnonzero(~np.isfinite(found.norms))
        height = max(1, _BLOCK // len(found.sum))
        for first in range(0, len(odd), height):  # the device stops its search at a NaN
            rows = odd[first : first + height]
            largest[rows] = self._look(arrays, tokens[rows])
        first = int(np.argmax(largest))
        row, most = int(tokens[first]), float(largest[first])
        if (most, -row) > (self.largest, -self.row):
            self.largest, self.row = most, row

    def _look(self, arrays: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Return the largest |x| of each of these rows, NaN aside; count their values that are not finite."""
        values = self._values(arrays, rows)
        sizes = _sizes(values).max(axis=1)
        if self.without_value is not None:
            rows, values = rows[~self.without_value[rows]], values[~self.without_value[rows]]
        if self.first_odd < 0 and not np.isfinite(values).all():
            self.first_odd = int(rows[np.argmin(np.isfinite(values).all(axis=1))])
        self.not_finite["nan"] += int(np.isnan(values).sum())
        self.not_finite["inf"] += int(np.isinf(values).sum())
        return sizes

    def finish(self, arrays: dict[str, np.ndarray]) -> None:
        """Put in the maximum and its place, of several the first."""
        sizes = _sizes(self._values(arrays, np.array([self.row])))[0]
        column = int(np.argmax(sizes))
        arrays[self.name + MAX][0] = sizes[column]
        arrays[self.name + MAX_AT][:] = self.row, column

    def _values(self, arrays: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Return these rows as a reader sees them, float32 [n, width]."""
        scale = arrays[self.name + SCALE][rows] if self.is_scaled else None
        return unscaled(arrays[self.name][rows], scale).astype(np.float32)

    @property
    def reconstruction_error(self) -> float:
        """The root of the squared error over the power."""
        return math.sqrt(self.squared_error / self.power) if self.power else 0.0


def _sizes(values: np.ndarray) -> np.ndarray:
    """Return |x|, 0 for NaN."""
    return np.nan_to_num(np.abs(values), copy=False, nan=0.0, posinf=np.inf)


def _allocate(batch: PackedBatch, number: int, layout: BatchLayout) -> SafetensorsFile:
    """Return the batch file with everything but activations, scales and statistics filled in."""
    has_means = batch.mean_over is not None
    arrays = batch_arrays(layout.widths, layout.dtype, batch.num_rows, batch.num_records, has_means)
    file = allocate(arrays, _metadata(batch, number, layout))
    file.arrays["tokens"][:] = batch.tokens.reshape(-1)[batch.slots]
    file.arrays["positions"][:] = batch.record_positions
    file.arrays["record_index"][:] = batch.record_index
    file.arrays["record_offsets"][:] = batch.record_offsets
    file.arrays["record_lengths"][:] = batch.record_lengths
    if batch.mean_over is not None:
        file.arrays["mean_over"][:] = batch.mean_over
    return file


def _metadata(batch: PackedBatch, number: int, layout: BatchLayout) -> dict[str, str]:
    metadata = {
        "format": str(FORMAT),
        "record_ids": json.dumps(list(batch.record_ids), ensure_ascii=False),
        "stream": str(layout.stream),
        "batch": str(number),
    }
    if any(meta is not None for meta in batch.record_meta):
        metadata["record_meta"] = f"[{','.join(meta or 'null' for meta in batch.record_meta)}]"
    return metadata


def run_pipeline(
    batches: Iterable[PackedBatch],
    layout: BatchLayout,
    forward: Callable,
    first_batch: int,
    submit: Submit,
    on_step: OnStep | None = None,
) -> StageTimes:
    """Run the batches, numbered from `first_batch`; return when the last one is submitted.

    `on_step` gets, after each step, its batch and the share of the batch's steps that are done.

    Raises DtypeOverflow if the first step of a stream has values that float16 does not hold, before it submits any.
    """
    times, watch = StageTimes(), _Watch(layout, first_batch == 0)
    for flight, results in look_ahead(_dispatch(batches, layout, forward, first_batch, times), STEPS_IN_FLIGHT):
        if results is not None:
            tokens, output = results
            parts, facts = output.parts(), output.facts()
            times.lap("step")
            watch.check(facts)
            flight.put(tokens, parts, facts)
            watch.tell(flight, facts)
            if on_step:
                on_step(flight.batch, flight.share)
            del results, output, parts  # the next step is dispatched before they are assigned again
            times.lap("collect")
        else:
            data, errors = flight.finish()
            times.lap("collect")
            submit(flight.batch, data, times.take(), errors, flight.not_finite)
            times.lap("submit")
    return times


class _Watch:
    """Warns of values that are not finite while an attempt runs, once for each hook point."""

    def __init__(self, layout: BatchLayout, begins_stream: bool):
        self._layout, self._unchecked, self._told = layout, begins_stream, set()

    def check(self, facts: dict[str, Facts]) -> None:
        """Raise DtypeOverflow if float16 overflows in the first step of a stream."""
        unchecked, self._unchecked = self._unchecked, False
        name = max(facts, key=lambda name: facts[name].overflow)
        if unchecked and facts[name].overflow:
            raise DtypeOverflow(
                f"--store-dtype {self._layout.dtype}: {name} has values of up to {facts[name].overflow:.4g} in the "
                f"first step, {_largest_of(self._layout)}; nothing of stream {self._layout.stream} is "
                f"stored: use bfloat16 or float32, with a new --output"
            )

    def tell(self, flight: BatchInFlight, facts: dict[str, Facts]) -> None:
        """Warn of the hook points whose first such values are in the step that was put in last."""
        for name, counts in flight.not_finite.items():
            if name in self._told:
                continue
            self._told.add(name)
            why = "as the model computed them"
            if facts[name].overflow:
                computed = f"values of up to {facts[name].overflow:.4g} were computed"
                why = f"{computed}, {_largest_of(self._layout)}: bfloat16 and float32 hold more"
            where = f"batch {flight.number}, first in {flight.where_first(name)}"
            say(f"not finite: {name} has {counted(counts)} in {where}; {why}", "WARNING", self._layout.stream)


def _largest_of(layout: BatchLayout) -> str:
    return f"and {layout.dtype} ends at {float(ml_dtypes.finfo(layout.dtype).max):.5g}"


def _dispatch(batches: Iterable[PackedBatch], layout: BatchLayout, forward: Callable, number: int, times: StageTimes):
    """Yield for each batch (flight, (tokens, output)) of each dispatched step, then (flight, None)."""
    for batch in batches:
        flight = BatchInFlight(batch, number, layout)
        times.lap("pack")
        for step in flight.steps:
            tokens, slots = flight.places(step)
            times.num_tokens += int(np.count_nonzero(batch.segment_ids[step]))
            times.num_slots += batch.tokens[step].size
            grids = batch.tokens[step], batch.segment_ids[step], batch.positions[step]
            pooled = None if batch.pooled is None else batch.pooled[step]
            output = forward(*grids, slots, pooled, batch.targets[step])
            times.lap("dispatch")
            yield flight, (tokens, output)
        yield flight, None
        number += 1
