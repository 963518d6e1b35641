"""The fused attention kernel on a GPU: next to torch SDPA and jax's cuDNN and XLA, and right for every length.

In: nothing. Out: a table in microseconds per sequence, non-causal, float16, H=8, Dh=64, S in {128, 256, 512}, B in
{8, 16, 32}; with `--sweep` the largest error over S from 1 to 1024, or over each n-th of them, which compiles a kernel
for each length; with `--output` all of it raw. `packed_attention.py` measures packed documents. *Device* is the time of
the kernels, as CUPTI measures it for jax's profiler, torch's too; *call* that of `CALLS` calls from Python, each on the
result of the one before, over their number: the median of `--repeats` rounds in which the implementations take turns.

    python benchmarks/attention.py --sweep 1 --output benchmarks/results/attention.json

Without a GPU it says so and exits with 2. torch is compared if it is installed with CUDA.
"""

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from extraction.models.fused_attention import FusedAttention  # noqa: E402
from tests.helpers.attention_reference import exact_attention, relative_error  # noqa: E402

CASES = list(product((128, 256, 512), (8, 16, 32)))
HEADS, HEAD_WIDTH, CALLS = 8, 64, 50
RULE = AttentionRule(HEAD_WIDTH**-0.5)
Timed = Callable[[], None]  # does CALLS calls and waits for them


def draw(batch: int, length: int, heads: int = HEADS) -> list[np.ndarray]:
    """Independent q, k and v, float16 [B, S, H, Dh]."""
    rng = np.random.default_rng(length * 1000 + batch)
    return [rng.standard_normal((batch, length, heads, HEAD_WIDTH)).astype(np.float16) for _ in range(3)]


def with_jax(attend: Callable, arrays: list[np.ndarray]) -> Timed:
    """`attend`, compiled."""
    arrays = [jax.device_put(array) for array in arrays]
    attend = jax.jit(attend)

    def run() -> None:
        q, k, v = arrays
        for _ in range(CALLS):
            q = attend(q, k, v)
        q.block_until_ready()

    run()
    return run


def with_torch(arrays: list[np.ndarray]) -> Timed:
    """Torch's scaled_dot_product_attention. Raises ImportError without CUDA torch."""
    import torch

    if not torch.cuda.is_available():
        raise ImportError("torch is installed without CUDA")
    tensors = [torch.from_numpy(array).cuda().transpose(1, 2).contiguous() for array in arrays]  # [B, H, S, Dh]

    def run() -> None:
        q, k, v = tensors
        with torch.no_grad():
            for _ in range(CALLS):
                q = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.cuda.synchronize()

    run()
    return run


def implementations() -> dict[str, Callable]:
    """For each name, a function of the arrays that returns what is timed."""
    ours = partial(FusedAttention(causal=False), segment_ids=None, rule=RULE)
    theirs = {name: partial(jax.nn.dot_product_attention, implementation=name) for name in ("cudnn", "xla")}
    return {
        "fused": partial(with_jax, ours),
        "torch": with_torch,
        **{f"jax {name}": partial(with_jax, attend) for name, attend in theirs.items()},
    }


def prepare(case: tuple[int, int]) -> dict[str, Timed]:
    """What is timed of a case (S, B), by implementation; what cannot run here is left out, and why is said."""
    length, batch = case
    arrays, timed = draw(batch, length), {}
    for name, make in implementations().items():
        try:
            timed[name] = make(arrays)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            print(f"{name}: left out ({str(error).splitlines()[0]})", file=sys.stderr)
    return timed


def kernel_seconds(run: Timed) -> float | None:
    """Seconds of all kernels that run on GPUs meanwhile; None if the profiler finds none."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    lines = [line for plane in planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    kernels = [event.duration_ns for line in lines if line.name.startswith("Stream") for event in line.events]
    return sum(kernels) / 1e9 if kernels else None


def measure_all(cases: Sequence[tuple[int, int]], repeats: int, tell: Callable[[list], None] = lambda found: None):
    """Microseconds per sequence of each case (S, B), by implementation and kind. `tell` gets what is known so far."""
    with ThreadPoolExecutor() as pool:  # the programs are compiled side by side
        prepared = list(pool.map(prepare, cases))
    found = []
    for (length, batch), timed in zip(cases, prepared, strict=True):
        per_sequence = 1e6 / (CALLS * batch)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for name, run in list(timed.items()) * repeats:
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
        microseconds = {name: {"call": statistics.median(each) * per_sequence} for name, each in seconds.items()}
        for name, run in timed.items():
            kernels = kernel_seconds(run)
            microseconds[name] |= {} if kernels is None else {"device": kernels * per_sequence}
        found.append({"length": length, "batch": batch, "microseconds": microseconds})
        tell(found)
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
    """A line for each case: all implementations, and ours over torch's."""
    lines = []
    for case in cases:
        found = {
            f"{name} {kind}": value for name, kinds in case["microseconds"].items() for kind, value in kinds.items()
        }
        ratios = {
            kind: f"{found[f'fused {kind}'] / found[f'torch {kind}']:.2f}"
            for kind in ("device", "call")
            if {f"fused {kind}", f"torch {kind}"} <= found.keys()
        }
        lines.append(
            f"S={case['length']:4} B={case['batch']:3}  "
            + "  ".join(f"{name} {value:.2f}" for name, value in found.items())
            + f"  fused/torch {ratios}"
        )
    return "\n".join(lines)


@click.command()
@click.option("--repeats", default=20, show_default=True, help="Rounds in which each implementation is timed once.")
@click.option("--sweep", "sweep_step", type=int, help="Also check every n-th length from 1 to 1024.")
@gives_results
def main(repeats: int, sweep_step: int | None, as_json: bool, output: Path | None) -> None:
    """Measure."""
    if jax.default_backend() != "gpu":
        print(f"no GPU here, jax computes on {jax.default_backend()}: nothing was measured", file=sys.stderr)
        sys.exit(2)
    cases = measure_all(CASES, repeats)
    worst = {"worst_error": sweep(sweep_step)} if sweep_step else {}
    results = {"machine": machine(), "calls": CALLS, "cases": cases} | worst
    give(results, f"{table(cases)}\n{results.get('worst_error', '')}", as_json, output)


if __name__ == "__main__":
    main()
