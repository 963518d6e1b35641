"""What capture costs: a step that stores three layers, next to the same forward that stores nothing.

In: nothing; the model has SmolLM2-135M's sizes and random weights. Out: for each dtype, medians of wall and CPU seconds
of a step of `--rows` rows of `--seq-len` packed tokens up to block 15, and how fast the step with capture is, as a part
of the bare one. *Captured* is the step of a worker: resid_post of blocks 5, 10 and 15 stored as bfloat16, with their
statistics, and fetched to the host. *Bare* computes the same 16 blocks and returns a number for each row. Both take
turns in one process.

    python benchmarks/capture.py --output benchmarks/results/capture.json
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from benchmarks.worker import make_135m  # noqa: E402

LAYERS = (5, 10, 15)
FINAL = "ln_final.hook_normalized"


def packed(rows: int, seq_len: int) -> tuple:
    """Rows full of documents of 50 to 700 tokens: tokens, segment_ids, positions [rows, seq_len], and all slots."""
    import numpy as np

    rng = np.random.default_rng(0)
    segment_ids, positions = np.zeros((2, rows, seq_len), np.int32)
    for row in range(rows):
        start = 0
        for segment in range(1, seq_len):
            end = min(start + int(rng.integers(50, 700)), seq_len)
            segment_ids[row, start:end], positions[row, start:end] = segment, np.arange(end - start)
            start = end
    tokens = rng.integers(1, 1000, (rows, seq_len)).astype(np.int32)
    return tokens, segment_ids, positions, np.arange(rows * seq_len, dtype=np.int32)


def steps_of(folder: Path, dtype: str, inputs: tuple) -> dict[str, Callable[[], object]]:
    """The step with capture and the bare one; each waits for its results."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from extraction.models import step as compiled
    from extraction.models.config_file import read_model_config
    from extraction.models.location import locate_model
    from extraction.models.sharding import Layout, mesh_of
    from extraction.models.step_options import StepOptions

    model, shape = locate_model(str(folder), None), inputs[0].shape
    config = read_model_config(model.path)
    hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in LAYERS)
    captured = compiled.load_step(model, config, StepOptions(hooks, *shape, dtype))

    shallow = replace(config, layers=config.layers[: LAYERS[-1] + 1])
    options = StepOptions((FINAL,), *shape, dtype)
    shallow_model = compiled.Model.of(shallow, options)
    step = compiled.make_step(shallow_model, options, Layout(mesh_of(options.mesh, jax.local_devices())))
    (buffer,) = shallow_model.plan.ends.values()
    params = captured._params | {"final_norm": {"scale": jnp.ones(config.width, dtype)}}
    bare, slots = jax.jit(lambda *given: step(*given)[buffer].values[..., 0]), inputs[3]
    bare_inputs = compiled.Inputs(*inputs[:3], slots[None], np.array([len(slots)], np.int32))
    return {
        "captured": lambda: captured(*inputs).get(),
        "bare": lambda: bare(params, bare_inputs).block_until_ready(),
    }


def measure(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of wall and CPU seconds of rounds in which the steps take turns."""
    taken = {name: {"seconds": [], "cpu_seconds": []} for name in steps}
    for step in steps.values():
        step()
    for number in range(rounds):
        for name in sorted(steps, reverse=bool(number % 2)):
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name]()
            taken[name]["seconds"].append(time.perf_counter() - wall)
            taken[name]["cpu_seconds"].append(time.process_time() - cpu)
    return {
        name: {kind: round(statistics.median(values), 4) for kind, values in kinds.items()}
        for name, kinds in taken.items()
    }


@click.command()
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
@click.option("--rows", default=2, show_default=True)
@click.option("--seq-len", default=1024, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@gives_results
def main(dtypes: str, rows: int, seq_len: int, rounds: int, as_json: bool, output: Path | None) -> None:
    """Measure."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        model, inputs = make_135m(Path(name) / "model"), packed(rows, seq_len)
        for dtype in dtypes.split(","):
            found[dtype] = measure(steps_of(model, dtype, inputs), rounds)
            captured, bare = found[dtype]["captured"], found[dtype]["bare"]
            found[dtype]["captured_over_bare"] = {
                kind.replace("seconds", "speed"): round(bare[kind] / captured[kind], 3) for kind in bare
            }
            note({dtype: found[dtype]})
    results = about("jax", "jaxlib") | {"layers": LAYERS, "rows": rows, "seq_len": seq_len, "rounds": rounds} | found
    text = "\n".join(f"{dtype}: {found[dtype]['captured_over_bare']}" for dtype in found)
    give(results, text, as_json, output)


if __name__ == "__main__":
    main()
