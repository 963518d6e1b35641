"""Estimate a run before anything is rented: whether it fits, its rate, duration, price and limiting resource.

In: the flags of a run and the name of an accelerator. Out: a `Plan`. Guarantee: no accelerator is opened; the step is
the one that a worker would compile, for these chips, from the configuration alone. For a TPU slice, with libtpu
installed, its memory and arithmetic are the compiler's counts, with the attention kernel's own; else they come from
formulas, and the plan says which.

What is an estimate: the time of a step on its device is its arithmetic over `efficiency` times the chip's published
peak, or its memory traffic (by formula) over the published bandwidth, whichever is longer, and the exchange between
chips that share the weights, which is taken to overlap with nothing. Copies to the host and uploads overlap with steps.
Tokens of the whole manifest, and how many of them `--positions` stores, are those of its first records, scaled; without
a manifest all are taken for stored, or one in K. Cost: one compilation, 5 to 20 seconds.
"""

import math
from dataclasses import asdict, dataclass, replace

import jax

from ..batching.packing import Cut
from ..batching.record_sample import Sample, check_spans, count_first_records
from ..batching.token_selection import Selection, Selector
from ..batching.tokenizer import RecordTokenizer
from ..core.amounts import format_seconds
from ..core.count_of import count_of
from ..core.errors import InvalidRequest
from ..models.accelerators import (
    CPU,
    PRICES_OF,
    STORAGE_PRICE,
    STORAGE_PRICE_OF,
    Accelerator,
    Chip,
    accelerator_named,
    can_describe,
    describe,
)
from ..models.config import ModelConfig
from ..models.cost import Counts, counts_by_formula, counts_of, exchanged_bytes, stored_bytes
from ..models.devices import Hardware, lack_of_memory
from ..models.mesh import USABLE
from ..models.step import lower_step
from ..models.step_options import StepOptions
from ..streams.extensions import load_manifest
from ..streams.manifest import Manifest
from ..worker.flags import PlanFlags
from ..worker.resolve import ModelPlan, resolve_model, resolve_step

FILL = 0.96  # share of slots that hold real tokens, as packing reaches it on web documents
_STORED_FROM = ", as if --positions {} stored all of them (--streams tells the share)"
_GIB = 1 << 30


@dataclass(frozen=True)
class Prices:
    """Prices in `currency`: of a chip for an hour, None if unknown, and of a GiB for a month; and their sources."""

    currency: str
    chip_hour: float | None
    chip_hour_from: str
    gib_month: float
    gib_month_from: str

    @classmethod
    def of(cls, flags: PlanFlags, wanted: Accelerator) -> "Prices":
        """Return the prices that flags give, or those that are known. Raises InvalidRequest if currencies are mixed."""
        kind, known = ("spot", wanted.chip.spot) if flags.spot else ("on-demand", wanted.chip.on_demand)
        takes_known = flags.storage_price is None or (flags.price is None and known is not None)
        if flags.currency != "USD" and takes_known:
            raise InvalidRequest(
                f"--currency {flags.currency}: known prices are in USD; give --price and --storage-price"
            )
        chip_from = f"{kind}, {PRICES_OF}" if flags.price is None else f"{kind}, --price"
        gib_from = STORAGE_PRICE_OF if flags.storage_price is None else "--storage-price"
        gib = STORAGE_PRICE if flags.storage_price is None else flags.storage_price
        return cls(flags.currency, known if flags.price is None else flags.price, chip_from, gib, gib_from)


