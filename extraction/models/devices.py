"""The devices of this host, opened, or a clear refusal.

Out: what jax computes on. Guarantee: a host that was set up for an accelerator never computes on its CPU unasked, which
jax does in silence when the accelerator is taken or gone: it would be slow, and in another dtype than the other workers.
Cost: what it takes jax to open the devices, once in a process.
"""

import importlib.util
import os

import jax

from ..errors import TryAgain

_PACKAGES = {"TPU": "libtpu", "GPU": "jax_cuda13_plugin"}


def open_devices() -> str:
    """What jax computes on here, such as `4 x TPU v5 lite`. Raises TryAgain if an accelerator cannot be opened."""
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
    return f"{len(devices)} x {devices[0].device_kind}"
