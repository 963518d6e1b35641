"""The mesh `(data, model)` of one host, and where each parameter and result lies on it.

In: a model's configuration, the step's shape, the devices. Out: a mesh, and arrays placed on it. `data` shares out the
rows of a step; `model` shares out the heads and the inner width of each block. Guarantee: the mesh changes values by
rounding only; one that does not fit the model, the rows or the devices is refused by name.

Cost: with `model` above 1, two sums over the chips in each block. Weights cross from the host once, spread over all
chips, and are exchanged between these.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..core.errors import InvalidRequest
from .config import ModelConfig

CUT_KINDS = ("attn.hook_z", "mlp.hook_post")  # of these a device has its columns only
USABLE = 0.9  # of a device's memory; the rest is for what was not foreseen
# A parameter's last axes, by the end of its path. The first two kinds of kernel are followed by the third in each
# block, so that one sum over `model` is all that attention and mlp need. A stack of experts is cut as one mlp is.
_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention\.(q|k|v|o)\.kernel", ("model", None, None)),
    (r"mlp\.(.*\.)?(gate|up)\.kernel", (None, "model")),
    (r"mlp\.(.*\.)?down\.kernel", ("model", None)),
    (r"attention\.(q|k|v)\.bias", ("model", None)),
    (r"mlp\.(.*\.)?(gate|up)\.bias", ("model",)),
    # Cut by width and not by token: looking a token up is then local, whatever the size of the vocabulary.
    (r"embedding\.(table|positions)", (None, "model")),
    (r"mlp\.router\..*|.*norm.*\.(scale|bias)|.*(o|down)\.bias", ()),
)


@dataclass(frozen=True)
class MeshShape:
    """`data` groups of devices share the rows, `model` devices in each share the weights."""

    data: int
    model: int

    def __str__(self) -> str:
        return f"data={self.data},model={self.model}"

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """From `data=4,model=2`; an axis that is left out is 1. Raises InvalidRequest."""
        found = [re.fullmatch(r"\s*(data|model)\s*=\s*([1-9]\d{0,5})\s*", part) for part in text.split(",")]
        if None in found or len({match[1] for match in found}) < len(found):
            raise InvalidRequest(f"--mesh {text}: write it like data=4,model=2")
        return cls(**({"data": 1, "model": 1} | {match[1]: int(match[2]) for match in found}))


@dataclass(frozen=True)
class Demand:
    """What a step asks of the devices: rows, and bytes of all its weights and of one row's results and working set."""

    rows: int
    weight_bytes: int
    row_bytes: int

    def bytes_on(self, mesh: MeshShape) -> int:
        """On each device, about."""
        return self.weight_bytes // mesh.model + self.rows // mesh.data * self.row_bytes // mesh.model


def misfit(mesh: MeshShape, config: ModelConfig, rows: int, num_devices: int) -> str | None:
    """Why this mesh cannot be, None if it can."""
    kv_heads = config.num_kv_heads
    if mesh.data * mesh.model > num_devices:
        return f"needs {mesh.data * mesh.model} devices, this host has {num_devices}"
    if rows % mesh.data:
        return f"--batch-size {rows} cannot be shared by data={mesh.data}"
    for name, size in (("heads", config.num_heads), ("mlp columns", config.mlp_width), ("columns", config.width)):
        if size % mesh.model:
            return f"the model's {size} {name} cannot be shared by model={mesh.model}"
    if kv_heads % mesh.model and mesh.model % kv_heads:
        return f"the model's {kv_heads} key-value heads can neither be shared by model={mesh.model} nor doubled for it"
    return None


