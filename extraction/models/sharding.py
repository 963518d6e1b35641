"""The mesh `(data, model)` of one host, and the sharding of each parameter and result.

In: the shape of a mesh, the devices. Out: a mesh, and arrays placed on it. `data` splits the rows of a step; `model`
splits the heads and the inner width of each block. Guarantee: the mesh changes values by rounding only.

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

from .devices import Device
from .hooks import BY_SUFFIX
from .mesh import MeshShape

# A parameter's last axes, by the end of its path. The first two kinds of kernel are followed by the third in each
# block, so that one sum over `model` is all that attention and mlp need. A stack of experts is cut as one mlp is.
_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention\.(q|k|v|o|gate|queries|keys|values)\.kernel", ("model", None, None)),
    (r"attention\.(rate|decay)\.kernel", ("model", None)),
    (r"(mlp|mixture|per_layer)\.(.*\.)?(gate|up)\.kernel", (None, "model")),
    (r"(mlp|mixture|per_layer)\.(.*\.)?down\.kernel", ("model", None)),
    (r"attention\.(q|k|v|gate)\.bias", ("model", None)),
    (r"attention\.sinks", ("model",)),
    (r"mlp\.(.*\.)?(gate|up)\.bias", ("model",)),
    # Split by width and not by token: a lookup of a token is then local for any size of the vocabulary.
    (r"embedding\.(table|positions|per_layer\.(table|kernel))", (None, "model")),
    (r"head\.table", ("model", None)),
    (r"head\.bias", ("model",)),
    (r"attention\.(q_down|kv_down|k_rotated)\..*|mlp\.correction", ()),
    (r"(mlp|mixture)\.(router|shared_gate)\..*|.*norm.*\.(scale|bias)|.*(o|down)\.bias|factor", ()),
    (r"attention\.(queries|keys|values)\.filter(_bias)?|attention\.decay\.(log_rate|bias)|attention\.skip", ()),
)


def mesh_of(shape: MeshShape, devices: Sequence[Device]) -> Mesh:
    """Return a mesh of the first devices. Neighbours share weights, since they exchange the most data."""
    used = np.array(devices[: shape.data * shape.model]).reshape(shape.data, shape.model)
    return Mesh(used, ("data", "model"))


class Placement:
    """The sharding of parameters on a mesh, and the functions that fill them."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def spec(self, path: Sequence[str], shape: tuple[int, ...]) -> PartitionSpec:
        """Return the sharding of a parameter of this shape, which includes the axes of layers and experts."""
        name = ".".join(path)
        if self.mesh.shape["model"] == 1:
            return PartitionSpec()
        axes = next((axes for pattern, axes in _AXES if re.fullmatch(rf"(.*\.)?({pattern})", name)), None)
        if axes is None:
            raise ValueError(f"{name}: no rule says how it is shared by several devices")
        few = re.search(r"attention\.(k|v|queries|keys)\.|head\.", name)
        if few and shape[-len(axes)] % self.mesh.shape["model"]:
            axes = ()  # key heads or a vocabulary that devices do not divide: each has all of them
        return PartitionSpec(*(None,) * (len(shape) - len(axes)), *axes)

    def sharding(self, path: Sequence[str], shape: tuple[int, ...]) -> NamedSharding:
        """Return the sharding of a parameter of this shape on this mesh."""
        return NamedSharding(self.mesh, self.spec(path, shape))

    def send(self, tensor: np.ndarray) -> jax.Array:
        """Send a tensor to the devices, in equal parts if an axis is divisible, else whole to each."""
        axis = next((axis for axis, size in enumerate(tensor.shape) if size % self.mesh.size == 0), None)
        cut = (None,) * axis + (("data", "model"),) if axis is not None else ()
        return jax.device_put(tensor, NamedSharding(self.mesh, PartitionSpec(*cut)))

    def empty(self, path: Sequence[str], shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        """Return a parameter of zeros, to be filled."""
        return jnp.zeros(shape, dtype, device=self.sharding(path, shape))

    def transform(
        self, path: Sequence[str], sources: Sequence[jax.Array], transform: Callable, like: jax.ShapeDtypeStruct
    ) -> jax.Array:
        """Return tensors transformed to one, cast and sharded: a parameter, or one part of a stacked one."""
        own = self.sharding(path, like.shape)
        return _compiled_transform(transform, jnp.dtype(like.dtype), own)(*sources)

    def fill(self, path: Sequence[str], parameter: jax.Array, index: tuple[int, ...], part: jax.Array) -> jax.Array:
        """Return the parameter with `part` at `index` of its leading axes, in the same memory."""
        filler = _filler(self.sharding(path, parameter.shape))
        return filler(parameter, part, tuple(np.int32(number) for number in index))


@dataclass(frozen=True)
class Layout:
    """The sharding of a step's tensors: rows over `data`, and columns of captured tensors over `model`."""

    mesh: jax.sharding.Mesh

    def rows(self, x: jax.Array) -> jax.Array:
        """Return x [B, ...], sharded so that each device of a group has all columns."""
        return self._put(x, "data")

    def tapped(self, kind: str, x: jax.Array) -> jax.Array:
        """Return x [B, T, width] of a hook point in a block, with the sharding that it has there."""
        return x if BY_SUFFIX[kind].is_split else self.rows(x)

    def captured(self, x: jax.Array) -> jax.Array:
        """Return x [places, B or groups, T or tokens, width], sharded so that each device has its own columns."""
        return self._put(x, None, "data", None, self._columns(x))

    def compacted(self, x: jax.Array) -> jax.Array:
        """Return x [groups, tokens, width], sharded as captured tensors."""
        return self._put(x, "data", None, self._columns(x))

    def parts(self, x: jax.Array) -> int:
        """Return the number of parts that the columns of [..., width] are split into."""
        return self.mesh.shape["model"] if self._columns(x) else 1

    def by_part(self, x: jax.Array) -> jax.Array:
        """Return [groups, parts, tokens] of [groups, tokens, parts], each device with its own part."""
        return self._put(x.swapaxes(1, 2), "data", "model" if x.shape[2] > 1 else None, None)

    def _columns(self, x: jax.Array) -> str | None:
        return "model" if x.shape[-1] % self.mesh.shape["model"] == 0 else None

    def _put(self, x: jax.Array, *axes: str | None) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))


# A program of its own: as part of the write, a CPU is thirty times slower.
@lru_cache(256)
def _compiled_transform(transform: Callable, dtype: jnp.dtype, sharding: NamedSharding) -> Callable:
    def transformed(*sources: jax.Array) -> jax.Array:
        # Whole on each device, exchanged between them, before each takes its part.
        whole = jax.lax.with_sharding_constraint(sources, NamedSharding(sharding.mesh, PartitionSpec()))
        return transform(*whole).astype(dtype)

    return jax.jit(transformed, out_shardings=sharding)


@lru_cache(256)
def _filler(sharding: NamedSharding) -> Callable:
    def fill(parameter: jax.Array, part: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
        return jax.lax.dynamic_update_slice(
            parameter, jnp.expand_dims(part, tuple(range(len(index)))), (*index, *(0,) * part.ndim)
        )

    return jax.jit(fill, out_shardings=sharding, donate_argnums=0)
