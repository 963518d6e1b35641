"""The worker code in simulation: a campaign of crashes, one execution in detail, and bugs planted on purpose.

In: seeds. Out: lines on stdout, and for a campaign and for planted bugs a JSON file. An execution runs the real code
from `worker.extract` down to the service's own client on a simulated bucket, network, clock and scheduler; see
tests/simulation. Every seed replays exactly.

    python benchmarks/simulation.py campaign --seeds 0:10000
    python benchmarks/simulation.py campaign --minutes 25 --output benchmarks/results/simulation.json   adds a leg
    python benchmarks/simulation.py replay 4711
    python benchmarks/simulation.py planted --seeds 2000 --output benchmarks/results/planted_bugs.json
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

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
@click.option("--seeds", help="FIRST:LAST, the last one excluded; by default from the last seed in --output on.")
@click.option("--minutes", default=float("inf"), help="Stop after so many minutes.")
@click.option("--first", is_flag=True, help="Stop at the first violation.")
@click.option("--output", "out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file; a leg is added.")
def campaign(seeds: str | None, minutes: float, first: bool, out: Path | None) -> None:
    """Run executions and count what happened. Exit 1 if any seed had a violation."""
    legs = json.loads(out.read_text())["legs"] if out and out.exists() else []
    wanted = _range(seeds) if seeds else range(legs[-1]["seeds"][1] if legs else 0, 10**9)
    leg = _run_leg(wanted, minutes, first)
    click.echo(
        f"seeds {leg['seeds'][0]} to {leg['seeds'][1]}: {leg['counts']['executions']:,} executions, "
        f"{leg['counts']['crashes']:,} crashes at {leg['distinct_kill_positions']:,} distinct positions, "
        f"{len(leg['violations'])} with violations, {leg['executions_per_core_minute']:,} executions a minute of a core"
    )
    if out:
        legs.append(leg)
        counts = sum((Counter(each["counts"]) for each in legs), Counter())
        totals = {name: counts[name] for name in ("executions", "crashes")}
        violations = sum(len(each["violations"]) for each in legs)
        out.write_text(json.dumps({"totals": totals | {"violations": violations}, "legs": legs}, indent=1) + "\n")
    sys.exit(bool(leg["violations"]))


def _run_leg(seeds: range, minutes: float, first: bool) -> dict[str, Any]:
    """Return the seeds that were run, the last one excluded, and what happened."""
    counts, positions, violations = Counter(), set(), {}
    begin, cpu, after = time.monotonic(), time.process_time(), seeds.start
    with Simulator() as simulator:
        for seed in seeds:
            if time.monotonic() - begin > 60 * minutes or (first and violations):
                break
            outcome, after = simulator.run(seed), seed + 1
            counts += _counts(outcome)
            positions |= outcome.positions
            if outcome.violations:
                violations[seed] = outcome.violations[0].strip().splitlines()[-1]
                click.echo(f"{FOUND}{seed}: {violations[seed]}")
    seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
    return {
        "seeds": [seeds.start, after],
        "source": _source_digest(),
        "seconds": round(seconds, 1),
        "core_seconds": round(cpu, 1),
        "executions_per_core_minute": round(60 * counts["executions"] / cpu),
        "distinct_kill_positions": len(positions),
        "violations": violations,
        "counts": dict(sorted(counts.items())),
        "python": platform.python_version(),
    }


def _source_digest() -> str:
    """Return a digest of the source that a leg ran."""
    files = [*sorted((ROOT / "extraction").rglob("*.py")), ROOT / "checkpoint.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


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
