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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import jax
import jax.numpy as jnp

from ..format.run_config import LARGEST_CODE, STORE_DTYPES, resolve_hook_points
from ..core.errors import InvalidRequest
from ..models.step import ForwardOptions, StepShape, demand_of, lower_step, weight_shapes
from ..streams.manifest import Manifest, load_manifest
from ..models.config import ModelConfig
from ..models.config_file import read_model_config
from ..models.location import locate_model
from ..models.sharding import USABLE, MeshShape, choose_mesh, misfit
from ..models.slices import Slice, can_describe, describe, slice_named
from ..models.tiling import multiplied_pairs
from ..batching.packing import Cut
from ..batching.token_selection import Selection, Selector
from ..batching.size_estimate import Sample, check_spans, take_sample
from ..batching.tokenizer import RecordTokenizer

FILL = 0.96  # share of slots that hold real tokens, as packing reaches it on web documents
_TOKENS_ON_A_DEVICE, _TOKENS_ON_A_CPU = 32768, 4096  # more in one step gain little, and take memory


@dataclass(frozen=True)
class PlanOptions:
    """The flags of `plan`. `price` per chip and hour, `deadline` in hours, rates in GB/s of one host."""

    model: str
    revision: str | None
    streams: str | None
    layers: str | None
    hooks: str
    hook_points: str | None
    positions: str
    drop_special: bool
    seq_len: int
    batch_size: int | None
    compute_dtype: str
    store_dtype: str
    mesh: str | None
    tpu: str
    efficiency: float
    to_host: float
    upload: float
    price: float | None
    deadline: float | None


@dataclass(frozen=True)
class Counts:
    """Of a step on one device: operations, bytes moved in its memory, bytes needed; `source` of the first and last."""

    flops: float
    traffic_bytes: float
    memory_bytes: int
    source: str


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
        return asdict(self)

    def to_text(self) -> str:
        """One fact in a line."""
        gib, times = 1 << 30, ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in self.seconds.items())
        lines = [
            f"{self.tpu}: {_count(self.chips, 'chip')}, mesh {self.mesh}, batch size {self.batch_size}",
            f"memory: {self.memory_bytes / gib:.2f} of {self.chip_memory_bytes / gib:.0f} GiB on each chip: "
            + ("fits" if self.fits else "does not fit") + f" ({self.counts})",
            f"a step, estimated: {times}; limited by {self.limited_by}",
            f"rate, estimated: {self.tokens_per_second:,.0f} real tokens/s for each worker",
            f"stored: {self.bytes_per_million_tokens / 1e9:.2f} GB for a million tokens",
        ]
        if self.tokens is not None:
            lines.append(f"manifest, estimated: {self.tokens:,} tokens, {self.stored_bytes / 1e9:,.1f} GB, "
                         f"{self.hours:.2f} hours with {_count(self.workers, 'worker')}")
        if self.price is not None:
            lines.append(f"price, estimated: {self.price:,.2f}")
        if self.workers_for_deadline is not None:
            lines.append(f"for the deadline: {_count(self.workers_for_deadline, 'worker')}")
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def make_plan(options: PlanOptions) -> Plan:
    """Raises InvalidRequest for a slice, model or flag that cannot be."""
    selection = Selection.parse(options.positions, options.drop_special)
    folder = locate_model(options.model, options.revision, weights=False)
    config, wanted = read_model_config(folder.path), slice_named(options.tpu)
    hook_points = resolve_hook_points(
        options.layers, options.hooks, options.hook_points, config.num_layers, config.absent_hooks
    )
    forward = ForwardOptions(
        hook_points, StepShape(options.batch_size or 0, options.seq_len), options.compute_dtype, options.store_dtype,
        mesh=MeshShape.parse(options.mesh) if options.mesh else None, pool=selection.pools,
    )
    manifest = load_manifest(options.streams) if options.streams else None
    sample = _sample(options, selection, manifest, RecordTokenizer(folder.path)) if manifest else None
    share = sample.share if sample else selection.known_share
    forward = _sized(config, forward, wanted)
    counts = count(config, forward, wanted)
    tokens, stored = FILL * forward.shape.rows * forward.shape.seq_len, share * stored_bytes(config, forward)
    seconds = {
        "arithmetic": counts.flops / (options.efficiency * wanted.chip.flops),
        "memory": counts.traffic_bytes / wanted.chip.bandwidth,
        "device to host": tokens * stored / (options.to_host * 1e9),
        "upload": tokens * stored / (options.upload * 1e9),
    }
    slowest = max(seconds, key=seconds.get)
    plan = Plan(
        tpu=options.tpu, chips=wanted.chips, mesh=str(forward.mesh), batch_size=forward.shape.rows,
        hook_points=len(hook_points), fits=counts.memory_bytes <= USABLE * wanted.chip.memory_bytes,
        memory_bytes=counts.memory_bytes, chip_memory_bytes=wanted.chip.memory_bytes, counts=counts.source,
        seconds=seconds, limited_by=slowest, tokens_per_second=tokens / seconds[slowest],
        bytes_per_million_tokens=round(stored * 1_000_000),
    )
    return _with_manifest(plan, options, manifest, sample) if sample else plan


def _sample(options: PlanOptions, selection: Selection, manifest: Manifest, tokenizer: RecordTokenizer) -> Sample:
    check_spans(selection, manifest, options.streams)
    cut = Cut(options.seq_len, "split", Selector(selection, tokenizer.special_ids))
    return take_sample(manifest, options.streams, tokenizer, cut)


