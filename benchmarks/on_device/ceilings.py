"""What the machine can do at best: bytes copied in its memory, bfloat16 products in jax and in torch.

In: a setting. Out: GB/s, bytes read and written, and TFLOP/s, each the best of several rounds; the rate to the host,
into its pinned memory, as results of a step go, and into other memory. Cost: some seconds.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.device import Setting


def best_seconds(run: Callable[[], object], rounds: int = 5) -> float:
    """The least seconds of some rounds, after one that warms up."""
    run()
    return min(seconds_of(run) for _ in range(rounds))


def seconds_of(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def ceilings(setting: Setting) -> dict:
    """Measure."""
    import jax
    import jax.numpy as jnp

    size, calls, elements = (128, 2, 1 << 16) if setting.tiny else (8192, 10, 1 << 30)
    key = jax.random.key(0)
    a, b = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in jax.random.split(key))
    device = jax.devices()[0]
    setting.save({"device": device.device_kind, "platform": device.client.platform_version, "jax": jax.__version__})

    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        for _ in range(calls):
            a = (a @ b) * size**-0.5  # as large as before
        return a

    together = jax.jit(products)
    seconds = best_seconds(lambda: together(a, b).block_until_ready())
    setting.save({"jax_matmul_tflops": 2 * size**3 * calls / seconds / 1e12})
    array = jnp.zeros(elements, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    seconds = best_seconds(lambda: add(array).block_until_ready())
    setting.save({"jax_copy_gb_per_s": 2 * array.nbytes / seconds / 1e9})
    pinned = array.sharding.with_memory_kind("pinned_host")
    for name, fetch in (("pinned", lambda new: jax.device_put(new, pinned).block_until_ready()), ("other", np.asarray)):
        seconds = min(seconds_of(partial(fetch, add(array + number).block_until_ready())) for number in range(3))
        setting.save({f"to_host_{name}_gb_per_s": array.nbytes / seconds / 1e9})
    return {"torch": torch_matmul(size, calls)}


def torch_matmul(size: int, calls: int) -> dict:
    """The same products in torch, or why there are none."""
    try:
        import torch
    except ImportError as error:
        return {"left_out": str(error)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def run() -> None:
        for _ in range(calls):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    return {"version": torch.__version__, "matmul_tflops": 2 * size**3 * calls / best_seconds(run) / 1e12}
