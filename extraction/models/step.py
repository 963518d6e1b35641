"""The jitted step: packed tokens in, activations at the hook points out.

In: tokens, segment_ids and positions, int32 [B, T], and `slots` int32 [n], the slots of real tokens in the wanted
order. Out: for each hook point [n, width] in the store dtype, and its statistics. Guarantee: a value does not depend on
the row's other documents, the padding or n, and depends on the mesh by rounding only; one compiled step serves every
call.

How: blocks are stacked and scanned, up to the deepest hook point. For each kind of hook point the scan carries one
buffer with a place for each captured layer. A layer writes to the place of the first captured layer at or above it.
The captured layer itself writes last, so the buffer ends right without a condition in the loop and without memory for
other layers.

Cost: besides the model's arithmetic, one write of [B, T, width] for each layer and kind, and one gather that drops the
padding. Each device keeps, compacts and sends its own rows and columns. Means over windows (`pool`) add log2(T) passes
over [B, T, width] in float32.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from .captures import EMBEDDING, Capture, CapturePlan
from .compaction import Compacted, Compaction, Slots
from .config import ModelConfig
from .devices import Device, device_errors
from .families import family_of
from .location import ModelFolder
from .pooling import window_means
from .results import StepOutput, start_transfer
from .sharding import Layout, Placement, mesh_of
from .stacks import of_layer, to_slice
from .step_options import StepOptions, check_step
from .tensor_names import TextModel, find_tensors
from .tensors import WeightFiles
from .weights import check_shapes, leaves_of, load_params, plan_fills


class Loaded(NamedTuple):
    """Parameters on the devices, part by part, and the digest of the weights that they were read from."""

    params: dict[str, Any]
    digest: str


class Step:
    """The loaded model and its compiled step. `widths` gives the last axis of each hook point."""

    def __init__(self, step: Callable, loaded: Loaded, options: StepOptions, widths: dict[str, int]):
        self._step, self._params = step, loaded.params
        self.options, self.weights_digest, self.widths = options, loaded.digest, widths

    def __call__(
        self,
        tokens: np.ndarray,
        segment_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        pooled: np.ndarray | None = None,
    ) -> StepOutput:
        """Dispatch one step and return at once.

        Args:
            tokens: int32 [B, T].
            segment_ids: int32 [B, T], 0 for padding.
            positions: int32 [B, T].
            slots: int [n], the flat indices of tokens to return; with `pool` the last tokens of windows.
            pooled: bool [B, T], the tokens that are part of a mean; only with `pool`.

        Raises as `device_errors`.
        """
        groups = self.options.mesh.data
        size = self.options.num_slots // groups
        places = [np.flatnonzero(slots // size == group) for group in range(groups)]
        local = np.zeros((groups, size), np.int32)
        for group, own in enumerate(places):
            local[group, : len(own)] = slots[own] - group * size
        counts = np.array([len(own) for own in places], np.int32)
        inputs = (tokens, segment_ids, positions, local, counts) + (() if pooled is None else (pooled,))
        with device_errors():
            arrays = self._step(self._params, *inputs)
            return StepOutput({name: start_transfer(arrays[name], counts.max()) for name in self.widths}, places)


def load_step(folder: ModelFolder, config: ModelConfig, options: StepOptions, compile_cache: str | None = None) -> Step:
    """Compile the step while the weights that the hook points need are read.

    `compile_cache` is the folder of compiled steps or None. Raises InvalidRequest (options that do not fit the model or
    the devices), DamagedData (weights that do not fit the configuration) and TryAgain (a device failed).
    """
    check_step(config, options, len(jax.local_devices()))
    _use_compile_cache(compile_cache)
    widths = {name: config.hook_width(name) for name in options.hook_points}
    with device_errors(), _opened_weights(folder, config, options) as load, ThreadPoolExecutor(1) as beside:
        loading = beside.submit(load)
        step = lower_step(config, options).compile()
        return Step(step, loading.result(), options, widths)


def lower_step(
    config: ModelConfig, options: StepOptions, devices: Sequence[Device] | None = None
) -> jax.stages.Lowered:
    """Return the step before its compilation. No weights are read and no memory is allocated.

    Raises InvalidRequest for options that do not fit the model or the devices.
    """
    devices = jax.local_devices() if devices is None else devices
    check_step(config, options, len(devices))
    plan = CapturePlan.of(options.hook_points, config)
    graphs, params = _abstract_model(config, plan, options)
    placement = Placement(mesh_of(options.mesh, devices), config)
    where = jax.tree_util.tree_map_with_path(
        lambda path, leaf: placement.sharding([key.key for key in path], leaf.ndim), params
    )
    rows = NamedSharding(placement.mesh, PartitionSpec("data"))
    grid = jax.ShapeDtypeStruct((options.batch_size, options.seq_len), jnp.int32)
    slots = jax.ShapeDtypeStruct((options.mesh.data, grid.size // options.mesh.data), jnp.int32)
    counts = jax.ShapeDtypeStruct((options.mesh.data,), jnp.int32)
    inputs = [grid, grid, grid, slots, counts]
    if options.pool:
        inputs.append(jax.ShapeDtypeStruct(grid.shape, jnp.bool_))
    step = make_step(graphs, plan, options, Layout(placement.mesh))
    with jax.set_mesh(placement.mesh):
        return jax.jit(step, in_shardings=(where, *[rows] * len(inputs))).lower(params, *inputs)


def weight_shapes(config: ModelConfig, options: StepOptions) -> list[tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
    """Return path and shape of each parameter that a step needs; those of blocks have a leading layer axis."""
    _, params = _abstract_model(config, CapturePlan.of(options.hook_points, config), options)
    return list(leaves_of(params))


def _use_compile_cache(folder: str | None) -> None:
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", folder)
        # Otherwise an entry's name contains the folder's path, and other machines do not find it.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _abstract_model(config: ModelConfig, plan: CapturePlan, options: StepOptions) -> tuple[dict, dict]:
    """Return for each part that runs its flax graph (of one block), and the shapes of its parameters."""
    parts = family_of(config.family).parts(config, jnp.dtype(options.compute_dtype))
    runs = {"embedding": True, "blocks": plan.num_layers > 0, "final_norm": plan.final_norm}
    split = {name: nnx.split(nnx.eval_shape(parts[name])) for name in runs if runs[name]}
    params = {name: nnx.to_pure_dict(state) for name, (_, state) in split.items()}
    if plan.num_layers:
        params["blocks"] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((plan.num_layers, *leaf.shape), leaf.dtype), params["blocks"]
        )
    return split, params


@contextmanager
def _opened_weights(folder: ModelFolder, config: ModelConfig, options: StepOptions) -> Iterator[Callable[[], Loaded]]:
    """Yield a function that loads the weights, after their names and shapes have been checked."""
    family = family_of(config.family)
    plan = CapturePlan.of(options.hook_points, config)
    _, abstract = _abstract_model(config, plan, options)
    table, running = family.weight_table(config), plan.num_layers
    placement = Placement(mesh_of(options.mesh, jax.local_devices()), config)
    fills = plan_fills(table, abstract, running)
    with WeightFiles(folder) as files:
        places = find_tensors(files, TextModel(family, table, running, config.tied))
        check_shapes(files, places, fills)
        yield lambda: Loaded(load_params(files, places, fills, placement), files.digest())


def make_step(graphs: dict, plan: CapturePlan, options: StepOptions, layout: Layout) -> Callable:
    """Return the function to compile: parameters and one step's arrays -> {hook point: Compacted}."""
    capture_dtype = jnp.dtype(options.capture_dtype)
    compaction = Compaction(options.store_dtype, options.batch_size // options.mesh.data, layout)
    # A float32 product on an accelerator is otherwise made of shorter ones.
    precision = "highest" if options.compute_dtype == "float32" else "default"

    def part(params: dict, name: str) -> nnx.Module:
        graph, state = graphs[name]
        state = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    def step(
        params: dict,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        slots: jax.Array,
        counts: jax.Array,
        *pooled: jax.Array,
    ) -> dict[str, Compacted]:
        with jax.default_matmul_precision(precision):
            x, shared = part(params["embedding"], "embedding")(tokens, positions)
            x = layout.rows(x)
            found = {Capture("hook_resid_post", EMBEDDING): x.astype(capture_dtype)}
            shared["segment_ids"] = segment_ids
            if plan.num_layers:
                stacked = params["blocks"]

                def block(layer: dict, x: jax.Array, tap: Callable) -> jax.Array:
                    weights = of_layer(layer["params"], stacked)
                    return part(weights, "blocks")(x, shared | layer["flags"], tap)

                layers = {"params": to_slice(stacked), "flags": plan.flags()}
                x, captured = _scan(block, layers, x, (plan, capture_dtype, layout))
                found |= captured
            tensors = {name: found[capture] for name, capture in plan.captures.items()}
            if plan.final_norm:
                normalized = layout.rows(part(params["final_norm"], "final_norm")(layout.rows(x)))
                tensors["ln_final.hook_normalized"] = normalized.astype(capture_dtype)
            if options.pool:
                tensors = {name: window_means(tensor, segment_ids, *pooled) for name, tensor in tensors.items()}
            where = Slots(slots, counts)
            rows = {name: compaction.gather(tensors[name], where) for name in options.hook_points}
            return {name: compaction.store(rows[name], counts) for name in options.hook_points}

    return step


def _scan(block: Callable, layers: dict, x: jax.Array, what: tuple[CapturePlan, jnp.dtype, Layout]):
    """Return x after the last layer, and {capture: [B, T, width]}. Leaves of `layers` have a leading layer axis."""
    plan, dtype, layout = what

    def run(x: jax.Array, layer: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
        taps: dict[str, jax.Array] = {}
        x = layout.rows(block(layer, layout.rows(x), taps.__setitem__))
        return x, {kind: layout.tapped(kind, taps[kind]).astype(dtype) for kind in plan.layers_of}

    def body(carry: tuple, scanned: tuple) -> tuple:
        x, buffers = carry
        layer, places = scanned
        x, taps = run(x, layer)
        written = {kind: write[kind](buffers[kind], taps[kind], places[kind], 0) for kind in buffers}
        return (x, {kind: layout.captured(buffer) for kind, buffer in written.items()}), None

    # Layers must not write after the last capture of their kind; without such layers no check is compiled.
    write = {
        kind: _write if captured[-1] < plan.num_layers - 1 else jax.lax.dynamic_update_index_in_dim
        for kind, captured in plan.layers_of.items()
    }
    first = jax.tree.map(lambda array: array[0], layers)
    shapes = jax.eval_shape(run, x, first)[1]
    buffers = {
        kind: layout.captured(jnp.zeros((len(plan.layers_of[kind]), *shape.shape), dtype))
        for kind, shape in shapes.items()
    }
    (x, buffers), _ = jax.lax.scan(body, (x, buffers), (layers, plan.places()))
    found = {
        Capture(kind, layer): buffers[kind][place]
        for kind, layers in plan.layers_of.items()
        for place, layer in enumerate(layers)
    }
    return x, found


def _write(buffer: jax.Array, value: jax.Array, place: jax.Array, axis: int = 0) -> jax.Array:
    """Return the buffer with `value` at `place`, or unchanged if `place` is beyond the last captured layer."""
    last = len(buffer) - 1
    at = jnp.minimum(place, last)
    kept = jnp.where(place > last, buffer[at], value)
    return jax.lax.dynamic_update_index_in_dim(buffer, kept, at, axis)
