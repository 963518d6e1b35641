"""The fused attention kernel on a GPU: next to torch SDPA and jax's cuDNN and XLA, and right for every length.

In: nothing. Out: a table in microseconds per sequence, non-causal, float16, H=8, Dh=64, S in {128, 256, 512}, B in
{8, 16, 32}; with `--sweep` the largest error over S from 1 to 1024, or over each n-th of them, which compiles a kernel
for each length; with `--output` all of it raw. `packed_attention.py` measures packed documents. *Device* is the
time of `CALLS` dependent calls in one program (a jit, for torch a CUDA graph) over their number, *call* that of
`CALLS` calls from Python. Each number is a median over `--repeats` rounds in which the implementations take turns.

    python benchmarks/attention.py --sweep 1 --output benchmarks/results/attention.json

Without a GPU it says so and exits with 2. torch is compared if it is installed with CUDA.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import give, gives_results  # noqa: E402
from extraction.models.attention_rule import AttentionRule  # noqa: E402
from extraction.models.fused_attention import TILES, FusedAttention, Tiles  # noqa: E402
from tests.helpers.attention_reference import exact_attention, relative_error  # noqa: E402

CASES = list(product((128, 256, 512), (8, 16, 32)))
HEADS, HEAD_WIDTH, CALLS = 8, 64, 50
RULE = AttentionRule(HEAD_WIDTH**-0.5)
Timed = Callable[[], None]  # does CALLS calls and waits for them


def draw(batch: int, length: int, heads: int = HEADS) -> list[np.ndarray]:
    """Independent q, k and v, float16 [B, S, H, Dh]."""
    rng = np.random.default_rng(length * 1000 + batch)
    return [rng.standard_normal((batch, length, heads, HEAD_WIDTH)).astype(np.float16) for _ in range(3)]


def chained(attend: Callable) -> Callable:
    """CALLS calls, each on the result of the one before."""

    def calls(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        for _ in range(CALLS):
            q = attend(q, k, v)
        return q

    return calls


def with_jax(attend: Callable, arrays: list[np.ndarray]) -> dict[str, Timed]:
    """`attend` compiled alone, and CALLS of it compiled together."""
    arrays = [jax.device_put(array) for array in arrays]
    alone = jax.jit(attend)
    one_by_one = chained(alone)
    together = jax.jit(one_by_one)  # traces `attend` once
    return {
        "device": lambda: together(*arrays).block_until_ready(),
        "call": lambda: one_by_one(*arrays).block_until_ready(),
    }


def with_torch(arrays: list[np.ndarray]) -> dict[str, Timed]:
    """Torch's scaled_dot_product_attention, in a CUDA graph and call by call. Raises ImportError without CUDA torch."""
    import torch

    if not torch.cuda.is_available():
        raise ImportError("torch is installed without CUDA")
    calls = chained(torch.nn.functional.scaled_dot_product_attention)
    tensors = [torch.from_numpy(array).cuda().transpose(1, 2).contiguous() for array in arrays]  # [B, H, S, Dh]
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        calls(*tensors)  # a graph is recorded of warm code only
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        calls(*tensors)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    def one_by_one() -> None:
        with torch.no_grad():
            calls(*tensors)
        torch.cuda.synchronize()

    return {"device": replay, "call": one_by_one}


def implementations(tiles: Tiles | None) -> dict[str, Callable]:
    """For each name, a function of the arrays that returns what is timed."""
    ours = partial(FusedAttention(causal=False, tiles=tiles), segment_ids=None, rule=RULE)
    theirs = {name: partial(jax.nn.dot_product_attention, implementation=name) for name in ("cudnn", "xla")}
    return {
        "fused": partial(with_jax, ours),
        "torch": with_torch,
        **{f"jax {name}": partial(with_jax, attend) for name, attend in theirs.items()},
    }


def measure(batch: int, length: int, tiles: Tiles | None, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Microseconds per sequence, all repeats, by implementation and kind; an empty dict for one that is not there."""
    arrays, timed = draw(batch, length), {}
    for name, make in implementations(tiles).items():
        try:
            timed[name] = make(arrays)
            for run in timed[name].values():
                run()
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            print(f"{name}: left out ({str(error).splitlines()[0]})", file=sys.stderr)
            timed[name] = {}
    found = {name: {kind: [] for kind in kinds} for name, kinds in timed.items()}
    for _ in range(repeats):
        for name, kinds in timed.items():
            for kind, run in kinds.items():
                begin = time.perf_counter()
                run()
                found[name][kind].append((time.perf_counter() - begin) / (CALLS * batch) * 1e6)
    return found


def sweep(step: int) -> dict[str, float]:
    """The largest relative error over every `step`-th S from 1 to 1024, causal and not, float16 against float64."""
    worst = {}
    for causal in (False, True):
        attend, errors = jax.jit(partial(FusedAttention(causal), segment_ids=None, rule=RULE)), []
        for length in range(1, 1025, step):
            arrays = draw(1, length, heads=2)
            ours = attend(*map(jnp.asarray, arrays))
            errors.append(relative_error(ours, exact_attention(*arrays, None, RULE, causal)))
        worst["causal" if causal else "full"] = float(max(errors))
    return worst


def machine() -> dict[str, str | None]:
    """What the numbers belong to."""
    try:
        import torch

        torch_version = f"{torch.__version__}, CUDA {torch.version.cuda}"
    except ImportError:
        torch_version = None
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.client.platform_version,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch_version,
        "command": " ".join(["python", *sys.argv]),
    }


def table(cases: list[dict]) -> str:
    """A line for each case: medians of all implementations, and ours over torch's."""
    lines = []
    for case in cases:
        medians = {
            f"{name} {kind}": statistics.median(values)
            for name, kinds in case["microseconds"].items()
            for kind, values in kinds.items()
        }
        ratios = {
            kind: f"{medians[f'fused {kind}'] / medians[f'torch {kind}']:.2f}"
            for kind in ("device", "call")
            if f"torch {kind}" in medians
        }
        lines.append(
            f"S={case['length']:4} B={case['batch']:3}  "
            + "  ".join(f"{name} {value:.2f}" for name, value in medians.items())
            + f"  fused/torch {ratios}"
        )
    return "\n".join(lines)


@click.command()
@click.option("--repeats", default=20, show_default=True, help="Rounds in which each implementation is timed once.")
@click.option("--tiles", default=None, help="Tiles of the kernel, as keys,stages, instead of its own choice.")
@click.option("--sweep", "sweep_step", type=int, help="Also check every n-th length from 1 to 1024.")
@gives_results
def main(repeats: int, tiles: str | None, sweep_step: int | None, as_json: bool, output: Path | None) -> None:
    """Measure."""
    if jax.default_backend() != "gpu":
        print(f"no GPU here, jax computes on {jax.default_backend()}: nothing was measured", file=sys.stderr)
        sys.exit(2)
    chosen = Tiles(*map(int, tiles.split(","))) if tiles else None
    cases = [
        {"length": length, "batch": batch, "microseconds": measure(batch, length, chosen, repeats)}
        for length, batch in CASES
    ]
    used = str(chosen or TILES[HEAD_WIDTH])
    results = {"machine": machine(), "tiles": used, "calls": CALLS, "cases": cases} | (
        {"worst_error": sweep(sweep_step)} if sweep_step else {}
    )
    give(results, f"{table(cases)}\n{results.get('worst_error', '')}", as_json, output)


if __name__ == "__main__":
    main()
