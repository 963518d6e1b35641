#!/usr/bin/env python
"""Stands for `gcloud compute tpus queued-resources`: list, create and delete, as Google documents them.

State is a folder, FAKE_GCLOUD, with a file for each queued resource that holds its state; `calls` has the arguments of
each call. Spot resources become SUSPENDED when a test writes so, and never anything else. A `delete` without `--force`
is refused while there is a machine; without `--quiet` it asks, and there is nobody to answer. Unknown flags are refused.
`refuse` in the folder names a command that fails.
"""

import os
import sys
from pathlib import Path

WITH_VALUE = {
    "list": {"--zone", "--format", "--filter"},
    "delete": {"--zone"},
    "create": {"--zone", "--node-id", "--accelerator-type", "--runtime-version", "--metadata", "--metadata-from-file",
               "--scopes", "--service-account"},
}  # fmt: skip
ALONE = {"list": set(), "delete": {"--async", "--force"}, "create": {"--async", "--spot"}}
WITHOUT_A_MACHINE = ("ACCEPTED", "WAITING_FOR_RESOURCES", "FAILED", "SUSPENDED")


def fail(message: str) -> None:
    sys.exit(f"ERROR: (gcloud.compute.tpus.queued-resources) {message}")


def parse(command: str, words: list[str]) -> tuple[list[str], dict[str, str]]:
    names, flags, rest = [], {}, iter(words)
    for word in rest:
        if not word.startswith("-"):
            names.append(word)
        elif word in WITH_VALUE[command]:
            flags[word] = next(rest)
        elif word in ALONE[command] | {"--quiet"}:
            flags[word] = ""
        else:
            fail(f"unrecognized arguments: {word}")
    return names, flags


def main() -> None:
    folder = Path(os.environ["FAKE_GCLOUD"])
    assert sys.argv[1:4] == ["compute", "tpus", "queued-resources"]
    command, words = sys.argv[4], sys.argv[5:]
    with (folder / "calls").open("a") as calls:
        calls.write(" ".join([command, *words]) + "\n")
    names, flags = parse(command, words)
    resources = folder / flags["--zone"]
    resources.mkdir(exist_ok=True)
    refused = folder / "refuse"
    if refused.exists() and refused.read_text() == command:
        fail("RESOURCE_EXHAUSTED: Quota limit exceeded")
    if command == "list":
        assert flags["--format"] == "value(name.basename(),state.state)"
        for path in sorted(resources.iterdir()):
            print(f"{path.name}\t{path.read_text()}")
        return
    path = resources / names[0]
    if command == "create":
        missing = {"--node-id", "--accelerator-type", "--runtime-version"} - flags.keys()
        if missing or len(names) != 1:
            fail(f"Must be specified: {missing}")
        try:
            path.open("x").write("WAITING_FOR_RESOURCES")
        except FileExistsError:
            fail("ALREADY_EXISTS")
        return
    if not path.exists():
        fail("NOT_FOUND")
    if "--quiet" not in flags:
        fail("This prompt could not be answered because you are not in an interactive session.")
    if path.read_text() not in WITHOUT_A_MACHINE and "--force" not in flags:
        fail("FAILED_PRECONDITION: the queued resource has nodes")
    path.unlink()


if __name__ == "__main__":
    main()
