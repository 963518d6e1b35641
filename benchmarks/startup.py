"""Seconds from process start to the first step and to the end of a short stream, CPU seconds, and `--help`.

In: nothing; the corpus is a few documents made here. Out: medians of `--rounds` starts with a filled compilation
cache, and one with an empty one, for examples/tiny-lm and a model of SmolLM2-135M's sizes (random weights, layer 15).

    python benchmarks/startup.py --output benchmarks/results/startup.json
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import about, give, gives_results  # noqa: E402
from benchmarks.worker import TINY, make_135m  # noqa: E402
from tests.helpers.workers import make_streams, text_of, write_corpus  # noqa: E402

LAYERS = {"tiny-lm": "1", "135M": "15"}


def start(model: Path, layers: str, work: Path, name: str) -> dict[str, float]:
    """One worker on a stream of one small batch: seconds to ready (weights loaded, step compiled) and to the end."""
    command = [
        sys.executable,
        ROOT / "extract_activations.py",
        "--model",
        model,
        "--streams",
        work / "streams",
        "--output",
        work / name,
        "--worker-id",
        "0",
        "--layers",
        layers,
        "--seq-len",
        "128",
        "--batch-size",
        "2",
        "--compile-cache",
        work / "cache",
        "--no-progress",
    ]
    begin, ready, held = time.perf_counter(), 0.0, False
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    for line in process.stderr:
        if line.startswith("ready on"):
            ready = time.perf_counter() - begin
            held = "from the cache" in line
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the worker failed")
    seconds = time.perf_counter() - begin
    cpu = usage.ru_utime + usage.ru_stime
    return {"ready_s": round(ready, 2), "end_s": round(seconds, 2), "cpu_s": round(cpu, 2), "step_from_cache": held}


def of_help() -> float:
    """Seconds of `--help`."""
    begin = time.perf_counter()
    result = subprocess.run([sys.executable, ROOT / "extract_activations.py", "--help"], capture_output=True, text=True)
    if not re.match("Usage:", result.stdout):
        raise SystemExit(result.stderr)
    return time.perf_counter() - begin


@click.command()
@click.option("--rounds", default=3, show_default=True)
@gives_results
def main(rounds: int, as_json: bool, output: Path | None) -> None:
    """Measure."""
    results = about() | {"help_s": round(statistics.median(of_help() for _ in range(rounds)), 3)}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_streams(write_corpus(work / "corpus", [text_of(i, 20) for i in range(8)]), work / "streams")
        for model, folder in (("tiny-lm", TINY), ("135M", make_135m(work / "135M"))):
            cold = start(folder, LAYERS[model], work, f"{model}-cold")
            warm = [start(folder, LAYERS[model], work, f"{model}-{number}") for number in range(rounds)]
            keys = ("ready_s", "end_s", "cpu_s")
            medians = {key: round(statistics.median(run[key] for run in warm), 2) for key in keys}
            results[model] = {"cold": cold, "warm": warm, "warm_median": medians}
    lines = [f"{model}: {results[model]['warm_median']}" for model in LAYERS]
    give(results, "\n".join([f"--help: {results['help_s']} s", *lines]), as_json, output)


if __name__ == "__main__":
    main()
