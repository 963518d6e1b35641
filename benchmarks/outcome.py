"""What all benchmarks share: the flags --json and --output, what a result says of its machine, how it is given.

A result is a dictionary. It is written to `--output` as it is; on stdout it is one line of JSON with `--json`, else a
few lines for people. What a benchmark says while it runs goes to stderr.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import click


def gives_results(main: Callable) -> Callable:
    """The flags `--json` and `--output`, given to `main` as `as_json` and `output`."""
    output = click.option("--output", type=click.Path(path_type=Path), help="Also write the results there.")
    return output(click.option("--json", "as_json", is_flag=True, help="One line of JSON.")(main))


def about(*packages: str) -> dict:
    """Machine, load, versions and command; whole paths are of no use elsewhere."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "command": " ".join(["python", *("PATH" if word.startswith("/") else word for word in sys.argv)]),
    }


def give(results: dict, text: str, as_json: bool, output: Path | None) -> None:
    """Print and write."""
    if output:
        output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results) if as_json else text)


def note(results: object) -> None:
    """Say something while it runs."""
    print(results if isinstance(results, str) else json.dumps(results), file=sys.stderr, flush=True)
