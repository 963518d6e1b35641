"""The jitted step: packed tokens in, activations at the hook points out.

In: tokens, segment_ids and positions, int32 [B, T], and `slots` int32 [n], the slots of real tokens in the wanted
order. Out: for each hook point [n, width] in its stored dtype, and its statistics. Guarantee: a value does not depend
on the row's other documents if these are finite, the padding or n, and depends on the mesh by rounding only; one
compiled step serves every call.

How: layers run in groups of stacked blocks, up to the deepest hook point (`layer_scan`).

Cost: besides the model's arithmetic, one write of [B, T, width] for each layer and kind, and one gather that drops the
padding. Each device keeps, compacts and sends its own rows and columns. Means over windows (`pool`) add log2(T) passes
over [B, T, width] in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from ..format.digests import digest_of
from ..format.dtypes import dtype_named, stored_dtype
from .attention import attention_form
from .attention_check import check_attention
from .block import Shared
from .capture_plan import Buffer, Capture, CapturePlan
from .compaction import Compacted, Compaction, Slots
from .config import LayerKind, ModelConfig
from .devices import Device, device_errors
from .expert_stacks import split_stacks
from .families import family_of
from .head import token_losses
from .hooks import EMBED_HOOK, FINAL_HOOK, LOSS_HOOK
from .layer_groups import Group, ModelPart, group_layers, parts_of
from .layer_scan import Capturing, run_layers
from .location import ModelFolder
from .per_layer_embeddings import PerLayerEmbedding
from .pooling import window_means
from .sharding import Layout, Placement, mesh_of
from .step_options import StepOptions, check_step
from .step_output import StepOutput, start_transfer
from .tensor_names import TextModel, find_tensors
from .tensors import WeightFiles
from .weights import check_shapes, leaves_of, load_params, nested, plan_fills

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


class Loaded(NamedTuple):
    """Parameters on the devices, part by part, and the digest of the weights that they were read from."""

    params: dict[str, Any]
    digest: str


class Inputs(NamedTuple):
    """The arrays of one call of the step.

    Attributes:
        tokens, segment_ids, positions: int32 [B, T].
        slots: int32 [groups, n], the slots of real tokens of each group of devices.
        counts: int32 [groups], the numbers of them.
        targets: int32 [B, T], only for `hook_loss`.
        pooled: bool [B, T], only with `pool`.
    """

    tokens: Any
    segment_ids: Any
    positions: Any
    slots: Any
    counts: Any
    targets: Any = None
    pooled: Any = None


class Step:
    """The loaded model and its compiled step. `widths` gives the last axis of each hook point."""

    def __init__(self, step: Callable, loaded: Loaded, options: StepOptions, captures: Mapping[str, Capture]):
        self._step, self._params, self._captures = step, loaded.params, captures
        self.options, self.weights_digest = options, loaded.digest
        self.widths = {name: capture.buffer.width for name, capture in captures.items()}

    def __call__(
        self,
        tokens: Int[np.ndarray, "B T"],
        segment_ids: Int[np.ndarray, "B T"],
        positions: Int[np.ndarray, "B T"],
        slots: Int[np.ndarray, " n"],
        pooled: Bool[np.ndarray, "B T"] | None = None,
        targets: Int[np.ndarray, "B T"] | None = None,
    ) -> StepOutput:
        """Dispatch one step and return at once.

        Args:
            tokens: int32 [B, T].
            segment_ids: int32 [B, T], 0 for padding.
            positions: int32 [B, T].
            slots: int [n], the flat indices of tokens to return; with `pool` the last tokens of windows.
            pooled: bool [B, T], the tokens that are part of a mean; only with `pool`.
            targets: int32 [B, T], the next token of the same record or -1; for `hook_loss`.

        Raises as `device_errors`.
        """
        groups = self.options.mesh.data
        size = self.options.num_slots // groups
        places = [np.flatnonzero(slots // size == group) for group in range(groups)]
        local = np.zeros((groups, size), np.int32)
        for group, own in enumerate(places):
            local[group, : len(own)] = slots[own] - group * size
        counts = np.array([len(own) for own in places], np.int32)
        targets = targets if LOSS_HOOK in self.widths else None
        with device_errors():
            inputs = Inputs(tokens, segment_ids, positions, local, counts, targets, pooled)
            arrays = self._step(self._params, inputs)
            sent = {buffer: start_transfer(found, int(counts.max())) for buffer, found in arrays.items()}
            return StepOutput(sent, self._captures, places)


def load_step(folder: ModelFolder, config: ModelConfig, options: StepOptions, compile_cache: str | None = None) -> Step:
    """Compile the step, after a check of its attention, while the weights that the hook points need are read.

    `compile_cache` is the folder of compiled steps, "" for none, or None for that of jax's settings. Raises
    InvalidRequest (options that do not fit the model or the devices, a kernel of attention that is wrong), DamagedData
    (weights that do not fit the configuration) and TryAgain (a device failed).
    """
    check_step(config, options, len(jax.local_devices()))
    captures = CapturePlan.of(options.hook_points, config).captures
    opened = _opened_weights(folder, config, options)
    with device_errors(), _compile_cache(compile_cache), opened as load, ThreadPoolExecutor(1) as beside:
        loading = beside.submit(load)
        check_attention(config, options, mesh_of(options.mesh, jax.local_devices()))
        step = lower_step(config, options).compile()
        weights = loading.result()
        # An edited config.json is another model, though the files of its weights are the same.
        digest = digest_of(f"{weights.digest} {config.digest}".encode())
        return Step(step, weights._replace(digest=digest), options, captures)


def lower_step(
    config: ModelConfig, options: StepOptions, devices: Sequence[Device] | None = None
) -> jax.stages.Lowered:
    """Return the step before its compilation. No weights are read and no memory is allocated.

    Raises InvalidRequest for options that do not fit the model or the devices.
    """
    devices = jax.local_devices() if devices is None else devices
    check_step(config, options, len(devices))
    model = Model.of(config, options)
    placement = Placement(mesh_of(options.mesh, devices))
    where = jax.tree_util.tree_map_with_path(
        lambda path, leaf: placement.sharding([key.key for key in path], leaf.shape), model.shapes
    )
    rows = NamedSharding(placement.mesh, PartitionSpec("data"))
    grid = jax.ShapeDtypeStruct((options.batch_size, options.seq_len), jnp.int32)
    slots = jax.ShapeDtypeStruct((options.mesh.data, grid.size // options.mesh.data), jnp.int32)
    counts = jax.ShapeDtypeStruct((options.mesh.data,), jnp.int32)
    targets = grid if model.plan.loss else None
    pooled = jax.ShapeDtypeStruct(grid.shape, jnp.bool_) if options.pool else None
    inputs = Inputs(grid, grid, grid, slots, counts, targets, pooled)
    step = make_step(model, options, Layout(placement.mesh))
    with jax.set_mesh(placement.mesh):
        return jax.jit(step, in_shardings=(where, rows)).lower(model.shapes, inputs)


def weight_shapes(config: ModelConfig, options: StepOptions) -> list[tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
    """Return path and shape of each parameter that a step needs; those of blocks have a leading layer axis."""
    return list(leaves_of(Model.of(config, options).shapes))


@contextmanager
def _compile_cache(folder: str | None) -> Iterator[None]:
    """Have jax keep in a folder what it compiles meanwhile; afterwards its settings are those of before."""
    settings = {
        "jax_compilation_cache_dir": folder,
        # Otherwise an entry's name contains the folder's path, and other machines do not find it.
        "jax_persistent_cache_enable_xla_caches": "none",
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        _set_cache(before if folder is None else settings)
        yield
    finally:
        _set_cache(before)


def _set_cache(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # which looks at them once


class Model(NamedTuple):
    """The parts of a model that run.

    Attributes:
        config: the whole model.
        plan: the layers that run and the tensors to keep.
        groups: the groups of layers.
        parts: the parts.
        graphs: graph and abstract state of each part, by its path; of a block without the layer axis.
        shapes: the tree of the shapes of all parameters.
    """

    config: ModelConfig
    plan: CapturePlan
    groups: list[Group]
    parts: list[ModelPart]
    graphs: dict[tuple[str, ...], tuple[Any, Any]]
    shapes: dict[str, Any]

    @property
    def blocks(self) -> list[ModelPart]:
        """The parts that are blocks, in the order of groups and their places."""
        return [part for part in self.parts if part.layers is not None]

    @classmethod
    def of(cls, config: ModelConfig, options: StepOptions) -> Model:
        """Return what runs for these options. Nothing is allocated."""
        plan = CapturePlan.of(options.hook_points, config)
        parts = parts_of(config, plan, jnp.dtype(options.compute_dtype))
        graphs: dict[tuple[str, ...], tuple[Any, Any]] = {
            part.path: nnx.split(nnx.eval_shape(part.make)) for part in parts
        }
        leaves = {
            (*part.path, *path): _stacked(leaf, part.layers)
            for part in parts
            for path, leaf in leaves_of(nnx.to_pure_dict(graphs[part.path][1]))
        }
        return cls(config, plan, group_layers(config.layers[: plan.num_layers]), parts, graphs, nested(leaves))

    def module(self, path: tuple[str, ...], params: dict[str, Any]) -> Any:
        """Return the module of a part with these parameters."""
        graph, state = self.graphs[path]
        state = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)


def _stacked(leaf: jax.ShapeDtypeStruct, layers: range | None) -> jax.ShapeDtypeStruct:
    return leaf if layers is None else jax.ShapeDtypeStruct((len(layers), *leaf.shape), leaf.dtype)


@contextmanager
def _opened_weights(folder: ModelFolder, config: ModelConfig, options: StepOptions) -> Iterator[Callable[[], Loaded]]:
    """Yield a function that loads the weights, after their names and shapes have been checked."""
    family, model = family_of(config.family), Model.of(config, options)
    placement = Placement(mesh_of(options.mesh, jax.local_devices()))
    fills = plan_fills(model.parts, model.shapes)
    table, plan = family.weight_table(config), model.plan
    names = TextModel(family, table, config.layers, plan.num_layers, config.tied, plan.loss)
    with WeightFiles(folder) as files:
        files.places = split_stacks(files.places, family.expert_stacks)
        places = find_tensors(files, names)
        check_shapes(files, places, fills)
        yield lambda: Loaded(load_params(files, places, fills, placement), files.digest())


def make_step(model: Model, options: StepOptions, layout: Layout) -> Callable:
    """Return the function to compile: parameters and `Inputs` -> {buffer: Compacted}."""
    capturing = Capturing(model.plan, jnp.dtype(options.capture_dtype), layout)
    chunks = options.batch_size // options.mesh.data
    # A float32 product on an accelerator is otherwise made of shorter ones.
    precision = "highest" if options.compute_dtype == "float32" else "default"

    def compact(buffer: Buffer, tensors: jax.Array, inputs: Inputs) -> Compacted:
        dtype = stored_dtype(buffer.suffix, dtype_named(options.store_dtype)).name
        compaction = Compaction(dtype, chunks, layout, skips_nan=buffer.suffix == LOSS_HOOK)

        def one(tensor: jax.Array) -> Compacted:
            if inputs.pooled is not None:
                tensor = window_means(tensor, inputs.segment_ids, inputs.pooled)
            return compaction.to_stored(compaction.gather(tensor, Slots(inputs.slots, inputs.counts)), inputs.counts)

        found = jax.lax.map(one, tensors)
        return found._replace(values=layout.captured(found.values))

    def step(params: dict[str, Any], inputs: Inputs) -> dict[Buffer, Compacted]:
        with jax.default_matmul_precision(precision), attention_form(options.attention):
            kept = _forward(model, params, inputs, capturing)
            return {buffer: compact(buffer, tensors, inputs) for buffer, tensors in kept.items()}

    return step


def _forward(model: Model, params: dict[str, Any], inputs: Inputs, capturing: Capturing) -> dict[Buffer, jax.Array]:
    """Return the tensors of each buffer, [captured layers, B, T, width]."""
    plan, dtype, layout = capturing
    embedding = model.module(("embedding",), params["embedding"])
    x = layout.rows(embedding(inputs.tokens, inputs.positions))
    embedded, kinds = x, [kind for group in model.groups for kind in group.unit]
    shared = Shared.of(tuple(kinds), inputs.segment_ids, inputs.positions)
    if isinstance(embedding, PerLayerEmbedding):
        shared = replace(shared, per_layer=embedding.of_layers(inputs.tokens, x))
    paths = {kind: part.path for kind, part in zip(kinds, model.blocks, strict=True)}

    def run_block(kind: LayerKind, weights: dict[str, Any], layer: Any, x: jax.Array, tap: Callable) -> jax.Array:
        return model.module(paths[kind], weights)(x, replace(shared, layer=layer), tap)

    x, kept = run_layers(model.groups, params.get("blocks", {}), run_block, x, capturing)
    ends = {EMBED_HOOK: embedded.astype(dtype)}
    if plan.final_norm:
        x = layout.rows(model.module(("final_norm",), params["final_norm"])(layout.rows(x)))
        ends[FINAL_HOOK] = x.astype(dtype)
    if plan.loss:
        head = params["head"]
        losses = token_losses(x, head["table"], head.get("bias"), inputs.targets, model.config)
        ends[LOSS_HOOK] = layout.rows(losses)
    return kept | {buffer: ends[suffix][None] for suffix, buffer in plan.ends.items()}
