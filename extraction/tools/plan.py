"""What a run will take, before anything is rented: does it fit, how fast, how long, at what price, limited by what.

In: the flags of a run and the name of a TPU slice. Out: a `Plan`. Guarantee: nothing is computed on a device; the step
is the one that a worker would compile, for these chips, from the configuration alone. With libtpu installed its memory
and arithmetic are the compiler's counts, with the attention kernel's own; without, they come from formulas, and the
plan says which.

What is an estimate: the time of a step is its arithmetic over `efficiency` times the chip's published peak, or its
memory traffic (by formula) over the published bandwidth, whichever is longer. Tokens of the whole manifest, and how
many of them `--positions` stores, are those of its first records, scaled; without a manifest all are taken for stored,
or one in K. Cost: one compilation, 5 to 20 seconds.
"""

import math
from dataclasses import asdict, dataclass, replace

from ..batching.packing import Cut
from ..batching.size_estimate import Sample, check_spans, take_sample
from ..batching.token_selection import Selection, Selector
from ..batching.tokenizer import RecordTokenizer
from ..models.config import ModelConfig
from ..models.cost import Counts, counts_by_formula, counts_of, stored_bytes
from ..models.devices import Hardware
from ..models.mesh import USABLE
from ..models.step import lower_step
from ..models.step_options import StepOptions
from ..models.tpu_slices import Slice, can_describe, describe, slice_named
from ..streams.stream import Manifest, load_manifest
from ..worker.flags import PlanFlags
from ..worker.resolve import resolve_model, resolve_step

FILL = 0.96  # share of slots that hold real tokens, as packing reaches it on web documents


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, times in seconds unless the name says otherwise; `seconds` are a step's, by what takes them."""

    tpu: str
    chips: int
    mesh: str
    batch_size: int
    hook_points: int
    fits: bool
    memory_bytes: int
    chip_memory_bytes: int
    counts: str
    seconds: dict[str, float]
    limited_by: str
    tokens_per_second: float
    bytes_per_million_tokens: int
    tokens: int | None = None
    stored_bytes: int | None = None
    workers: int | None = None
    hours: float | None = None
    price: float | None = None
    workers_for_deadline: int | None = None

    def to_json(self) -> dict:
        """Return the plan as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """One fact in a line."""
        gib, times = 1 << 30, ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in self.seconds.items())
        lines = [
            f"{self.tpu}: {_count(self.chips, 'chip')}, mesh {self.mesh}, batch size {self.batch_size}",
            f"memory: {self.memory_bytes / gib:.2f} of {self.chip_memory_bytes / gib:.0f} GiB on each chip: "
            + ("fits" if self.fits else "does not fit")
            + f" ({self.counts})",
            f"a step, estimated: {times}; limited by {self.limited_by}",
            f"rate, estimated: {self.tokens_per_second:,.0f} real tokens/s for each worker",
            f"stored: {self.bytes_per_million_tokens / 1e9:.2f} GB for a million tokens",
        ]
        if self.tokens is not None and self.stored_bytes is not None and self.workers is not None:
            lines.append(
                f"manifest, estimated: {self.tokens:,} tokens, {self.stored_bytes / 1e9:,.1f} GB, "
                f"{self.hours:.2f} hours with {_count(self.workers, 'worker')}"
            )
        if self.price is not None:
            lines.append(f"price, estimated: {self.price:,.2f}")
        if self.workers_for_deadline is not None:
            lines.append(f"for the deadline: {_count(self.workers_for_deadline, 'worker')}")
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def make_plan(flags: PlanFlags) -> Plan:
    """Return what a run with these flags takes. Raises InvalidRequest for a slice, model or flag that is wrong."""
    selection = Selection.parse(flags.positions, flags.drop_special)
    model, wanted = resolve_model(flags, weights=False), slice_named(flags.tpu)
    hardware = Hardware(flags.tpu, wanted.chips, wanted.chip.memory_bytes, "bfloat16")
    manifest = load_manifest(flags.streams) if flags.streams else None
    sample = _sample(flags, selection, manifest, RecordTokenizer(model.folder.path)) if manifest else None
    step = resolve_step(flags, model, selection, hardware)
    counts = count(model.config, step, wanted)
    share = sample.share if sample else selection.known_share
    tokens, stored = FILL * step.num_slots, share * stored_bytes(model.config, step)
    seconds = {
        "arithmetic": counts.flops / (flags.efficiency * wanted.chip.flops),
        "memory": counts.traffic_bytes / wanted.chip.bandwidth,
        "device to host": tokens * stored / (flags.to_host * 1e9),
        "upload": tokens * stored / (flags.upload * 1e9),
    }
    slowest = max(seconds, key=seconds.__getitem__)
    plan = Plan(
        tpu=flags.tpu, chips=wanted.chips, mesh=str(step.mesh), batch_size=step.batch_size,
        hook_points=len(step.hook_points), fits=counts.memory_bytes <= USABLE * wanted.chip.memory_bytes,
        memory_bytes=counts.memory_bytes, chip_memory_bytes=wanted.chip.memory_bytes, counts=counts.source,
        seconds=seconds, limited_by=slowest, tokens_per_second=tokens / seconds[slowest],
        bytes_per_million_tokens=round(stored * 1_000_000),
    )  # fmt: skip
    return _with_manifest(plan, flags, manifest, sample) if manifest and sample else plan


def _sample(flags: PlanFlags, selection: Selection, manifest: Manifest, tokenizer: RecordTokenizer) -> Sample:
    check_spans(selection, manifest, str(flags.streams))
    cut = Cut(flags.seq_len, "split", Selector(selection, tokenizer.special_ids))
    return take_sample(manifest, str(flags.streams), tokenizer, cut)


def _with_manifest(plan: Plan, flags: PlanFlags, manifest: Manifest, sample: Sample) -> Plan:
    tokens, workers = round(sample.tokens_per_record * manifest.num_records), manifest.num_streams
    worker_hours = tokens / plan.tokens_per_second / 3600
    return replace(
        plan, tokens=tokens, stored_bytes=tokens * plan.bytes_per_million_tokens // 1_000_000, workers=workers,
        hours=worker_hours / workers,
        price=None if flags.price is None else flags.price * plan.chips * worker_hours,
        workers_for_deadline=None if flags.deadline is None else max(1, math.ceil(worker_hours / flags.deadline)),
    )  # fmt: skip


def count(config: ModelConfig, step: StepOptions, wanted: Slice) -> Counts:
    """Return the cost of a step on one device."""
    if can_describe():
        return counts_of(lower_step(config, step, describe(wanted)).compile(), config, step)
    return counts_by_formula(config, step)