def choose_mesh(config: ModelConfig, demand: Demand, num_devices: int, device_bytes: int | None) -> MeshShape:
    """Rows over as many devices as divide them; weights over as few as their memory allows, if it is known.

    Raises InvalidRequest if the step fits into no mesh.
    """
    possible = [
        MeshShape(max(data for data in range(1, num_devices // model + 1) if demand.rows % data == 0), model)
        for model in range(1, num_devices + 1)
        if num_devices % model == 0 and misfit(MeshShape(1, model), config, demand.rows, num_devices) is None
    ]
    for mesh in possible:
        if device_bytes is None or demand.bytes_on(mesh) <= USABLE * device_bytes:
            return mesh
    least = min(demand.bytes_on(mesh) for mesh in possible)
    raise InvalidRequest(
        f"the step needs about {least / 2**30:.1f} GiB on each of {num_devices} devices, which have "
        f"{device_bytes / 2**30:.1f}; take a smaller --batch-size, lower layers or a larger machine, or set --mesh"
    )


def memory_of(device: jax.Device) -> int | None:
    """Bytes that arrays can have on a device; None where it does not say, as on a CPU."""
    return (device.memory_stats() or {}).get("bytes_limit")


def local_memory() -> tuple[int, int | None]:
    """How many devices this host has, and `memory_of` one."""
    devices = jax.local_devices()
    return len(devices), memory_of(devices[0])


def mesh_of(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh:
    """The first devices as a mesh. Neighbours share weights, as they exchange the most."""
    used = np.array(devices[: shape.data * shape.model]).reshape(shape.data, shape.model)
    return Mesh(used, ("data", "model"))


class Placement:
    """Puts parameters where they belong on a mesh."""

    def __init__(self, mesh: Mesh, config: ModelConfig):
        self.mesh, self._config = mesh, config

    def spec(self, path: Sequence[str], num_axes: int) -> PartitionSpec:
        """Of a parameter with this many axes, those of layers and experts included."""
        name = ".".join(path)
        if self.mesh.shape["model"] == 1:
            return PartitionSpec()
        axes = next((axes for pattern, axes in _AXES if re.fullmatch(rf"(.*\.)?({pattern})", name)), None)
        if axes is None:
            raise ValueError(f"{name}: no rule says how it is shared by several devices")
        if re.search(r"attention\.(k|v)\.", name) and self._config.num_kv_heads % self.mesh.shape["model"]:
            axes = ()  # fewer of these heads than devices: each device has them all
        return PartitionSpec(*(None,) * (num_axes - len(axes)), *axes)

    def sharding(self, path: Sequence[str], num_axes: int) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(path, num_axes))

    def send(self, tensor: np.ndarray) -> jax.Array:
        """A tensor on the devices, in equal parts if an axis can be cut so, else whole on each."""
        axis = next((axis for axis, size in enumerate(tensor.shape) if size % self.mesh.size == 0), None)
        cut = (None,) * axis + (("data", "model"),) if axis is not None else ()
        return jax.device_put(tensor, NamedSharding(self.mesh, PartitionSpec(*cut)))

    def empty(self, path: Sequence[str], shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        """A parameter that is going to be filled."""
        return jnp.zeros(shape, dtype, device=self.sharding(path, len(shape)))

    def turn(
        self, path: Sequence[str], source: jax.Array, transform: Callable, like: jax.ShapeDtypeStruct
    ) -> jax.Array:
        """From one tensor, all of a parameter or one of those it is stacked of: transformed, cast, in its place."""
        own = self.sharding(path, like.ndim)
        return _turner(transform, jnp.dtype(like.dtype), own)(source)

    def fill(self, path: Sequence[str], parameter: jax.Array, index: tuple[int, ...], part: jax.Array) -> jax.Array:
        """The parameter with `part` at `index` of its leading axes, in the same memory."""
        filler = _filler(self.sharding(path, parameter.ndim))
        return filler(parameter, part, tuple(np.int32(number) for number in index))


@dataclass(frozen=True)
class Layout:
    """Where a step's tensors lie on the mesh: rows over `data`, and what is captured also by columns over `model`."""

    mesh: jax.sharding.Mesh

    def rows(self, x: jax.Array) -> jax.Array:
        """[B, ...], every device of a group with all columns."""
        return self._put(x, "data")

    def tapped(self, kind: str, x: jax.Array) -> jax.Array:
        """[B, T, width] in a block. What each device has in full stays so there, though it keeps its columns only."""
        return x if kind in CUT_KINDS else self.rows(x)

    def captured(self, x: jax.Array) -> jax.Array:
        """[places, B, T, width], each device with its own columns."""
        return self._put(x, None, "data", None, self._columns(x))

    def compacted(self, x: jax.Array) -> jax.Array:
        """[groups, tokens, width], as it is captured."""
        return self._put(x, "data", None, self._columns(x))

    def parts(self, x: jax.Array) -> int:
        """How many parts the columns of [..., width] are in."""
        return self.mesh.shape["model"] if self._columns(x) else 1

    def by_part(self, x: jax.Array) -> jax.Array:
        """[groups, tokens, parts] as [groups, parts, tokens], each device with its own: long axes come last."""
        return self._put(x.swapaxes(1, 2), "data", "model" if x.shape[2] > 1 else None, None)

    def _columns(self, x: jax.Array) -> str | None:
        return "model" if x.shape[-1] % self.mesh.shape["model"] == 0 else None

    def _put(self, x: jax.Array, *axes: str | None) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))


# Turned in a program of its own: as part of the write, a CPU is thirty times slower at it.
@lru_cache(256)
def _turner(transform: Callable, dtype: jnp.dtype, sharding: NamedSharding) -> Callable:
    def turn(source: jax.Array) -> jax.Array:
        # Whole on each device, exchanged between them, before each takes its part.
        whole = jax.lax.with_sharding_constraint(source, NamedSharding(sharding.mesh, PartitionSpec()))
        return transform(whole).astype(dtype)

    return jax.jit(turn, out_shardings=sharding)


@lru_cache(256)
def _filler(sharding: NamedSharding) -> Callable:
    def fill(parameter: jax.Array, part: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        return jax.lax.dynamic_update_slice(
            parameter, jnp.expand_dims(part, tuple(range(len(index)))), (*index, *(0,) * part.ndim)
        )

    return jax.jit(fill, out_shardings=sharding, donate_argnums=0)
