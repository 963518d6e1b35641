"""The accelerators of one host, by name, with their published figures and prices; described without opening one.

In: a name such as `v5litepod-8`, `h100`, `h100:8` or `cpu`. Out: its chips, and for a TPU slice with `libtpu` installed
devices to compile programs for, on any machine. Guarantee: no accelerator is opened. Cost: 0.3 s to load libtpu; for
`cpu`, half a second in which this machine's rates are measured.
"""

import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.errors import InvalidRequest
from .devices import Device, DeviceKind

# Values that libtpu would otherwise request from the metadata server of a TPU VM.
_NOT_ON_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # where no TPU is opened, several processes may compile at once


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        flops: operations in a second, in bfloat16 and without sparsity; on a CPU in float32.
        float32_flops: the same in float32, whose products a step computes at jax's precision `highest`.
        memory_bytes: for arrays; None where the worker does not know it, as on a CPU.
        bandwidth: of its memory, in bytes a second.
        link: bytes a second that it sends over one link to another chip; 0 without a link.
        links: those that an exchange among more than two chips uses at once.
        efficiency: the share of `flops` that a step reaches, assumed unless it was measured.
        to_host: bytes a second from all chips to the host's memory, likewise.
        on_demand, spot: prices in USD for an hour; None if they were not found.
    """

    flops: float
    float32_flops: float
    memory_bytes: int | None
    bandwidth: float
    link: float = 0.0
    links: int = 1
    efficiency: float = 0.5
    to_host: float = 8e9
    on_demand: float | None = None
    spot: float | None = None

    def flops_in(self, compute_dtype: str) -> float:
        """Return the operations in a second of a step in this dtype."""
        return self.float32_flops if compute_dtype == "float32" else self.flops

    def exchange_rate(self, chips: int) -> float:
        """Return the bytes a second that each of some chips sends in an exchange among them."""
        return self.link * min(self.links, chips - 1)


@dataclass(frozen=True)
class Accelerator:
    """Some chips of one host, each a device of `kind`. `topology` and `settings` are libtpu's names for a TPU slice."""

    chips: int
    chip: Chip
    kind: DeviceKind
    topology: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


