"""The cost of a step: memory, arithmetic, memory traffic, stored bytes.

In: a model's configuration and `StepOptions`. Out: numbers by formula, or the compiler's of a compiled step. A
multiplication and an addition are two operations. Guarantee: no device is used. Cost: shapes are traced, not values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ..core.errors import InvalidRequest
from ..format.dtypes import STORE_DTYPES, dtype_named, has_scale, stored_dtype
from .attention import attend_blocks, form_for, scores_at_once
from .attention_rule import rule_of
from .capture_plan import CapturePlan
from .config import LayerKind, Mamba, ModelConfig
from .devices import DeviceKind, Hardware, pinned_bytes
from .mesh import USABLE, Demand, MeshShape, choose_mesh
from .splash_blocks import multiplied_pairs
from .state_scan import CHUNK, chunk_flops
from .step import Model, weight_shapes
from .step_options import StepOptions
from .weights import leaves_of

_TOKENS_ON_A_DEVICE, _TOKENS_ON_A_CPU = 32768, 4096  # more in one step gain little, and take memory
_SETS = 3  # of results on the host: those of two steps in flight, and of the one that is collected
_ENOUGH_TOKENS = 2048  # of devices that hold the weights once: from here on the weights' traffic is a small part


@dataclass(frozen=True)
class Counts:
    """A step on one device: operations, bytes moved in its memory, bytes needed; `source` of the first and last.

    `compiles` is False if the compiler found too little memory.
    """

    flops: float
    traffic_bytes: float
    memory_bytes: int
    source: str
    compiles: bool = True


def stored_bytes(config: ModelConfig, options: StepOptions) -> int:
    """Return the stored bytes of one token, with the scales of its rows."""
    run_dtype, total = dtype_named(options.store_dtype), 0
    for name in options.hook_points:
        dtype = stored_dtype(name, run_dtype)
        total += config.hook_width(name) * dtype.itemsize + (4 if has_scale(dtype) else 0)
    return total


def demand_of(config: ModelConfig, options: StepOptions, device: DeviceKind) -> Demand:
    """Estimate the memory that a step needs on devices of this kind.

    It counts the weights and, for each slot: captured values in the scan and gathered, the results of two steps on
    their way to the host, and the widest tensors of one block in float32.
    """
    weights = sum(leaf.size * leaf.dtype.itemsize for _, leaf in weight_shapes(config, options))
    each = sum(map(config.hook_width, options.hook_points))
    each *= 2 * jnp.dtype(options.capture_dtype).itemsize + 2 * STORE_DTYPES[options.store_dtype]
    kinds = dict.fromkeys(config.layers)
    if config.per_layer:  # of all layers, with the sums that they are made of in float32
        each += 8 * config.per_layer.width * len(running_layers(config, options))
    if options.pool:  # running sums, and what they are made of
        each += 3 * 4 * max(map(config.hook_width, options.hook_points))
    working = max(_widest(config, kind, options, device) for kind in kinds)
    return Demand(options.batch_size, weights, options.seq_len * each + working + max(map(_state_bytes, kinds)))


def _widest(config: ModelConfig, kind: LayerKind, options: StepOptions, device: DeviceKind) -> int:
    """Return the bytes of one row in the tensors of a block that are in memory at once, scores or those of the mlp."""
    mlp = 3 * kind.inner_width
    if kind.experts:  # each expert of a token has a copy of its own, on the way in and out
        mlp += kind.experts.per_token * 2 * config.width
    # Of a recurrence q, k and v before and after the convolution, the gate, and what is read in two layouts.
    mixer = 2 * (_key_elements(kind) + 3 * kind.heads_width) if kind.recurrent else 2 * kind.heads_width
    inner = max(options.seq_len * mlp, _scores(config, kind, options, device))
    return 4 * (options.seq_len * (6 * config.width + mixer) + inner)


def _scores(config: ModelConfig, kind: LayerKind, options: StepOptions, device: DeviceKind) -> int:
    """Return the scores of one row that are in memory at once: none where attention is a kernel."""
    if kind.recurrent or "attention" not in kind.parts:
        return 0
    length, rule = options.seq_len, rule_of(config, kind, options.seq_len)
    q: Any = jax.ShapeDtypeStruct((1, length, kind.num_heads, kind.head_width), options.compute_dtype)
    if options.attention != "plain" and form_for(device, q, rule, config.sinks, kind.value_width) is not attend_blocks:
        return 0
    return kind.num_heads * scores_at_once(length, rule.window, device.platform)


def _key_elements(kind: LayerKind) -> int:
    """Return the elements of one token in q and k of a recurrence."""
    return 2 * kind.num_kv_heads * kind.required_recurrence.key_width


def _state_bytes(kind: LayerKind) -> int:
    """Return the bytes of one row that do not depend on its length: states, and the scores of a chunk."""
    if kind.recurrent is None:
        return 0
    return 4 * kind.num_heads * (3 * kind.recurrent.key_width * kind.head_width + 8 * CHUNK**2)


def choose_rows(config: ModelConfig, options: StepOptions, hardware: Hardware, mesh: MeshShape | None) -> int:
    """Return the rows of a step for `--batch-size auto`: for each device a power of two that fits its memory.

    A step has at most 32,768 tokens for each device, or 4,096 if the device's memory is unknown, as on a CPU. Fewer
    rows are chosen if the weights are then shared by fewer devices, as long as these have 2,048 tokens: devices that
    share weights exchange sums in each layer, which costs more than smaller steps do. On a given mesh, each group of
    devices has a power of two. Of a GPU, the results of three steps fit into the host memory that XLA pins.
    """
    tokens = _TOKENS_ON_A_CPU if hardware.memory_bytes is None else _TOKENS_ON_A_DEVICE
    unit, sharing = (mesh.data, mesh.model) if mesh else (hardware.num_devices, 1)
    most, demand = (
        max(0, int(math.log2(tokens * sharing / options.seq_len))),
        demand_of(config, options, hardware.device),
    )
    fitting: list[tuple[int, int]] = []  # devices that share the weights, and rows
    pinned = pinned_bytes(hardware.device)
    for rows in (unit * 2**power for power in range(most, -1, -1)):
        if pinned and _SETS * rows * options.seq_len * stored_bytes(config, options) > USABLE * pinned:
            continue
        found = _fitting_mesh(config, replace(demand, rows=rows), hardware, mesh)
        if found and (not fitting or rows // found.data * options.seq_len >= _ENOUGH_TOKENS):
            fitting.append((found.model, rows))
    return min(fitting, key=lambda found: (found[0], -found[1]))[1] if fitting else unit


def _fitting_mesh(config: ModelConfig, demand: Demand, hardware: Hardware, mesh: MeshShape | None) -> MeshShape | None:
    """Return the given mesh, or the one that is chosen; None if the step does not fit."""
    if mesh:
        usable = math.inf if hardware.memory_bytes is None else USABLE * hardware.memory_bytes
        return mesh if demand.bytes_on(mesh) <= usable else None
    try:
        return choose_mesh(config, demand, hardware.num_devices, hardware.memory_bytes)
    except InvalidRequest:
        return None


def counts_by_formula(
    config: ModelConfig, options: StepOptions, device: DeviceKind, source: str = "by formula"
) -> Counts:
    """Return the counts of a step by formula, for accelerators whose compiler is not at hand."""
    memory_bytes = demand_of(config, options, device).bytes_on(options.mesh)
    return Counts(ideal_flops(config, options), _traffic(config, options), memory_bytes, source)


def counts_of(compiled: jax.stages.Compiled, config: ModelConfig, options: StepOptions) -> Counts:
    """Return the compiler's counts of a step; it counts a loop's body once and no arithmetic of kernels."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if cost is None or memory is None:
        raise RuntimeError("the compiler of this platform does not count the operations and memory of a step")
    flops = loop_repeats(config, options) * cost["flops"]
    without_kernel = config.alibi or options.attention == "plain"
    flops += _mixing_flops(config, options, _uncounted_chunks if without_kernel else _uncounted)
    return Counts(flops, _traffic(config, options), memory.peak_memory_in_bytes, "counted by the compiler")


