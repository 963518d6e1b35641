"""The rate of large matrix products on this machine's CPU, in torch and in XLA, and the instruction set behind it.

In: nothing. Out: GFLOP/s for each library and dtype, the median of `--rounds` rounds in which all take turns, each for
the better of two sizes: a square, and a step's tokens times the mlp of SmolLM2-135M. Guarantee: XLA's bfloat16 product
returns float32, as in the step. Cost: about 20 seconds; minutes for torch's bfloat16 on a CPU without AVX-512.

    python benchmarks/matmul_rate.py --output FILE
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.outcome import about, give, gives_results  # noqa: E402

SIZES = ((2048, 2048, 2048), (4096, 576, 1536))
SECONDS = 0.4  # of products without a pause, in each turn
WIDE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def instruction_set() -> list[str]:
    """Which wide instructions the CPU has, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in WIDE if name in flags]


def torch_product(size: tuple[int, int, int], dtype: str) -> Callable[[], object]:
    import torch

    m, k, n = size
    a, b = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((m, k), (k, n)))
    return lambda: torch.mm(a, b)


def xla_product(size: tuple[int, int, int], dtype: str) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    m, k, n = size
    a, b = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in ((m, k), (k, n)))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return lambda: product(a, b).block_until_ready()


LIBRARIES = {"torch": torch_product, "xla": xla_product}


def rate(product: Callable[[], object], size: tuple[int, int, int]) -> float:
    """GFLOP/s of one turn, after a product to warm up."""
    product()
    begin, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < SECONDS:
        product()
        count += 1
    return 2e-9 * size[0] * size[1] * size[2] * count / seconds


def matmul_rates(rounds: int, dtypes: Sequence[str]) -> dict[str, dict[str, float]]:
    """GFLOP/s by library and dtype."""
    cases = [(library, dtype, size) for library in LIBRARIES for dtype in dtypes for size in SIZES]
    products = {case: LIBRARIES[case[0]](case[2], case[1]) for case in cases}
    found: dict[tuple, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            found[case].append(rate(products[case], case[2]))

    def best(library: str, dtype: str) -> float:
        return round(max(statistics.median(found[library, dtype, size]) for size in SIZES), 1)

    return {library: {dtype: best(library, dtype) for dtype in dtypes} for library in LIBRARIES}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Of which the median is taken.")
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
@gives_results
def main(rounds: int, dtypes: str, as_json: bool, output: Path | None) -> None:
    """Measure."""
    results = about("jax", "jaxlib", "torch") | {"instructions": instruction_set()}
    results |= {"gflops": matmul_rates(rounds, dtypes.split(","))}
    lines = [f"instructions: {', '.join(results['instructions']) or 'unknown'}"]
    lines += [f"{name}: {found} GFLOP/s" for name, found in results["gflops"].items()]
    give(results, "\n".join(lines), as_json, output)


if __name__ == "__main__":
    main()
