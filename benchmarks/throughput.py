"""Real tokens a second, end to end, next to what others do with the same documents and model on this machine.

In: a corpus (examples/make_corpus.py). Out: for each, the median rate of `--rounds` rounds in which all take turns in
the same order, and our rate over it. The model has SmolLM2-135M's sizes and random weights, and the hook point is the
output of layer 15. Ours is a whole worker: records read, tokenised, packed, computed, stored and committed in a local
folder. The peers are those of benchmarks/peers.py; sae-lens has pins of its own, so it is run by the interpreter given
by `--saelens`.

    python benchmarks/throughput.py --corpus DIR --saelens VENV/bin/python --output benchmarks/results/throughput.json

Start-up and compilation are left out for all. Each dtype takes at most about `--minutes`.
"""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from benchmarks.worker import make_135m, make_stream, run_worker  # noqa: E402

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "numpy")
PEER_ROWS = 8


@dataclass(frozen=True)
class Setting:
    """What is measured, how often and for how long; `saelens` is the interpreter that has it."""

    corpus: Path
    flags: dict
    rounds: int
    minutes: float
    saelens: str | None


def run_peer(python: str, kind: str, common: list[str], output: Path) -> float:
    """Real tokens per second of one run of a peer."""
    command = [python, str(ROOT / "benchmarks/peers.py"), kind, *common, "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if result.returncode:
        raise SystemExit(f"{kind} failed: {result.stderr[-2000:]}")
    found = json.loads(result.stdout.strip().splitlines()[-1])
    return found["tokens"] / found["seconds"]


def peers_of(work: Path, setting: Setting) -> dict[str, Callable[[Path], float]]:
    """For each who takes part, a run that gives its rate; `ours` first."""
    flags = setting.flags
    model, streams, cache = work / "model", work / "streams", work / f"cache-{flags['compute-dtype']}"
    common = [
        "--model",
        str(model),
        "--corpus",
        str(setting.corpus),
        "--documents",
        str(flags["max-records"]),
        "--layer",
        flags["layers"],
        "--seq-len",
        str(flags["seq-len"]),
        "--dtype",
        flags["compute-dtype"],
        "--batch-size",
        str(PEER_ROWS),
    ]
    run_worker(model, streams, work / f"warm-{flags['compute-dtype']}", flags | {"max-records": 8}, cache)
    peers = {"hf-padded": sys.executable, "hf-packed": sys.executable}
    if setting.saelens:
        peers["saelens"] = setting.saelens

    def ours(output: Path) -> float:
        return run_worker(model, streams, output, flags, cache)["tokens_per_second"]

    return {"ours": ours} | {name: partial(run_peer, python, name, common) for name, python in peers.items()}


def measure(work: Path, setting: Setting, tell: Callable[[dict], None]) -> None:
    """Rounds in which all take turns, as many as asked for and as fit into the time; what is known goes to `tell`."""
    runs, begin, longest = peers_of(work, setting), time.perf_counter(), 0.0
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(setting.rounds):
        since = time.perf_counter()
        if since + longest - begin > setting.minutes * 60:
            note(f"no time for round {number + 1} within {setting.minutes:g} minutes")
            break
        for name, run in runs.items():
            output = work / f"{setting.flags['compute-dtype']}-{name}-{number}"
            rates[name].append(round(run(output), 1))
            shutil.rmtree(output)
        longest = max(longest, time.perf_counter() - since)
        note({setting.flags["compute-dtype"]: {name: values[-1] for name, values in rates.items()}})
        tell(summary(rates) | {"flags": setting.flags})


def summary(rates: dict[str, list[float]]) -> dict:
    """Medians, and ours over those of the others."""
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    over = {name: round(medians["ours"] / rate, 2) for name, rate in medians.items() if name != "ours"}
    return {"tokens_per_second": medians, "ours_over": over, "rounds": rates}


@click.command()
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--documents", default=34, show_default=True)
@click.option("--seq-len", default=1024, show_default=True)
@click.option("--batch-size", default=2, show_default=True, help=f"Rows of our step; the peers take {PEER_ROWS}.")
@click.option("--dtypes", default="float32,bfloat16", show_default=True, help="One after the other.")
@click.option("--rounds", default=3, show_default=True, help="Of each dtype.")
@click.option("--minutes", default=8.0, show_default=True, help="No further round of a dtype that would end later.")
@click.option("--saelens", default=None, help="Interpreter with sae-lens; by default this one, if it has it.")
@gives_results
def main(corpus: Path, dtypes: str, rounds: int, minutes: float, as_json: bool, output: Path | None, **shape) -> None:
    """Measure. Each round that ended is in `--output`; what it has of other dtypes stays."""
    saelens = shape["saelens"] or (sys.executable if importlib.util.find_spec("sae_lens") else None)
    before = json.loads(output.read_text()) if output and output.exists() else {}
    results = {dtype: before[dtype] for dtype in ("float32", "bfloat16") if dtype in before}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_135m(work / "model")
        make_stream(corpus, work / "streams")
        for dtype in dtypes.split(","):
            flags = {
                "layers": "15",
                "seq-len": shape["seq_len"],
                "batch-size": shape["batch_size"],
                "steps-per-batch": 4,
                "max-records": shape["documents"],
                "compute-dtype": dtype,
            }

            def tell(found: dict, dtype: str = dtype) -> None:
                results[dtype] = about(*PACKAGES) | {"sae-lens": version_of_saelens(saelens)} | found
                if output:
                    output.write_text(json.dumps(results, indent=2) + "\n")

            measure(work, Setting(corpus, flags, rounds, minutes, saelens), tell)
    text = "\n".join(
        f"{dtype}, {name}: {rate} tokens/s, ours over it {found['ours_over'].get(name, 1)}"
        for dtype, found in results.items()
        for name, rate in found["tokens_per_second"].items()
    )
    give(results, text, as_json, output)


def version_of_saelens(python: str | None) -> str | None:
    code = "from importlib.metadata import version; print(version('sae-lens'))"
    return python and subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
