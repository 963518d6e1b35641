"""Real tokens a second, end to end, next to what others do with the same documents and model on this machine.

In: a corpus (examples/make_corpus.py). Out: for each, the median rate of `--rounds` rounds in which all take turns in
the same order, and our rate over it. The model has SmolLM2-135M's sizes and random weights, the hook lies behind layer
15. Ours is a whole worker: records read, tokenised, packed, computed, stored and committed in a local folder. The peers
are those of benchmarks/peers.py; sae-lens has pins of its own, so it is run by the interpreter given by `--saelens`.

    python benchmarks/throughput.py --corpus DIR --saelens VENV/bin/python --output benchmarks/results/throughput.json

Start-up and compilation are left out for all.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.worker import make_135m, run_worker  # noqa: E402

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "numpy")


def run_peer(python: str, kind: str, common: list[str], output: Path) -> float:
    """Real tokens per second of one run of a peer."""
    command = [python, str(ROOT / "benchmarks/peers.py"), kind, *common, "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if result.returncode:
        raise SystemExit(f"{kind} failed: {result.stderr[-2000:]}")
    found = json.loads(result.stdout.strip().splitlines()[-1])
    return found["tokens"] / found["seconds"]


def measure(work: Path, corpus: Path, flags: dict, rounds: int, saelens: str | None) -> dict[str, list[float]]:
    """Rates of every round, by who."""
    model = make_135m(work / "model")
    subprocess.run([sys.executable, ROOT / "create_dataset_streams.py", "fineweb", "--source", corpus,
                    "--num-streams", "1", "--output", work / "streams"], check=True, stdout=subprocess.DEVNULL)
    common = ["--model", str(model), "--corpus", str(corpus), "--documents", str(flags["max-records"]),
              "--layer", flags["layers"], "--seq-len", str(flags["seq-len"]), "--dtype", flags["compute-dtype"]]
    padded = [*common, "--batch-size", "8"]
    peers = {"hf-padded": (sys.executable, padded), "hf-packed": (sys.executable, padded)}
    if saelens:
        peers["saelens"] = (saelens, padded)
    cache = work / "cache"
    run_worker(model, work / "streams", work / "warm", flags | {"max-records": 8}, cache)  # fills the cache
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    for number in range(rounds):
        found = run_worker(model, work / "streams", work / f"ours-{number}", flags, cache)
        rates["ours"].append(found["tokens_per_second"])
        for name, (python, given) in peers.items():
            rates[name].append(run_peer(python, name, given, work / f"{name}-{number}"))
            shutil.rmtree(work / f"{name}-{number}")
        print({name: round(values[-1]) for name, values in rates.items()}, file=sys.stderr, flush=True)
    return rates


@click.command()
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--documents", default=96, show_default=True)
@click.option("--seq-len", default=1024, show_default=True)
@click.option("--batch-size", default=2, show_default=True, help="Rows of our step; the peers take 8.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--saelens", default=None, help="Interpreter with sae-lens installed; without it, it is left out.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the results there.")
def main(corpus: Path, saelens: str | None, rounds: int, as_json: bool, output: Path | None, **shape: int | str) -> None:
    """Measure."""
    flags = {"layers": "15", "seq-len": shape["seq_len"], "batch-size": shape["batch_size"], "steps-per-batch": 4,
             "max-records": shape["documents"], "compute-dtype": shape["dtype"]}
    with tempfile.TemporaryDirectory() as name:
        rates = measure(Path(name), corpus, flags, rounds, saelens)
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES}, "command": " ".join(["python", *sys.argv]),
        "flags": flags, "tokens_per_second": medians, "rounds": rates,
        "ours_over": {name: round(medians["ours"] / rate, 2) for name, rate in medians.items() if name != "ours"},
    }
    if output:
        output.write_text(json.dumps(results, indent=2) + "\n")
    text = "\n".join(f"{name:10} {rate:8.1f} tokens/s" for name, rate in medians.items())
    print(json.dumps(results) if as_json else f"{text}\nours over: {results['ours_over']}")


if __name__ == "__main__":
    main()
