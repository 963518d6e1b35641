"""The cost of a step: memory, arithmetic, memory traffic, stored bytes.

In: a model's configuration and `StepOptions`. Out: numbers by formula, or the compiler's of a compiled step. A
multiplication and an addition are two operations. Guarantee: no device is used. Cost: shapes are traced, not values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ..core.errors import InvalidRequest
from ..format.dtypes import LARGEST_CODE, STORE_DTYPES
from .config import ModelConfig
from .mesh import Demand, choose_mesh
from .step import weight_shapes
from .step_options import StepOptions
from .tiling import multiplied_pairs

_TOKENS_ON_A_DEVICE, _TOKENS_ON_A_CPU = 32768, 4096  # more in one step gain little, and take memory


@dataclass(frozen=True)
class Counts:
    """A step on one device: operations, bytes moved in its memory, bytes needed; `source` of the first and last."""

    flops: float
    traffic_bytes: float
    memory_bytes: int
    source: str


def stored_bytes(config: ModelConfig, options: StepOptions) -> int:
    """Return the stored bytes of one token, with the scales of its rows."""
    scale = 4 if options.store_dtype in LARGEST_CODE else 0
    values = sum(map(config.hook_width, options.hook_points)) * STORE_DTYPES[options.store_dtype]
    return values + scale * len(options.hook_points)


def demand_of(config: ModelConfig, options: StepOptions) -> Demand:
    """Estimate the memory that a step needs on the devices.

    It counts the weights and, for each slot: captured values in the scan and gathered, the results of two steps on
    their way to the host, and the widest tensors of one block in float32.
    """
    weights = sum(leaf.size * leaf.dtype.itemsize for _, leaf in weight_shapes(config, options))
    captured = sum(map(config.hook_width, options.hook_points))
    captured *= 2 * jnp.dtype(options.capture_dtype).itemsize + 2 * STORE_DTYPES[options.store_dtype]
    mlp = 3 * config.mlp_width
    if config.experts:  # each expert of a token has a copy of its own, on the way in and out
        mlp = config.experts.per_token * (mlp + 2 * config.width)
    working = 4 * (6 * config.width + mlp + 2 * config.heads_width)
    if options.pool:  # running sums, and what they are made of
        working += 3 * 4 * max(map(config.hook_width, options.hook_points))
    return Demand(options.batch_size, weights, options.seq_len * (captured + working))


def choose_rows(config: ModelConfig, options: StepOptions, num_devices: int, device_bytes: int | None) -> int:
    """Return the rows of a step for `--batch-size auto`: for each device a power of two that fits its memory.

    A step has at most 32,768 tokens for each device, or 4,096 if the device's memory is unknown, as on a CPU.
    """
    tokens = _TOKENS_ON_A_CPU if device_bytes is None else _TOKENS_ON_A_DEVICE
    rows = num_devices * 2 ** max(0, int(math.log2(tokens / options.seq_len)))
    while rows > num_devices:
        try:
            demand = demand_of(config, replace(options, batch_size=rows))
            choose_mesh(config, demand, num_devices, device_bytes)
            return rows
        except InvalidRequest:
            rows //= 2
    return rows


def counts_by_formula(config: ModelConfig, options: StepOptions) -> Counts:
    """Return the counts of a step by formula, for hosts without the compiler for TPUs."""
    memory_bytes = demand_of(config, options).bytes_on(options.mesh)
    source = "by formula, libtpu is missing"
    return Counts(ideal_flops(config, options), _traffic(config, options), memory_bytes, source)


def counts_of(compiled: jax.stages.Compiled, config: ModelConfig, options: StepOptions) -> Counts:
    """Return the compiler's counts of a step; it counts a loop's body once and no arithmetic of kernels."""
    layers = max(1, num_layers(config, options))
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if cost is None or memory is None:
        raise RuntimeError("the compiler of this platform does not count the operations and memory of a step")
    flops = layers * cost["flops"] + _attention_flops(config, options, multiplied_pairs)
    return Counts(flops, _traffic(config, options), memory.peak_memory_in_bytes, "counted by the compiler")


def num_layers(config: ModelConfig, options: StepOptions) -> int:
    """Return the number of layers that run."""
    return next((leaf.shape[0] for path, leaf in weight_shapes(config, options) if path[0] == "blocks"), 0)


def ideal_flops(config: ModelConfig, options: StepOptions) -> float:
    """Return the operations of one step on one device, for rows of one document.

    Two for each weight and token, and four for each element of a head and pair of a query and a key that it sees.
    """
    tokens = options.batch_size * options.seq_len
    products = 0.0
    for path, leaf in weight_shapes(config, options):
        if path[0] == "blocks" and path[-1] == "kernel":
            share = config.experts.per_token / config.experts.count if config.experts and "experts" in path else 1
            products += 2 * tokens * leaf.size * share
    devices = options.mesh.data * options.mesh.model
    return products / devices + _attention_flops(config, options, visible_pairs)


def visible_pairs(length: int, window: int | None) -> int:
    """Return the pairs of a query and a key that it sees, for one head of a row of one document."""
    reach = min(length, window or length)
    return reach * (reach + 1) // 2 + (length - reach) * reach


def _attention_flops(config: ModelConfig, options: StepOptions, pairs: Callable[[int, int | None], int]) -> float:
    """Return the operations of attention on one device: two products over `pairs(length, window)` in each layer."""
    rows, length, layers = options.batch_size, options.seq_len, num_layers(config, options)
    windowed = config.windowed[:layers] or (False,) * layers
    near = config.window if config.window is not None and config.window < length else None
    seen = sum(pairs(length, near if is_windowed else None) for is_windowed in windowed)
    devices = options.mesh.data * options.mesh.model
    return 4.0 * rows * seen * config.num_heads * config.head_width / devices


def _traffic(config: ModelConfig, options: StepOptions) -> float:
    """Return the bytes moved in the memory of one device.

    Each weight is read once; each tensor of a block is written and read once, captured ones three times.
    """
    element, devices = jnp.dtype(options.compute_dtype).itemsize, options.mesh.data * options.mesh.model
    weights = sum(leaf.size * element for path, leaf in weight_shapes(config, options) if path[0] == "blocks")
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_width
    inner = config.mlp_width * (config.experts.per_token if config.experts else 1)
    moved = 2 * element * num_layers(config, options) * (4 * config.width + heads + 2 * inner)
    tokens = options.batch_size * options.seq_len
    return weights / options.mesh.model + tokens * (moved + 6 * stored_bytes(config, options)) / devices
