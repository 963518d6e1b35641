"""Whether the step wastes anything on a TPU, by the compiler's own account: real models on every slice of one host.

In: nothing; needs libtpu (extra `tpu`) and no TPU. Out, for each model and slice: operations over the model's own, in
products with weights, and in all with what the attention kernel multiplies in rows of one document; peak memory over
weights, results and one block; activations copied in the loop over layers, but for what is captured; weights widened
to float32; CPU seconds of tracing and compilation. Cost: 15 to 60 CPU seconds for each model and slice.

    python benchmarks/tpu_compile.py --output benchmarks/results/tpu_compile.json
"""

import json
import os
import sys
import time
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from tests.helpers.compiled_steps import Case, CompiledStep  # noqa: E402

CASES = [
    Case("SmolLM2-135M", "v5litepod-1", (1, 1), 32, 2048),
    Case("gpt2", "v5litepod-1", (1, 1), 32, 1024),
    Case("pythia-160m", "v6e-1", (1, 1), 32, 2048),
    Case("Qwen2.5-0.5B", "v5litepod-1", (1, 1), 32, 2048),
    Case("Qwen2.5-0.5B", "v4-8", (4, 1), 32, 2048),
    Case("Qwen3-0.6B", "v6e-4", (4, 1), 32, 2048),
    Case("gemma-3-1b-pt", "v6e-1", (1, 1), 8, 2048),
    Case("Llama-3.2-1B", "v5litepod-4", (4, 1), 32, 2048),
    Case("Mistral-7B-v0.1", "v4-8", (2, 2), 16, 4096),
    Case("OLMo-2-1124-7B", "v5litepod-8", (4, 2), 16, 2048),
    Case("Qwen2.5-7B", "v5litepod-8", (2, 4), 16, 2048),
    Case("Llama-3.1-8B", "v5litepod-4", (2, 2), 8, 2048),
    Case("Llama-3.1-8B", "v6e-8", (8, 1), 16, 2048),
    Case("gemma-2-9b", "v5p-8", (1, 4), 2, 8192),
    Case("Qwen3-30B-A3B", "v5p-8", (2, 2), 8, 2048),
    Case("Qwen3-30B-A3B", "v6e-8", (2, 4), 8, 2048),
    # The largest published model of each further family.
    Case("opt-125m", "v5litepod-1", (1, 1), 32, 2048),
    Case("gpt-neo-125m", "v5litepod-1", (1, 1), 32, 2048),
    Case("bloomz-560m", "v5litepod-1", (1, 1), 16, 2048),
    Case("gpt_j", "v5litepod-4", (2, 2), 8, 2048),
    Case("gemma_2b", "v5litepod-4", (4, 1), 16, 2048),
    Case("granite-3.1-2b-base", "v5litepod-4", (4, 1), 8, 2048),
    Case("SmolLM3-3B", "v6e-4", (4, 1), 16, 2048),
    Case("phi-4", "v5litepod-4", (4, 1), 8, 2048),
    Case("Olmo-3-7B", "v5litepod-8", (4, 2), 16, 2048),
    Case("glm-4-9b-hf", "v6e-4", (2, 2), 8, 2048),
    Case("GLM-4-9B-0414", "v6e-4", (2, 2), 8, 2048),
    Case("stablelm-2-12b", "v6e-4", (2, 2), 8, 2048),
    Case("c4ai-command-r7b-12-2024", "v6e-4", (2, 2), 8, 2048),
    Case("nvidia--Nemotron-H-56B-Base-8K", "v5p-8", (1, 4), 4, 2048),
    Case("NVIDIA-Nemotron-3-Nano-30B-A3B", "v5p-8", (2, 2), 8, 2048),
    Case("meta-llama--Llama-4-Scout-17B-16E-Instruct", "v5p-8", (1, 4), 2, 2048),
    Case("Mistral-Small-3.2-24B", "v5p-8", (2, 2), 8, 2048),
    Case("gemma-4-E4B", "v6e-4", (2, 2), 8, 2048),
    Case("gemma-4-31B", "v5p-8", (1, 4), 4, 4096),
    Case("google--gemma-4-26B-A4B", "v5p-8", (1, 4), 4, 2048),
    Case("Qwen--Qwen3.5-27B", "v5p-8", (2, 2), 8, 2048),
    Case("Qwen--Qwen3.5-35B-A3B", "v5p-8", (2, 2), 8, 2048),
    Case("Qwen3-Next-80B-A3B-Instruct", "v5p-8", (1, 4), 4, 2048),
    Case("openai--gpt-oss-20b", "v5p-8", (2, 2), 8, 2048),
    Case("openai--gpt-oss-120b", "v5p-8", (1, 4), 4, 2048),
    Case("OLMoE-1B-7B-0924", "v6e-1", (1, 1), 4, 2048),
    Case("qwen2moe", "v6e-4", (1, 4), 4, 2048),
    Case("Mixtral-8x7B-v0.1", "v5p-8", (1, 4), 4, 2048),
    Case("deepseek_v2_lite", "v6e-4", (1, 4), 4, 2048),
    Case("Moonlight-16B-A3B", "v6e-4", (1, 4), 4, 2048),
]


def measure(case: Case, fast: bool) -> dict:
    begin = time.process_time()
    step = CompiledStep.of(case, fast)
    cpu_seconds = time.process_time() - begin
    moved = [shape for shape in step.moved() if not (shape[0] == 1 and len(shape) == 4)]
    return {
        "model": case.model,
        "slice": case.slice,
        "mesh": str(step.options.mesh),
        "rows": case.rows,
        "seq_len": case.seq_len,
        "experts": any(kind.experts for kind in step.config.layers),
        "products": round(step.products(), 4),
        "arithmetic": round(step.arithmetic(), 4),
        "memory": round(step.memory(), 3),
        "peak_bytes": step.program.memory_analysis().peak_memory_in_bytes,
        "copies": moved,
        "widened": sorted(step.widened()),
        "fast": fast,
        "compile_cpu_seconds": round(cpu_seconds, 1),
    }


@click.command()
@click.option("--fast", is_flag=True, help="With the compiler's least effort.")
@gives_results
def main(fast: bool, as_json: bool, output: Path | None) -> None:
    """Compile and count."""
    steps: list[dict] = []
    results = about("jax", "libtpu") | {"steps": steps}
    for case in CASES:
        found = measure(case, fast)
        steps.append(found)
        note(f"{case}: " + ", ".join(f"{key} {found[key]}" for key in ("products", "arithmetic", "memory", "copies")))
        if output:
            output.write_text(json.dumps(results, indent=2) + "\n")
    give(results, f"{len(steps)} steps compiled", as_json, output)


if __name__ == "__main__":
    main()
