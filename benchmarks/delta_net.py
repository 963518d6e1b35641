"""What Gated DeltaNet costs on this machine's CPU: a step of Qwen3.5's layers, next to a dense one of equal size.

In: nothing; both models have random weights, eight layers of width 512 and, within 1%, as many parameters in them.
*DeltaNet* has three layers of Gated DeltaNet and one of attention twice, *dense* is Qwen3. Out: medians of wall and CPU
seconds of a float32 step of `--rows` rows of `--seq-len` packed tokens up to the last block, and tokens per CPU second.
Both take turns in one process.

    python benchmarks/delta_net.py --output benchmarks/results/delta_net.json
"""

import os
import sys
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.capture import measure, packed  # noqa: E402
from benchmarks.outcome import about, give, gives_results  # noqa: E402

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
}
DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}


def make_models(folder: Path) -> dict[str, int]:
    """Save both models; the dense one has a wider mlp in place of what DeltaNet has more. Returns their parameters."""
    from transformers import AutoModelForCausalLM, Qwen3_5TextConfig, Qwen3Config

    def saved(name: str, config: Any) -> int:
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder / name)
        return sum(prod(each.shape) for path, each in model.named_parameters() if ".layers." in path)

    size = saved("delta_net", Qwen3_5TextConfig(**SIZES, **DELTA_NET))
    missing = size - saved("dense", Qwen3Config(**SIZES))
    wider = SIZES["intermediate_size"] + missing // (3 * SIZES["hidden_size"] * SIZES["num_hidden_layers"])
    return {"delta_net": size, "dense": saved("dense", Qwen3Config(**(SIZES | {"intermediate_size": wider})))}


def step_of(folder: Path, inputs: tuple) -> Callable[[], object]:
    """The step of a saved model up to its last block; it waits for its results."""
    from extraction.models.config_file import read_model_config
    from extraction.models.location import locate_model
    from extraction.models.step import load_step
    from extraction.models.step_options import StepOptions

    model = locate_model(str(folder), None)
    hooks = (f"blocks.{SIZES['num_hidden_layers'] - 1}.hook_resid_post",)
    rows, seq_len = inputs[0].shape
    step = load_step(model, read_model_config(model.path), StepOptions(hooks, rows, seq_len, "float32"))
    return lambda: step(*inputs).get()


@click.command()
@click.option("--rows", default=2, show_default=True)
@click.option("--seq-len", default=1024, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@gives_results
def main(rows: int, seq_len: int, rounds: int, as_json: bool, output: Path | None) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = make_models(Path(folder))
        found = measure({name: step_of(Path(folder) / name, packed(rows, seq_len)) for name in sizes}, rounds)
    for name, size in sizes.items():
        speed = rows * seq_len / found[name]["cpu_seconds"]
        found[name] |= {"parameters_of_layers": size, "tokens_per_cpu_second": round(speed)}
    speeds = [found[name]["tokens_per_cpu_second"] for name in ("delta_net", "dense")]
    found |= {"delta_net_over_dense": round(speeds[0] / speeds[1], 3)}
    results = about("jax", "jaxlib", "transformers") | {"rows": rows, "seq_len": seq_len, "rounds": rounds} | found
    give(results, str(found), as_json, output)


if __name__ == "__main__":
    main()