def loop_repeats(config: ModelConfig, options: StepOptions) -> float:
    """Return how often the loops over layers run on average, weighted by the products of their bodies."""
    parts = _kernels(config, options)
    return sum(part.products for part in parts) / sum(part.products / part.layers for part in parts) if parts else 1.0


def running_layers(config: ModelConfig, options: StepOptions) -> tuple[LayerKind, ...]:
    """Return the layers that run."""
    return config.layers[: CapturePlan.of(options.hook_points, config).num_layers]


def ideal_flops(config: ModelConfig, options: StepOptions) -> float:
    """Return the operations of one step on one device, for rows of one document.

    Two for each weight and token, four for each element of a head and pair of a query and a key that it sees, and six
    for each element of a DeltaNet's state and token: it answers a key and a query, and is corrected. Mamba-2's answers
    no key: four.
    """
    tokens, devices = options.batch_size * options.seq_len, options.mesh.data * options.mesh.model
    products = 2.0 * tokens * sum(part.products for part in _kernels(config, options))
    return products / devices + _mixing_flops(config, options, _needed)


class _Kernels(NamedTuple):
    """The products of one token with a kernel: their number, and the layers of its part, 1 outside of blocks."""

    products: float
    layers: int


def _kernels(config: ModelConfig, options: StepOptions) -> list[_Kernels]:
    """Return the products with each kernel that a token is multiplied by."""
    found = []
    for part in Model.of(config, options).parts:
        layers = range(1) if part.layers is None else part.layers
        experts = None if part.layers is None else config.layers[layers[0]].experts
        for path, leaf in leaves_of(nnx.to_pure_dict(nnx.split(nnx.eval_shape(part.make))[1])):
            if path[-1] == "kernel":
                share = experts.per_token / experts.count if experts and "experts" in path else 1
                found.append(_Kernels(leaf.size * share * len(layers), len(layers)))
    return found


