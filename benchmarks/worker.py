"""A whole worker on this machine: rate, padding, time outside the step, start to first commit, peak memory.

In: a corpus (examples/make_corpus.py). Out: one line of JSON for each model: the embedded tiny one and a Llama-shaped
one of SmolLM2-135M's sizes with random weights. Each worker is a process of its own, started with an empty compilation
cache (cold) and again with the filled one (warm).

    python benchmarks/worker.py --corpus DIR --output benchmarks/results/worker.json
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import give, gives_results, note  # noqa: E402

TINY = ROOT / "examples/tiny-lm"
D, F, LAYERS, HEADS, KV_HEADS, V = 576, 1536, 30, 9, 3, 49152
SHAPES = {
    "tiny-lm": {"layers": "1,-1", "seq-len": 512, "batch-size": 8, "steps-per-batch": 8, "max-records": 200},
    "135M": {"layers": "15", "seq-len": 512, "batch-size": 4, "steps-per-batch": 1, "max-records": 60},
}


def make_135m(folder: Path) -> Path:
    """Random float32 weights of SmolLM2-135M's shape, with the tokenizer of the tiny model."""
    rng, head = np.random.default_rng(0), D // HEADS
    shapes = {
        "self_attn.q_proj": (D, D),
        "self_attn.k_proj": (KV_HEADS * head, D),
        "self_attn.v_proj": (KV_HEADS * head, D),
        "self_attn.o_proj": (D, D),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((V, D), np.float32) * 0.02,
        "model.norm.weight": np.ones(D, np.float32),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = rng.standard_normal(shape, np.float32) * 0.02
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(D, np.float32)
    shutil.copytree(TINY, folder)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((TINY / "config.json").read_text())
    config |= {
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": V,
        "head_dim": head,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_stream(corpus: Path, output: Path) -> None:
    """One stream over a corpus."""
    command = [sys.executable, ROOT / "create_dataset_streams.py", "fineweb", "--source", corpus, "--num-streams", "1"]
    subprocess.run([*command, "--output", output], check=True, stdout=subprocess.DEVNULL)


def run_worker(model: Path, streams: Path, output: Path, flags: dict[str, object], cache: Path) -> dict[str, float]:
    """One worker from start to end; seconds, rates in real tokens per second, MiB."""
    command = [
        sys.executable,
        ROOT / "extract_activations.py",
        "--model",
        model,
        "--streams",
        streams,
        "--output",
        output,
        "--worker-id",
        "0",
        "--compile-cache",
        cache,
        *(f"--{name}={value}" for name, value in flags.items()),
    ]
    begin, first_commit = time.perf_counter(), None
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while first_commit is None and process.poll() is None:
        time.sleep(0.02)
        if (output / "worker-00000/commits/00000000.json").exists():
            first_commit = time.perf_counter() - begin
    text = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0) if process.returncode is None else (0, process.returncode, None)
    if status:
        raise SystemExit(f"the worker failed: {text}")
    found = re.search(r"([\d,]+) tokens in ([\d.]+) s,.* padding ([\d.]+)%(?s:.*?)  step +([\d.]+) s", text)
    tokens, seconds, padding, step = (float(number.replace(",", "")) for number in found.groups())
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "tokens": int(tokens),
        "padding_share": padding / 100,
        "share_outside_step": round(1 - step / seconds, 4),
        "start_to_first_commit_s": round(first_commit, 2),
        "peak_memory_mib": usage.ru_maxrss // 1024 if usage else None,
        "stages": {
            name: float(number)
            for name, number in re.findall(r"^worker 0: +(\w+) +([\d.]+) s +[\d.]+%", text, re.MULTILINE)
        },
    }


@click.command()
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@gives_results
def main(corpus: Path, as_json: bool, output: Path | None) -> None:
    """Measure."""
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "command": "python benchmarks/worker.py --corpus DIR",
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_stream(corpus, work / "streams")
        for model, folder in (("tiny-lm", TINY), ("135M", make_135m(work / "135M"))):
            runs = {
                state: run_worker(
                    folder, work / "streams", work / f"{model}-{state}", SHAPES[model], work / f"cache-{model}"
                )
                for state in ("cold", "warm")
            }
            results[model] = runs | {"flags": SHAPES[model]}
            note({model: runs})
    give(results, "\n".join(f"{model}: {results[model]}" for model in SHAPES), as_json, output)


if __name__ == "__main__":
    main()