@dataclass(frozen=True)
class Whole:
    """The estimate for a whole manifest: `price` of the chips, `storage_price` for a month, `workers_for_deadline`.

    A worker extracts whole streams, so that the hours are those of the worker with the most of them.
    """

    streams: int
    tokens: int
    stored_bytes: int
    workers: int
    hours: float
    price: float | None
    storage_price: float
    workers_for_deadline: int | None


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, times in seconds unless the name says otherwise; `seconds` are a step's, by what takes them.

    `chip_memory_bytes` is None where a worker does not know it. Of the memory of a chip, `usable_share` may be used.
    """

    accelerator: str
    chips: int
    mesh: str
    batch_size: int
    hook_points: int
    fits: bool
    memory_bytes: int
    chip_memory_bytes: int | None
    usable_share: float
    counts: str
    seconds: dict[str, float]
    limited_by: str
    tokens_per_second: float
    rate_from: str
    bytes_per_token: float
    stored_from: str
    prices: Prices
    price_per_billion_tokens: float | None
    storage_price_per_million_tokens: float
    manifest: Whole | None = None

    def to_json(self) -> dict:
        """Return the plan as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the plan as text, one fact in a line."""
        times = ", ".join(f"{name} {value * 1e3:,.1f} ms" for name, value in self.seconds.items() if value)
        return "\n".join(
            [
                f"{self.accelerator}: {count_of(self.chips, 'chip')}, mesh {self.mesh}, batch size {self.batch_size}",
                f"memory: {self._memory()} ({self.counts})",
                f"a step, estimated: {times}; limited by {self.limited_by}",
                f"rate, estimated: {self.tokens_per_second:,.0f} real tokens/s for each worker, {self.rate_from}",
                *self._bills(),
                *(self._of_manifest(self.manifest) if self.manifest else ()),
            ]
        )

    def _memory(self) -> str:
        needed = f"{self.memory_bytes / _GIB:.2f}"
        if self.chip_memory_bytes is None:
            return f"{needed} GiB"
        usable = self.usable_share * self.chip_memory_bytes / _GIB
        return (
            f"{needed} of {usable:.2f} GiB that may be used on each chip ({self.usable_share:.0%} of "
            f"{self.chip_memory_bytes / _GIB:.0f}): {'fits' if self.fits else 'does not fit'}"
        )

    def _bills(self) -> list[str]:
        prices, stored = self.prices, self.bytes_per_token
        money = f"unknown for {self.accelerator}: give --price"
        if prices.chip_hour is not None and self.price_per_billion_tokens is not None:
            of_billion = self.price_per_billion_tokens
            money = (
                f"{_money(of_billion / 1000)} {prices.currency} for a million tokens, {_money(of_billion)} for a "
                f"billion, at {prices.chip_hour:g} for a chip and hour ({prices.chip_hour_from})"
            )
        return [
            f"stored: {stored:,.0f} bytes a token{self.stored_from}, {stored / 1000:,.2f} GB for a million tokens, "
            f"which costs {_money(self.storage_price_per_million_tokens)} {prices.currency} a month at "
            f"{prices.gib_month:g} for a GiB ({prices.gib_month_from})",
            f"price, estimated: {money}",
        ]

    def _of_manifest(self, whole: Whole) -> list[str]:
        price = "" if whole.price is None else f", {_money(whole.price)} {self.prices.currency}"
        lines = [
            f"manifest, estimated: {whole.tokens:,} tokens, {whole.stored_bytes / 1e9:,.1f} GB, "
            f"{format_seconds(max(1.0, 3600 * whole.hours))} with {count_of(whole.workers, 'worker')}{price}, "
            f"and {_money(whole.storage_price)} {self.prices.currency} a month for storage"
        ]
        if whole.workers_for_deadline is not None:
            more = f", and as many streams: these are {whole.streams}"
            needed = whole.workers_for_deadline
            lines.append(f"for the deadline: {count_of(needed, 'worker')}{more if needed > whole.streams else ''}")
        return lines


def _money(amount: float) -> str:
    """Return two decimals, or three digits of an amount below one."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.3g}"


def make_plan(flags: PlanFlags) -> Plan:
    """Return what a run with these flags takes. Raises InvalidRequest for a wrong flag, model or accelerator."""
    selection = Selection.parse(flags.positions, flags.drop_special)
    model, wanted = resolve_model(flags, weights=False), accelerator_named(flags.accelerator)
    prices, chip = Prices.of(flags, wanted), wanted.chip
    dtype = "float32" if flags.accelerator == CPU else "bfloat16"
    hardware = Hardware(flags.accelerator, wanted.chips, chip.memory_bytes, dtype, wanted.kind)
    manifest = load_manifest(flags.streams) if flags.streams else None
    sample = _sample(flags, selection, manifest, model) if manifest else None
    step = resolve_step(flags, model, selection, hardware)
    counts = count(model.config, step, wanted)
    share = sample.share if sample else selection.known_share
    stored = share * stored_bytes(model.config, step)
    seconds, tokens_per_second = _times(flags, wanted, counts, model.config, step, stored)
    usable = math.inf if chip.memory_bytes is None else USABLE * chip.memory_bytes
    fits = counts.compiles and counts.memory_bytes <= usable
    if prices.chip_hour is None:
        price = None
    else:
        price = prices.chip_hour * wanted.chips * 1e9 / tokens_per_second / 3600
    peak = f"its published peak in {step.compute_dtype}" if flags.peak is None else f"{flags.peak:g} TFLOP/s"
    if flags.accelerator == CPU and flags.peak is None:
        peak = f"{chip.flops / 1e9:,.0f} GFLOP/s, measured on this machine now"
    plan = Plan(
        accelerator=flags.accelerator, chips=wanted.chips, mesh=str(step.mesh), batch_size=step.batch_size,
        hook_points=len(step.hook_points), fits=fits, memory_bytes=counts.memory_bytes,
        chip_memory_bytes=chip.memory_bytes, usable_share=USABLE, counts=counts.source, seconds=seconds,
        limited_by=max(seconds, key=seconds.__getitem__), tokens_per_second=tokens_per_second,
        rate_from=f"if a chip reaches {_efficiency(flags, chip):.0%} of {peak}", bytes_per_token=stored, prices=prices,
        stored_from="" if sample or selection.kind in ("all", "every") else _STORED_FROM.format(flags.positions),
        price_per_billion_tokens=price, storage_price_per_million_tokens=prices.gib_month * stored * 1e6 / _GIB,
    )  # fmt: skip
    return replace(plan, manifest=_whole(plan, flags, manifest, sample)) if manifest and sample else plan