# Figures as published, looked up on 2026-11-27.
# - TPU: the pages v4, v5e, v5p and v6e of docs.cloud.google.com/tpu/docs. A link has, in one direction, half of the
#   "bidirectional ICI bandwidth" of the chip, over its ports (v5e and v6e 4, v5p 6). The page on v4 has no such
#   figure: that of v5e is assumed. In float32 each product takes six in bfloat16 (jax.lax.Precision.HIGHEST).
# - GPU: NVIDIA's data sheets of H100 SXM, H200 SXM, A100 80GB SXM and L4, as quoted by pages on them; in float32
#   without tensor cores, which would round to TensorFloat-32. jax reserves 75% of a GPU's memory
#   (XLA_PYTHON_CLIENT_MEM_FRACTION). NVLink is a switch: one direction of it is one link here.
#   The rate to the host is that of an H200, measured on 2026-11-28 (docs/gpu.md); a worker there reached 48% of the
#   peak, about what is assumed.
_GPU_SHARE = 0.75
_PASSES = 6
_HOPPER = Chip(989e12, 67e12, int(_GPU_SHARE * 80e9), 3350e9, 450e9, to_host=54e9)
# Prices of Google Cloud in us-central1, an hour of one chip: catalogs/v8/gcp/vms.csv of github.com/skypilot-org/
# skypilot-catalog, commit 006059e, read on 2026-11-27. It has none for v4 there, and contradictory ones for GPUs.
PRICES_OF = "Google Cloud us-central1, skypilot-catalog 006059e, read 2026-11-27"
# Standard storage in us-central1: $0.000027397 for a GiB and hour, 730 hours.
STORAGE_PRICE, STORAGE_PRICE_OF = 0.02, "Cloud Storage us-central1, cloud.google.com/storage/pricing, 2026-09-20"
_V4 = Chip(275e12, 275e12 / _PASSES, 32 << 30, 1200e9, 50e9, 2)
_V5E = Chip(197e12, 197e12 / _PASSES, 16 << 30, 819e9, 50e9, 2, on_demand=1.20, spot=0.245)
_V5P = Chip(459e12, 459e12 / _PASSES, 95 << 30, 2765e9, 100e9, 2, on_demand=4.20, spot=0.836)
_V6E = Chip(918e12, 918e12 / _PASSES, 32 << 30, 1638e9, 100e9, 2, on_demand=2.70, spot=0.544)
GPUS = {
    "h100": _HOPPER,
    "h200": replace(_HOPPER, memory_bytes=int(_GPU_SHARE * 141e9), bandwidth=4800e9),
    "a100": Chip(312e12, 19.5e12, int(_GPU_SHARE * 80e9), 2039e9, 300e9),
    "l4": Chip(121e12, 30.3e12, int(_GPU_SHARE * 24e9), 300e9, 32e9),
}
_ALONE = {"chips_per_host_bounds": (1, 1, 1)}
_BOTH_CORES = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}  # as one device, as on a TPU VM
_TPU = DeviceKind("tpu", "TPU")
SLICES = {
    "v4-8": Accelerator(4, _V4, _TPU, "v4:2x2x1", _BOTH_CORES),
    "v5litepod-1": Accelerator(1, _V5E, _TPU, "v5e:1x1", _ALONE),
    "v5litepod-4": Accelerator(4, _V5E, _TPU, "v5e:2x2"),
    "v5litepod-8": Accelerator(8, _V5E, _TPU, "v5e:2x4"),
    "v5p-8": Accelerator(4, _V5P, _TPU, "v5p:2x2x1", _BOTH_CORES),
    "v6e-1": Accelerator(1, _V6E, _TPU, "v6e:1x1", _ALONE),
    "v6e-4": Accelerator(4, _V6E, _TPU, "v6e:2x2"),
    "v6e-8": Accelerator(8, _V6E, _TPU, "v6e:2x4"),
}
CPU = "cpu"
_EFFICIENCY_OF_CPU = 0.75  # measured, as docs/performance.md says
# What jax calls the chips; the GPUs in their SXM form.
KINDS = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA H100 80GB HBM3": GPUS["h100"],
    "NVIDIA H200": GPUS["h200"],
    "NVIDIA A100-SXM4-80GB": GPUS["a100"],
    "NVIDIA L4": GPUS["l4"],
}


def accelerator_named(name: str) -> Accelerator:
    """Return the accelerator of this name. Raises InvalidRequest that lists the known names."""
    if name in SLICES:
        return SLICES[name]
    if name == CPU:
        return Accelerator(1, _this_machine(), DeviceKind("cpu", CPU))
    gpu = re.fullmatch(r"([a-z0-9]+)(?::([1248]))?", name)
    if gpu and gpu[1] in GPUS:
        return Accelerator(int(gpu[2] or 1), GPUS[gpu[1]], DeviceKind("gpu", gpu[1].upper()))
    raise InvalidRequest(
        f"--accelerator {name}: not known; known are the TPU slices of one host {', '.join(SLICES)}, the GPUs "
        f"{', '.join(GPUS)} (h100:8 is eight of them) and cpu, this machine. Of a slice of several hosts each host "
        "runs a worker of its own: name the slice of one host"
    )


def _this_machine() -> Chip:
    """Measure the rate of matrix products in float32 and of copies on this machine, the best of five each."""
    matrix, block = np.ones((1024, 1024), np.float32), np.ones(64 << 20, np.uint8)
    flops = 2 * 1024**3 / _fastest(lambda: matrix @ matrix)
    return Chip(flops, flops, None, 2 * block.nbytes / _fastest(block.copy), efficiency=_EFFICIENCY_OF_CPU)


def _fastest(call: Callable[[], object]) -> float:
    def seconds() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return min(seconds() for _ in range(5))


def can_describe() -> bool:
    """Return whether the compiler for TPUs is installed."""
    return importlib.util.find_spec("libtpu") is not None


def describe(wanted: Accelerator) -> Sequence[Device]:
    """Return devices of the slice to compile for. Raises RuntimeError if libtpu cannot describe them."""
    from jax.experimental import topologies

    assert wanted.topology is not None, f"{wanted} is no TPU slice"
    for name, value in _NOT_ON_A_TPU.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=wanted.topology, **wanted.settings).devices
