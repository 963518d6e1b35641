"""The mesh `(data, model)` of one host as numbers: the valid shapes, and the choice. No jax.

`data` groups of devices share the rows of a step; `model` devices in each group share the weights. In: a model's
configuration, the memory that a step needs, the devices' number and memory. Out: a `MeshShape`, or InvalidRequest.
Guarantee: a chosen mesh fits the model. Cost: none.
"""

import re
from dataclasses import dataclass

from ..core.errors import InvalidRequest
from .config import ModelConfig

USABLE = 0.9  # of a device's memory; the rest is a reserve


@dataclass(frozen=True)
class MeshShape:
    """`data` groups of devices share the rows, `model` devices in each share the weights."""

    data: int
    model: int

    def __str__(self) -> str:
        return f"data={self.data},model={self.model}"

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Return the mesh of `data=4,model=2`; a missing axis is 1. Raises InvalidRequest."""
        parts = text.split(",")
        found = [re.fullmatch(r"\s*(data|model)\s*=\s*([1-9]\d{0,5})\s*", part) for part in parts]
        axes = {match[1]: int(match[2]) for match in found if match}
        if len(axes) < len(parts):
            raise InvalidRequest(f"--mesh {text}: write it like data=4,model=2")
        return cls(axes.get("data", 1), axes.get("model", 1))


@dataclass(frozen=True)
class Demand:
    """The needs of a step: rows, bytes of all its weights, bytes of one row's results and working set."""

    rows: int
    weight_bytes: int
    row_bytes: int

    def bytes_on(self, mesh: MeshShape) -> int:
        """Estimate the bytes on each device."""
        return self.weight_bytes // mesh.model + self.rows // mesh.data * self.row_bytes // mesh.model


def misfit(mesh: MeshShape, config: ModelConfig, rows: int, num_devices: int) -> str | None:
    """Return the reason why this mesh is invalid, or None."""
    if mesh.data * mesh.model > num_devices:
        return f"needs {mesh.data * mesh.model} devices, this host has {num_devices}"
    if rows % mesh.data:
        return f"--batch-size {rows} is not divisible by data={mesh.data}"
    for kind in dict.fromkeys(config.layers):
        sizes = {"heads": kind.num_heads, "mlp columns": kind.mlp_width, "columns": config.width}
        if kind.experts and kind.experts.width:
            sizes["columns of an expert"] = kind.experts.width
        if config.per_layer:
            sizes["columns of a layer's embedding"] = config.per_layer.width
        if kind.experts and kind.experts.shared_width:
            sizes["columns of the shared expert"] = kind.experts.shared_width
        for name, size in sizes.items():
            if size % mesh.model:
                return f"the model's {size} {name} are not divisible by model={mesh.model}"
        kv_heads = kind.num_kv_heads
        if kv_heads % mesh.model and mesh.model % kv_heads:
            return f"model={mesh.model} is neither a divisor nor a multiple of the model's {kv_heads} key-value heads"
    return None


def choose_mesh(config: ModelConfig, demand: Demand, num_devices: int, device_bytes: int | None) -> MeshShape:
    """Choose rows over as many devices as divide them, weights over as few as their memory allows, if known.

    Raises InvalidRequest if the step fits into no mesh.
    """
    possible = [
        MeshShape(max(data for data in range(1, num_devices // model + 1) if demand.rows % data == 0), model)
        for model in range(1, num_devices + 1)
        if num_devices % model == 0 and misfit(MeshShape(1, model), config, demand.rows, num_devices) is None
    ]
    if device_bytes is None:
        return possible[0]
    for mesh in possible:
        if demand.bytes_on(mesh) <= USABLE * device_bytes:
            return mesh
    least = min(demand.bytes_on(mesh) for mesh in possible)
    raise InvalidRequest(
        f"the step needs about {least / 2**30:.1f} GiB on each of {num_devices} devices, which have "
        f"{device_bytes / 2**30:.1f}, of which {USABLE * device_bytes / 2**30:.1f} ({USABLE:.0%}) may be used; take a "
        "smaller --batch-size, lower layers or a larger machine, or set --mesh"
    )
