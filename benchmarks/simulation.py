"""The worker code in simulation: a campaign of crashes, one execution in detail, and bugs planted on purpose.

In: seeds. Out: lines on stdout, and for a campaign and for planted bugs a JSON file. An execution runs the real code
from `worker.extract` down to the service's own client on a simulated bucket, network, clock and scheduler; see
tests/simulation. Every seed replays exactly.

    python benchmarks/simulation.py campaign --seeds 0:10000
    python benchmarks/simulation.py campaign --minutes 25 --output benchmarks/results/simulation.json
    python benchmarks/simulation.py replay 4711
    python benchmarks/simulation.py planted --seeds 2000 --output benchmarks/results/planted_bugs.json
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.simulation.planted_bugs import PLANTED, plant
from tests.simulation.scenario import Outcome
from tests.simulation.simulator import Simulator

FOUND = "violation: seed "


@click.group()
def cli() -> None:
    """Run the worker code in simulation."""


def _range(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last))


@cli.command()
@click.option("--seeds", default="0:1000000000", show_default=True, help="FIRST:LAST, the last one excluded.")
@click.option("--minutes", default=float("inf"), help="Stop after so many minutes.")
@click.option("--first", is_flag=True, help="Stop at the first violation.")
@click.option("--output", "out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file of the results.")
def campaign(seeds: str, minutes: float, first: bool, out: Path | None) -> None:
    """Run executions and count what happened. Exit 1 if any seed had a violation."""
    counts, positions, found = Counter(), set(), {}
    begin, cpu, last = time.monotonic(), time.process_time(), None
    with Simulator() as simulator:
        for seed in _range(seeds):
            if time.monotonic() - begin > 60 * minutes or (first and found):
                break
            outcome, last = simulator.run(seed), seed
            counts += _counts(outcome)
            positions |= outcome.positions
            if outcome.violations:
                found[seed] = outcome.violations[0]
                click.echo(f"{FOUND}{seed}: {outcome.violations[0].strip().splitlines()[-1]}")
    seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
    rate = 60 * counts["executions"] / cpu
    click.echo(
        f"seeds {seeds.partition(':')[0]} to {last}: {counts['executions']:,} executions, {counts['crashes']:,} "
        f"crashes at {len(positions):,} distinct positions, {len(found)} with violations, "
        f"{rate:,.0f} executions a minute of a core"
    )
    if out:
        results = {
            "seeds": [int(seeds.partition(":")[0]), last],
            "seconds": round(seconds, 1),
            "core_seconds": round(cpu, 1),
            "executions_per_core_minute": round(rate),
            "distinct_kill_positions": len(positions),
            "violations": found,
            "counts": dict(sorted(counts.items())),
            "python": platform.python_version(),
        }
        out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(found))


def _counts(outcome: Outcome) -> Counter[str]:
    """Return what happened in an execution, as numbers that add up."""
    names = ("crashes", "steps", "requests", "workers", "machines_lost", "notices", "freezes", "seconds")
    counts = Counter({"executions": 1} | {name: int(getattr(outcome, name)) for name in names})
    counts.update({f"fault {kind}": number for kind, number in outcome.faults.items()})
    counts.update({f"exit {code}": number for code, number in outcome.exits.items()})
    return counts


@cli.command()
@click.argument("seed", type=int)
def replay(seed: int) -> None:
    """Run one execution and print everything that happens in it."""
    log: list[str] = []
    with Simulator() as simulator:
        outcome = simulator.run(seed, log)
    click.echo("\n".join([*log, *outcome.violations, f"digest {outcome.digest}"]))
    sys.exit(bool(outcome.violations))


@cli.command()
@click.option("--seeds", default=2000, show_default=True, help="Most seeds to look for a bug in.")
@click.option("--only", multiple=True, help="Names of bugs; by default all.")
@click.option("--output", "out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file of the results.")
def planted(seeds: int, only: tuple[str, ...], out: Path | None) -> None:
    """Put each bug into a copy of the source and look for it. Exit 1 if one is not found."""
    found: dict[str, int | None] = {}
    for name in only or PLANTED:
        with tempfile.TemporaryDirectory() as folder:
            plant(name, Path(folder))
            found[name] = find(Path(folder), seeds)
        click.echo(f"{name}: " + ("not found" if found[name] is None else f"within {found[name]} seeds"))
    if out:
        out.write_text(json.dumps({"seeds_needed": found, "most_seeds": seeds}, indent=1) + "\n")
    sys.exit(None in found.values())


def find(folder: Path, seeds: int) -> int | None:
    """Return the number of seeds after which the source in a folder is found to be wrong; None if it is not."""
    command = [sys.executable, "benchmarks/simulation.py", "campaign", "--first", "--seeds", f"0:{seeds}"]
    environ = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith(FOUND)), None)
    if line is None and done.returncode:
        raise RuntimeError(done.stderr)
    return None if line is None else int(line.removeprefix(FOUND).partition(":")[0]) + 1


if __name__ == "__main__":
    cli()
