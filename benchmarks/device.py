"""All that one call on a machine with an H100 or H200 can tell, in at most 8 minutes, the most valuable first.

In: nothing reachable from the machine is needed; docs/gpu.md says which wheels it lacks and how to carry them. Out:
`results.json` in the folder `--output`, with an entry for each part, written while the part runs: ceilings, correctness
of attention, its nine cases and packed documents, a forward pass of Qwen2.5-7B's shape with and without capture, a
whole worker, transformers, and parity. Each part is a process with a limit of its own, so that a failure, which its
entry records, costs no other part its numbers. `summary.json` has the time of each, and the end of its log.

    python benchmarks/device.py --output OUT

`--tiny` runs all parts in a small form, on a CPU too, to see that nothing is missing.
"""

import fcntl
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import about, gives_results, note  # noqa: E402


@dataclass(frozen=True)
class Part:
    """A function `module.name` of benchmarks/on_device, and the seconds that it may take."""

    name: str
    module: str
    seconds: int


PARTS = [
    Part("ceilings", "ceilings", 40),
    Part("correctness", "attention", 75),
    Part("nine_cases", "attention", 60),
    Part("packed", "attention", 75),
    Part("forward", "forward", 75),
    Part("worker", "worker", 115),
    Part("transformers", "peers", 70),
    Part("parity", "parity", 90),
]


RESULTS, LOG_END = "results.json", 3000  # characters


@dataclass(frozen=True)
class Setting:
    """The form of a part, the folder of results, and `save`, which writes what is known so far."""

    tiny: bool
    output: Path
    save: Callable[[dict], None]

    def known(self, part: str) -> dict:
        """What an earlier part wrote, {} for nothing."""
        return read(self.output).get(part, {})


def read(output: Path) -> dict:
    """What all parts wrote so far, by their names."""
    path = output / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


def add_to(output: Path, part: str, found: dict) -> None:
    """Write what a part knows; parts may run at the same time."""
    with (output / RESULTS).with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write(output / RESULTS, read(output) | {part: found})


def write(path: Path, found: dict) -> None:
    """Replace a file of results whole."""
    path.with_suffix(".new").write_text(json.dumps(found, indent=1, default=str) + "\n")
    path.with_suffix(".new").replace(path)


def run_part(part: Part, tiny: bool, output: Path) -> None:
    """Run one part in this process; what it raises goes into its entry."""
    known: dict = {}

    def save(found: dict) -> None:
        known.update(found)
        add_to(output, part.name, known)

    begin = time.monotonic()
    try:
        run = getattr(importlib.import_module(f"benchmarks.on_device.{part.module}"), part.name)
        save(run(Setting(tiny, output, save)) or {})
    except BaseException:
        save({"error": traceback.format_exc()})
    save({"seconds": round(time.monotonic() - begin, 1)})


def start_part(part: Part, flags: list[str], output: Path, limit: float) -> dict:
    """Run one part as a process. Returns its seconds, the end of its log, and why it has no results, if it has none."""
    command = [sys.executable, __file__, "--part", part.name, "--output", str(output), *flags]
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            status = process.wait(limit)
            ended = None if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            ended = f"stopped after {limit:.0f} s"
        log.seek(0)
        said = {"log": log.read()[-LOG_END:]}
    reason = ended or ("it failed, see its entry" if "error" in read(output).get(part.name, {}) else None)
    return {"seconds": round(time.monotonic() - begin, 1)} | ({"reason": reason} if reason else {}) | said


@click.command()
@click.option(
    "--part",
    "only",
    type=click.Choice([part.name for part in PARTS]),
    multiple=True,
    help="Only these, in this process.",
)
@click.option("--tiny", is_flag=True, help="Small forms of all parts, for a CPU.")
@click.option("--seconds", default=470, show_default=True, help="For all parts together.")
@gives_results
def main(only: tuple[str, ...], tiny: bool, seconds: int, as_json: bool, output: Path | None) -> None:
    """Run the parts; `--output` is a folder."""
    output = output or Path("device-results")
    output.mkdir(parents=True, exist_ok=True)
    if only:
        for part in (part for part in PARTS if part.name in only):
            run_part(part, tiny, output)
        return
    end, summary = time.monotonic() + seconds, about("jax", "jaxlib", "numpy") | {"tiny": tiny, "parts": {}}
    for part in PARTS:
        left = end - time.monotonic()
        if left < 5:
            summary["parts"][part.name] = {"reason": "no time was left"}
        else:
            limit = min(left, part.seconds * (10 if tiny else 1))
            summary["parts"][part.name] = start_part(part, ["--tiny"] * tiny, output, limit)
        note({part.name: {key: value for key, value in summary["parts"][part.name].items() if key != "log"}})
        write(output / "summary.json", summary)
    print(json.dumps(summary) if as_json else f"results in {output}")


if __name__ == "__main__":
    main()