def _efficiency(flags: PlanFlags, chip: Chip) -> float:
    """Return the share of its peak that a chip reaches."""
    return chip.efficiency if flags.efficiency is None else flags.efficiency


def _times(
    flags: PlanFlags, wanted: Accelerator, counts: Counts, config: ModelConfig, step: StepOptions, stored: float
) -> tuple[dict[str, float], float]:
    """Return the seconds of a step by what takes them, and real tokens per second; a token stores `stored` bytes."""
    tokens, chip = FILL * step.num_slots, wanted.chip
    peak = chip.flops_in(step.compute_dtype) if flags.peak is None else flags.peak * 1e12
    to_host = chip.to_host if flags.to_host is None else flags.to_host * 1e9
    exchanged = exchanged_bytes(config, step)
    seconds = {
        "arithmetic": counts.flops / (_efficiency(flags, chip) * peak),
        "memory": counts.traffic_bytes / chip.bandwidth,
        "exchange": exchanged / chip.exchange_rate(step.mesh.model) if exchanged else 0.0,
        "device to host": tokens * stored / to_host,
        "upload": tokens * stored / (flags.upload * 1e9),
    }
    on_device = max(seconds["arithmetic"], seconds["memory"]) + seconds["exchange"]
    return seconds, tokens / max(on_device, seconds["device to host"], seconds["upload"])


def _sample(flags: PlanFlags, selection: Selection, manifest: Manifest, model: ModelPlan) -> Sample:
    if model.folder.path.is_file():
        raise InvalidRequest(f"--model {flags.model}: with --streams give the folder, which has the tokenizer too")
    check_spans(selection, manifest, str(flags.streams))
    tokenizer = RecordTokenizer(model.folder.path)
    cut = Cut(flags.seq_len, "split", Selector(selection, tokenizer.special_ids))
    return count_first_records(manifest, str(flags.streams), tokenizer, cut)


def _whole(plan: Plan, flags: PlanFlags, manifest: Manifest, sample: Sample) -> Whole:
    tokens = round(sample.tokens_per_record * manifest.num_records)
    stored, streams = round(tokens * plan.bytes_per_token), manifest.num_streams
    workers = streams if flags.workers is None else min(streams, flags.workers)
    worker_hours = tokens / plan.tokens_per_second / 3600
    billion = plan.price_per_billion_tokens
    return Whole(
        streams=streams, tokens=tokens, stored_bytes=stored, workers=workers,
        hours=math.ceil(streams / workers) * worker_hours / streams,
        price=None if billion is None else billion * tokens / 1e9,
        storage_price=plan.prices.gib_month * stored / _GIB,
        workers_for_deadline=None if flags.deadline is None else workers_within(flags.deadline, worker_hours, streams),
    )  # fmt: skip


def workers_within(deadline: float, worker_hours: float, streams: int) -> int:
    """Return how many workers end whole streams within the deadline, in hours.

    They are more than the streams if one of these takes longer: as many streams are needed.
    """
    if not worker_hours:
        return 1
    in_turn = int(deadline * streams / worker_hours)  # streams that a worker extracts
    return math.ceil(streams / in_turn) if in_turn else math.ceil(worker_hours / deadline)


def count(config: ModelConfig, step: StepOptions, wanted: Accelerator) -> Counts:
    """Return the cost of a step on one device."""
    if wanted.topology is None:
        return counts_by_formula(config, step, wanted.kind)
    if not can_describe():
        return counts_by_formula(config, step, wanted.kind, "by formula, libtpu is missing")
    lowered = lower_step(config, step, describe(wanted))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        lack = lack_of_memory(error)
        if lack is None:
            raise
        source = f"by formula; the compiler: {lack}"
        return replace(counts_by_formula(config, step, wanted.kind, source), compiles=False)
    return counts_of(compiled, config, step)
