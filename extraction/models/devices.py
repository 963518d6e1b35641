"""The devices of this host, and their errors as domain errors.

In: the devices that jax opens. Out: `Hardware`. Guarantee: a host with an accelerator's package never computes on its
CPU unless JAX_PLATFORMS asks for it. jax would do so silently when the accelerator is busy or gone: slowly, and in
another dtype than the other workers. Cost: the start of jax, once in a process.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax

from ..core.errors import InvalidRequest, TryAgain

Device: TypeAlias = Any  # a jax.Device: jaxlib ships no types for it
_GONE = ("ABORTED", "CANCELLED", "DATA_LOSS", "DEADLINE_EXCEEDED", "UNAVAILABLE")
_FAILED, _NO_MEMORY = "INTERNAL", "RESOURCE_EXHAUSTED"
_OF_HOST = re.compile(r"\bhost memory\b|_host_bfc\b")
HOST_LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"  # of a GPU's pinned host memory, 64 by default
_PACKAGES = {"TPU": "libtpu", "GPU": "jax_cuda13_plugin"}


class DeviceKind(NamedTuple):
    """The target of a compilation: `cpu`, `gpu` or `tpu`, and the name of the chip."""

    platform: str
    name: str


@dataclass(frozen=True)
class Hardware:
    """The devices that a step runs on.

    `memory_bytes` is the memory for arrays on one device, None if it is unknown, as on a CPU. `compute_dtype` is the
    dtype for `auto`: bfloat16 if the hardware multiplies it fast. `device` is what a step is compiled for.
    """

    name: str
    num_devices: int
    memory_bytes: int | None
    compute_dtype: str
    device: DeviceKind = DeviceKind("cpu", "cpu")


def open_devices() -> Hardware:
    """Open the devices of this host. Raises TryAgain if an accelerator does not open."""
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise TryAgain(f"jax cannot open its devices: {' '.join(str(error).split())[:300]}") from error
    missing = next((name for name, package in _PACKAGES.items() if importlib.util.find_spec(package)), None)
    if devices[0].platform == "cpu" and missing and not os.environ.get("JAX_PLATFORMS"):
        raise TryAgain(
            f"{_PACKAGES[missing]} is installed, but no {missing} could be opened: is another process using it? "
            "Set JAX_PLATFORMS=cpu to compute on the CPU"
        )
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    dtype = "float32" if devices[0].platform == "cpu" else "bfloat16"
    device = DeviceKind(devices[0].platform, devices[0].device_kind)
    return Hardware(f"{len(devices)} x {device.name}", len(devices), memory, dtype, device)


def current_device() -> DeviceKind:
    """Return the devices of the mesh that is set, which may be another machine's, else of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return DeviceKind(jax.default_backend(), jax.devices()[0].device_kind)
    return DeviceKind(device.platform, device.device_kind)


def pinned_bytes(device: DeviceKind) -> int | None:
    """Return the host memory that XLA pins at most, through which the results of a GPU pass; None for other devices."""
    gib = os.environ.get(HOST_LIMIT, "")
    return (int(gib) if gib.isdecimal() else 64) << 30 if device.platform == "gpu" else None


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Raise InvalidRequest if the device or the host has too little memory, TryAgain if the device fails."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        status, rest = _status_of(error)
        lack = lack_of_memory(error)
        if lack:
            raise InvalidRequest(lack) from error
        if status in (*_GONE, _FAILED):
            raise TryAgain(f"the device failed: {status}: {rest[:200]}") from error
        raise


def lack_of_memory(error: Exception) -> str | None:
    """Return which memory a step does not fit into, and what to do; None if the error says something else."""
    status, rest = _status_of(error)
    if status != _NO_MEMORY:
        return None
    memory, advice = "the device's memory", "a smaller --batch-size or --seq-len needs less"
    if _OF_HOST.search(rest):
        memory = "the host memory that XLA pins for results"
        advice += f", and {HOST_LIMIT}=128 in the environment allows 128 GiB in place of 64"
    return f"the step does not fit into {memory}; {advice} ({rest[:200]})"


def is_gone(error: Exception) -> bool:
    """Return whether an error says that the device disappeared, not that it cannot do what was asked."""
    return _status_of(error)[0] in _GONE


def is_of_device(error: Exception) -> bool:
    """Return whether an error of a program that runs may have its cause in the device, not in the program."""
    return _status_of(error)[0] in (*_GONE, _FAILED, _NO_MEMORY)


def _status_of(error: Exception) -> tuple[str, str]:
    """Return the status of an error of jax's runtime, "" for another error, and the rest of its text."""
    text = " ".join(str(error).split())
    status, _, rest = text.partition(":")
    return (status, rest.strip()) if isinstance(error, jax.errors.JaxRuntimeError) else ("", text)
