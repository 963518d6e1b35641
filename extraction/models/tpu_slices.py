"""TPU slices of one host by their accelerator types, described without a TPU.

In: a name such as `v5litepod-8`. Out: its chips with their published numbers, and with `libtpu` installed devices to
compile programs for, on any machine. Guarantee: no TPU is opened. Cost: 0.3 s to load libtpu.

The numbers are from the system architecture pages of cloud.google.com/tpu/docs (v4, v5e, v5p, v6e): peak bfloat16
operations, memory and its bandwidth, all for one chip.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import InvalidRequest
from .devices import Device

# Values that libtpu would otherwise request from the metadata server of a TPU VM.
_NOT_ON_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # where no TPU is opened, several processes may compile at once


@dataclass(frozen=True)
class Chip:
    """Per chip: floating point operations in a second, bytes, bytes in a second."""

    flops: float
    memory_bytes: int
    bandwidth: float


@dataclass(frozen=True)
class Slice:
    """Some chips of one host; each is one device. `topology` and `settings` are libtpu's names for them."""

    chips: int
    chip: Chip
    topology: str
    settings: dict[str, Any] = field(default_factory=dict)


_V4 = Chip(275e12, 32 << 30, 1228e9)
_V5E = Chip(197e12, 16 << 30, 819e9)
_V5P = Chip(459e12, 95 << 30, 2765e9)
_V6E = Chip(918e12, 32 << 30, 1640e9)
_ALONE = {"chips_per_host_bounds": (1, 1, 1)}
_BOTH_CORES = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}  # as one device, as on a TPU VM
SLICES = {
    "v4-8": Slice(4, _V4, "v4:2x2x1", _BOTH_CORES),
    "v5litepod-1": Slice(1, _V5E, "v5e:1x1", _ALONE),
    "v5litepod-4": Slice(4, _V5E, "v5e:2x2"),
    "v5litepod-8": Slice(8, _V5E, "v5e:2x4"),
    "v5p-8": Slice(4, _V5P, "v5p:2x2x1", _BOTH_CORES),
    "v6e-1": Slice(1, _V6E, "v6e:1x1", _ALONE),
    "v6e-4": Slice(4, _V6E, "v6e:2x2"),
    "v6e-8": Slice(8, _V6E, "v6e:2x4"),
}


def slice_named(name: str) -> Slice:
    """Return the slice of this name. Raises InvalidRequest that lists the known names."""
    if name not in SLICES:
        raise InvalidRequest(f"--tpu {name}: known are {', '.join(SLICES)}")
    return SLICES[name]


def can_describe() -> bool:
    """Return whether the compiler for TPUs is installed."""
    return importlib.util.find_spec("libtpu") is not None


def describe(wanted: Slice) -> Sequence[Device]:
    """Return devices of the slice to compile for. Raises RuntimeError if libtpu cannot describe them."""
    from jax.experimental import topologies

    for name, value in _NOT_ON_A_TPU.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=wanted.topology, **wanted.settings).devices