def visible_pairs(length: int, window: int | None) -> int:
    """Return the pairs of a query and a key that it sees, for one head of a row of one document."""
    reach = min(length, window or length)
    return reach * (reach + 1) // 2 + (length - reach) * reach


def _needed(kind: LayerKind, length: int) -> float:
    """Return the operations of one row of one document that attention, or the state of a recurrence, needs."""
    if "attention" not in kind.parts:
        return 0.0
    if kind.recurrent:
        each = 4.0 if isinstance(kind.recurrent, Mamba) else 6.0
        return each * length * kind.recurrent.key_width * kind.heads_width
    return 2.0 * visible_pairs(length, kind.window) * (kind.heads_width + kind.mixed_width)


def _uncounted(kind: LayerKind, length: int) -> float:
    """Return the operations of one row that the compiler does not count: of a kernel, and of all chunks but one."""
    if "attention" not in kind.parts or kind.recurrent:
        return _uncounted_chunks(kind, length)
    window = kind.window if kind.window is not None and kind.window < length else None
    return 2.0 * multiplied_pairs(length, window) * (kind.heads_width + kind.mixed_width)


def _uncounted_chunks(kind: LayerKind, length: int) -> float:
    return (-(-length // CHUNK) - 1) * chunk_flops(kind) if kind.recurrent else 0.0


def _mixing_flops(config: ModelConfig, options: StepOptions, of_row: Callable[[LayerKind, int], float]) -> float:
    """Return the operations on one device that mix tokens, given those of one row in a kind of layer."""
    rows = sum(of_row(kind, options.seq_len) for kind in running_layers(config, options))
    return options.batch_size * rows / (options.mesh.data * options.mesh.model)


def _traffic(config: ModelConfig, options: StepOptions) -> float:
    """Return the bytes moved in the memory of one device.

    Each weight is read once; each tensor of a block is written and read once, captured ones three times.
    """
    element, devices = jnp.dtype(options.compute_dtype).itemsize, options.mesh.data * options.mesh.model
    weights = sum(leaf.size * element for path, leaf in weight_shapes(config, options) if path[0] == "blocks")
    elements = 0.0
    for kind in running_layers(config, options):
        elements += 4 * config.width + 2 * kind.inner_width + _mixer_elements(kind)
    tokens = options.batch_size * options.seq_len
    return (
        weights / options.mesh.model + tokens * (2 * element * elements + 6 * stored_bytes(config, options)) / devices
    )


def exchanged_bytes(config: ModelConfig, options: StepOptions) -> float:
    """Return the bytes that a device sends in a step to those with which it shares the weights.

    Each block adds up x of all of them after attention and after the mlp, or once if these read the same x. Such a sum
    sends each element twice, but for the device's own part; the gathering of the embedding's columns sends it once.
    """
    data, model = options.mesh.data, options.mesh.model
    sums = (1 if config.parallel else 2) * len(running_layers(config, options))
    x = options.batch_size // data * options.seq_len * config.width * jnp.dtype(options.compute_dtype).itemsize
    return (2 * sums + 1) * x * (model - 1) / model


def _mixer_elements(kind: LayerKind) -> float:
    """Return the elements of one token in the tensors of attention; of a recurrence with the state of each chunk."""
    if "attention" not in kind.parts:
        return 0.0
    if kind.recurrent is None:
        return kind.heads_width + kind.kv_width + kind.values_width + kind.mixed_width
    return _key_elements(kind) + 4 * kind.heads_width + 2 * kind.recurrent.key_width * kind.heads_width / CHUNK
