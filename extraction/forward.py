"""The jitted step: packed tokens in, activations at the hook points out, and nothing else.

In: tokens, segment_ids and positions, int32 [B, T], and `slots` int32 [n], which slots hold real tokens, in the order
wanted. Out: for each hook point [n, width] in the store dtype, and its sums. Guarantee: a value does not depend on the
row's other documents, the padding or n; one compiled step serves every call.

How: blocks are stacked and scanned, up to the deepest hook point. For each kind of hook point the scan carries one
buffer with a place for each captured layer. A layer writes to the place of the first captured layer at or above it; the
captured layer itself comes last, so what remains is right without a condition in the loop and without memory for
layers that nobody asked for.

Cost: beside the model's arithmetic, one write of [B, T, width] for each layer and kind, and one gather that drops the
padding on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from .errors import InvalidRequest
from .models import gpt2, llama
from .models.config import ModelConfig, all_hook_points
from .models.devices import device_errors
from .models.location import ModelFolder
from .models.weights import WeightFiles, check_names, load_part

_ARCHITECTURES = {"llama": llama, "qwen2": llama, "qwen3": llama, "gpt2": gpt2}
_PREFIXES = {"gpt2": "transformer."}
_EMBEDDING = -1  # the "layer" whose output is the embedding
_TRANSFER_PARTS = 16  # results are cut to a multiple of this part of all slots before they cross to the host


@dataclass(frozen=True)
class StepShape:
    """B rows of T tokens."""

    rows: int
    seq_len: int


@dataclass(frozen=True)
class ForwardOptions:
    """What is captured, in which shape and dtypes. `compile_cache` is the folder of compiled steps, None for none."""

    hook_points: tuple[str, ...]
    shape: StepShape
    compute_dtype: str = "auto"
    store_dtype: str = "bfloat16"
    compile_cache: str | None = None


class Sums(NamedTuple):
    """Over the n stored values of a hook point: float32 [width] each."""

    sum: np.ndarray
    sum_of_squares: np.ndarray


class Capture(NamedTuple):
    """A hook point as the scan sees it: the output of this kind at this layer."""

    kind: str
    layer: int


def capture_of(hook_point: str) -> Capture:
    """`resid_pre` of a block is `resid_post` of the one before it, so it needs no more layers than that."""
    _, layer, kind = hook_point.split(".", 2)
    return Capture("hook_resid_post", int(layer) - 1) if kind == "hook_resid_pre" else Capture(kind, int(layer))


@dataclass(frozen=True)
class CapturePlan:
    """Which layers run, and where each hook point's tensor is found after the scan."""

    num_layers: int
    captures: dict[str, Capture]
    layers_of: dict[str, list[int]]
    final_norm: bool

    @classmethod
    def of(cls, hook_points: tuple[str, ...], config: ModelConfig) -> "CapturePlan":
        captures = {name: capture_of(name) for name in hook_points if name.startswith("blocks.")}
        final_norm = len(captures) < len(hook_points)
        deepest = max((capture.layer for capture in captures.values()), default=_EMBEDDING)
        layers_of: dict[str, set[int]] = {}
        for capture in captures.values():
            if capture.layer != _EMBEDDING:
                layers_of.setdefault(capture.kind, set()).add(capture.layer)
        sorted_layers = {kind: sorted(layers) for kind, layers in layers_of.items()}
        return cls(config.num_layers if final_norm else deepest + 1, captures, sorted_layers, final_norm)

    def places(self) -> dict[str, np.ndarray]:
        """For each kind, int32 [layers]: the place in its buffer that each layer writes to."""
        layers = np.arange(self.num_layers)
        return {kind: np.searchsorted(chosen, layers).astype(np.int32) for kind, chosen in self.layers_of.items()}


@dataclass
class StepOutput:
    """The results of a dispatched step."""

    _arrays: dict[str, tuple[jax.Array, jax.Array, jax.Array]]
    _num_tokens: int

    def get(self) -> tuple[dict[str, np.ndarray], dict[str, Sums]]:
        """Wait for the step; {hook point: [n, width]} and the sums over those n tokens."""
        with device_errors():
            values = {name: np.asarray(array)[: self._num_tokens] for name, (array, _, _) in self._arrays.items()}
            sums = {name: Sums(np.asarray(a), np.asarray(b)) for name, (_, a, b) in self._arrays.items()}
        return values, sums


class Loaded(NamedTuple):
    """Parameters on the devices, part by part, and the digest of what they were read from."""

    params: dict[str, Any]
    digest: str