def _with_manifest(plan: Plan, options: PlanOptions, manifest: Manifest, sample: Sample) -> Plan:
    tokens, workers = round(sample.tokens_per_record * manifest.num_records), manifest.num_streams
    worker_hours = tokens / plan.tokens_per_second / 3600
    return replace(
        plan, tokens=tokens, stored_bytes=tokens * plan.bytes_per_million_tokens // 1_000_000, workers=workers,
        hours=worker_hours / workers,
        price=None if options.price is None else options.price * plan.chips * worker_hours,
        workers_for_deadline=options.deadline and max(1, math.ceil(worker_hours / options.deadline)),
    )


def stored_bytes(config: ModelConfig, options: ForwardOptions) -> int:
    """For one token, with the scales of its rows."""
    scale = 4 if options.store_dtype in LARGEST_CODE else 0
    values = sum(map(config.hook_width, options.hook_points)) * STORE_DTYPES[options.store_dtype]
    return values + scale * len(options.hook_points)


def _sized(config: ModelConfig, options: ForwardOptions, wanted: Slice) -> ForwardOptions:
    """With rows and mesh chosen where they are open, and checked where they are given."""
    if options.shape.rows == 0:
        rows = choose_rows(config, options, wanted.chips, wanted.chip.memory_bytes)
        options = replace(options, shape=replace(options.shape, rows=rows))
    if options.mesh is not None:
        problem = misfit(options.mesh, config, options.shape.rows, wanted.chips)
        if problem:
            raise InvalidRequest(f"--mesh {options.mesh}: {problem}")
        return options
    mesh = choose_mesh(config, demand_of(config, options), wanted.chips, wanted.chip.memory_bytes)
    return replace(options, mesh=mesh)


def choose_rows(config: ModelConfig, options: ForwardOptions, num_devices: int, device_bytes: int | None) -> int:
    """Rows of a step for `--batch-size auto`: for each device a power of two that fits its memory, and no more than
    32768 tokens, or 4096 where the device does not say what memory it has, as a CPU."""
    tokens = _TOKENS_ON_A_CPU if device_bytes is None else _TOKENS_ON_A_DEVICE
    rows = num_devices * 2 ** max(0, int(math.log2(tokens / options.shape.seq_len)))
    while rows > num_devices:
        try:
            demand = demand_of(config, replace(options, shape=replace(options.shape, rows=rows)))
            choose_mesh(config, demand, num_devices, device_bytes)
            return rows
        except InvalidRequest:
            rows //= 2
    return rows


def count(config: ModelConfig, options: ForwardOptions, wanted: Slice) -> Counts:
    """What a step takes on one device."""
    if can_describe():
        return counts_of(lower_step(config, options, describe(wanted)).compile(), config, options)
    memory_bytes = demand_of(config, options).bytes_on(options.mesh)
    source = "by formula, libtpu is missing"
    return Counts(ideal_flops(config, options), _traffic(config, options), memory_bytes, source)


def counts_of(compiled: jax.stages.Compiled, config: ModelConfig, options: ForwardOptions) -> Counts:
    """The compiler's account of a step. It counts a loop's body once, and the arithmetic of kernels not at all."""
    layers = max(1, num_layers(config, options))
    flops = layers * compiled.cost_analysis()["flops"] + _attention_flops(config, options, multiplied_pairs)
    memory_bytes = compiled.memory_analysis().peak_memory_in_bytes
    return Counts(flops, _traffic(config, options), memory_bytes, "counted by the compiler")


def num_layers(config: ModelConfig, options: ForwardOptions) -> int:
    """Layers that run."""
    return next((leaf.shape[0] for path, leaf in weight_shapes(config, options) if path[0] == "blocks"), 0)


def ideal_flops(config: ModelConfig, options: ForwardOptions) -> float:
    """Operations of one step on one device: two for each weight and token, and four for each element of a head and pair
    of a query and a key that it sees, in rows of one document."""
    tokens = options.shape.rows * options.shape.seq_len
    products = 0.0
    for path, leaf in weight_shapes(config, options):
        if path[0] == "blocks" and path[-1] == "kernel":
            share = config.experts.per_token / config.experts.count if "experts" in path else 1
            products += 2 * tokens * leaf.size * share
    devices = options.mesh.data * options.mesh.model
    return products / devices + _attention_flops(config, options, visible_pairs)


def visible_pairs(length: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees, for one head of a row of one document."""
    reach = min(length, window or length)
    return reach * (reach + 1) // 2 + (length - reach) * reach


def _attention_flops(config: ModelConfig, options: ForwardOptions, pairs: Callable[[int, int | None], int]) -> float:
    """Of all layers on one device: two products over as many pairs of a query and a key as `pairs` says."""
    rows, length, layers = options.shape.rows, options.shape.seq_len, num_layers(config, options)
    windowed = config.windowed[:layers] or (False,) * layers
    near = config.window if config.window is not None and config.window < length else None
    seen = sum(pairs(length, near if is_windowed else None) for is_windowed in windowed)
    devices = options.mesh.data * options.mesh.model
    return 4.0 * rows * seen * config.num_heads * config.head_width / devices


def _traffic(config: ModelConfig, options: ForwardOptions) -> float:
    """Bytes moved in the memory of one device: each weight once, each tensor of a block written and read once, the
    captured ones three times."""
    element, devices = jnp.dtype(options.compute_dtype).itemsize, options.mesh.data * options.mesh.model
    weights = sum(leaf.size * element for path, leaf in weight_shapes(config, options) if path[0] == "blocks")
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_width
    inner = config.mlp_width * (config.experts.per_token if config.experts else 1)
    moved = 2 * element * num_layers(config, options) * (4 * config.width + heads + 2 * inner)
    tokens = options.shape.rows * options.shape.seq_len
    return weights / options.mesh.model + tokens * (moved + 6 * stored_bytes(config, options)) / devices