class Forward:
    """The loaded model and its compiled step. `widths` gives the last axis of each hook point."""

    def __init__(self, step: Callable, loaded: "Loaded", options: ForwardOptions, widths: dict[str, int]):
        self._step, self._params, self._shape = step, loaded.params, options.shape
        self.compute_dtype, self.weights_digest, self.widths = options.compute_dtype, loaded.digest, widths

    def __call__(
        self, tokens: np.ndarray, segment_ids: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> StepOutput:
        """Dispatch one step; returns at once."""
        padded = np.zeros(self._shape.rows * self._shape.seq_len, np.int32)
        padded[: len(slots)] = slots
        with device_errors():
            arrays = self._step(self._params, tokens, segment_ids, positions, padded, np.int32(len(slots)))
            started = {name: self._start_transfer(*arrays[name], len(slots)) for name in self.widths}
        return StepOutput(started, len(slots))

    def _start_transfer(self, values: jax.Array, total: jax.Array, squares: jax.Array, num_tokens: int):
        part = -(-len(values) // _TRANSFER_PARTS)
        kept = min(-(-num_tokens // part) * part, len(values))
        if jax.default_backend() != "cpu" and kept < len(values):
            values = values[:kept]
        for array in (values, total, squares):
            array.copy_to_host_async()
        return values, total, squares


def default_compute_dtype() -> str:
    """bfloat16 where the hardware multiplies it fast, float32 on a CPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load_forward(folder: ModelFolder, config: ModelConfig, options: ForwardOptions) -> Forward:
    """Load the weights that the hook points need and compile the step.

    Raises InvalidRequest (T beyond learned positions, a hook point that this model does not have, too little memory on
    the device), DamagedData (weights that are not those of the configuration) and TryAgain (a device that fails).
    """
    options = _checked(config, options)
    _use_compile_cache(options.compile_cache)
    widths = {name: config.hook_width(name) for name in options.hook_points}
    with device_errors():
        loaded = _load(folder, config, options)
        return Forward(lower_step(config, options).compile(), loaded, options, widths)


def lower_step(config: ModelConfig, options: ForwardOptions) -> jax.stages.Lowered:
    """The step before its compilation, from the configuration alone: no weights are needed, nothing is allocated."""
    options = _checked(config, options)
    plan = CapturePlan.of(options.hook_points, config)
    graphs, params = _abstract_model(config, plan, options)
    if plan.num_layers:
        stack = lambda leaf: jax.ShapeDtypeStruct((plan.num_layers, *leaf.shape), leaf.dtype)
        params["blocks"] = jax.tree.map(stack, params["blocks"])
    rows, whole = _shardings(options.shape.rows)
    grid = jax.ShapeDtypeStruct((options.shape.rows, options.shape.seq_len), jnp.int32)
    slots, n = jax.ShapeDtypeStruct((grid.size,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    step = jax.jit(make_step(graphs, plan, options), in_shardings=(whole, rows, rows, rows, whole, whole))
    return step.lower(params, grid, grid, grid, slots, n)


def _checked(config: ModelConfig, options: ForwardOptions) -> ForwardOptions:
    """The options with `auto` resolved, if this model can do what they ask."""
    unknown = set(options.hook_points) - set(all_hook_points(config.num_layers))
    if unknown:
        raise InvalidRequest(f"{min(unknown)}: no such hook point in a model of {config.num_layers} layers")
    if config.max_positions is not None and options.shape.seq_len > config.max_positions:
        raise InvalidRequest(f"--seq-len {options.shape.seq_len}: this model has {config.max_positions} positions")
    if options.shape.rows * options.shape.seq_len > np.iinfo(np.int32).max:
        raise InvalidRequest(f"--batch-size {options.shape.rows} times --seq-len {options.shape.seq_len}: over 2**31 slots")
    compute_dtype = default_compute_dtype() if options.compute_dtype == "auto" else options.compute_dtype
    return replace(options, compute_dtype=compute_dtype)


def _use_compile_cache(folder: str | None) -> None:
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _shardings(rows: int) -> tuple[NamedSharding, NamedSharding]:
    """Rows over all local devices that divide them, parameters on each of these."""
    devices = jax.local_devices()
    count = next(n for n in range(len(devices), 0, -1) if rows % n == 0)
    mesh = jax.sharding.Mesh(np.array(devices[:count]), ("data",))
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def _abstract_model(config: ModelConfig, plan: CapturePlan, options: ForwardOptions) -> tuple[dict, dict]:
    """For each part that runs: its flax graph, and its parameters' shapes, of one block, as a nested dict."""
    architecture, dtype = _ARCHITECTURES[config.family], jnp.dtype(options.compute_dtype)
    parts = {"embedding": lambda: architecture.Embedding(config, dtype)}
    if plan.num_layers:
        parts["blocks"] = lambda: architecture.Block(config, dtype)
    if plan.final_norm:
        parts["final_norm"] = lambda: architecture.FinalNorm(config.width, config.norm_epsilon, dtype)
    split = {name: nnx.split(nnx.eval_shape(make)) for name, make in parts.items()}
    return split, {name: nnx.to_pure_dict(state) for name, (_, state) in split.items()}


def _load(folder: ModelFolder, config: ModelConfig, options: ForwardOptions) -> Loaded:
    architecture = _ARCHITECTURES[config.family]
    plan = CapturePlan.of(options.hook_points, config)
    _, abstract = _abstract_model(config, plan, options)
    _, whole = _shardings(options.shape.rows)
    table = architecture.weight_table(config)
    with WeightFiles(folder.path, _PREFIXES.get(config.family, "model.")) as files:
        check_names(files, table, config.num_layers, architecture.NOT_NEEDED)
        params = {
            name: load_part(files, table[name], shapes, plan.num_layers if name == "blocks" else None,
                            lambda array: jax.device_put(array, whole))
            for name, shapes in abstract.items()
        }
        return Loaded(params, files.digest)


def make_step(graphs: dict, plan: CapturePlan, options: ForwardOptions) -> Callable:
    """The function that is compiled: parameters and one step's arrays -> {hook point: (values, sum, squares)}."""
    store_dtype = jnp.dtype(options.store_dtype)
    # A float32 product on an accelerator is otherwise made of shorter ones.
    precision = "highest" if options.compute_dtype == "float32" else "default"

    def part(params: dict, name: str) -> nnx.Module:
        graph, state = graphs[name]
        state = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    def step(params: dict, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, slots: jax.Array, n: jax.Array):
        with jax.default_matmul_precision(precision):
            x, shared = part(params["embedding"], "embedding")(tokens, positions)
            found = {Capture("hook_resid_post", _EMBEDDING): x.astype(store_dtype)}
            shared["segment_ids"] = segment_ids
            if plan.num_layers:
                block = lambda params, x, tap: part(params, "blocks")(x, shared, tap)
                x, captured = _scan(block, params["blocks"], x, plan, store_dtype)
                found |= captured
            tensors = {name: found[capture] for name, capture in plan.captures.items()}
            if plan.final_norm:
                tensors["ln_final.hook_normalized"] = part(params["final_norm"], "final_norm")(x).astype(store_dtype)
            return {name: _compact(tensors[name], slots, n) for name in options.hook_points}

    return step


def _scan(block: Callable, params: dict, x: jax.Array, plan: CapturePlan, dtype: jnp.dtype):
    """x after the last layer that runs, and {capture: [B, T, width]}."""

    def run(x: jax.Array, layer_params: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
        taps: dict[str, jax.Array] = {}
        x = block(layer_params, x, taps.__setitem__)
        return x, {kind: taps[kind].astype(dtype) for kind in plan.layers_of}

    def body(carry: tuple, scanned: tuple) -> tuple:
        x, buffers = carry
        layer_params, places = scanned
        x, taps = run(x, layer_params)
        return (x, {kind: _write(buffers[kind], taps[kind], places[kind]) for kind in buffers}), None

    first = jax.tree.map(lambda array: array[0], params)
    shapes = jax.eval_shape(run, x, first)[1]
    buffers = {kind: jnp.zeros((len(plan.layers_of[kind]), *shape.shape), dtype) for kind, shape in shapes.items()}
    (x, buffers), _ = jax.lax.scan(body, (x, buffers), (params, plan.places()))
    found = {
        Capture(kind, layer): buffers[kind][place]
        for kind, layers in plan.layers_of.items() for place, layer in enumerate(layers)
    }
    return x, found


def _write(buffer: jax.Array, value: jax.Array, place: jax.Array) -> jax.Array:
    """The buffer with `value` at `place`; unchanged when `place` is one beyond the last captured layer."""
    last = len(buffer) - 1
    at = jnp.minimum(place, last)
    kept = jnp.where(place > last, buffer[at], value)
    return jax.lax.dynamic_update_index_in_dim(buffer, kept, at, 0)


def _compact(tensor: jax.Array, slots: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rows of [B, T, width] at `slots`, and their sum and sum of squares over the first n."""
    rows = tensor.reshape(-1, tensor.shape[-1])[slots]
    real = jnp.where((jnp.arange(len(slots)) < n)[:, None], rows.astype(jnp.float32), 0.0)
    return rows, _sum_rows(real, len(tensor)), _sum_rows(real**2, len(tensor))


def _sum_rows(rows: jax.Array, parts: int) -> jax.Array:
    """The sum of [n, width] over n in float32, by parts: one long chain of additions would round at each link."""
    partial = rows.reshape(parts, -1, rows.shape[-1]).sum(axis=1)
    return jax.lax.optimization_barrier(partial).sum(axis=0)  # else the compiler makes one chain of both
