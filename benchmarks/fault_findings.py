"""What a fault campaign sees: the objects of a run, how they differ from others, and the phase in which a kill fell.

In: the location of a run, or what a killed worker had said and stored. Out: digests by name, lines, a phase by name.
Cost: `snapshot` reads every object of the run.
"""

import hashlib
import json

from forked import Shelf

from extraction.storage import open_storage

AT_RECORD = b": at record"  # what a worker says between its start-up and its work
NOTES = (["attempts"],)


def snapshot(location: str) -> dict[str, str]:
    """Return a digest for each object of a run, of a commit without the fields that depend on the attempt.

    Progress, the notes of attempts, and the digest of the compiled program in `run.json` are left out. `verify`
    compares the digests of predecessors.
    """
    storage, seen = open_storage(location), {}
    for info in storage.list():
        if info.name.endswith("/progress.json") or info.name.split("/")[1:2] in NOTES:
            continue
        content = storage.read(info.name)
        if info.name == "run.json":
            description = json.loads(content)
            del description["compiled"]
            content = json.dumps(description, sort_keys=True).encode()
        if "/commits/" in info.name:
            commit = json.loads(content)
            for key in ("attempt", "host", "previous", "started", "seconds"):
                del commit[key]
            for key in ("attempts", "seconds"):
                del commit["totals"][key]
            if commit["data"]:
                del commit["data"]["generation"]
            content = json.dumps(commit, sort_keys=True).encode()
        seen[info.name] = hashlib.sha256(content).hexdigest()
    return seen


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """A line for each object that is missing, has other bytes, or should not be there."""
    return [
        f"{name}: {'missing' if name not in found else 'unexpected' if name not in expected else 'other bytes'}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def phase_of(text: bytes, had: Shelf, at: Shelf, later: Shelf) -> str:
    """Where a kill fell: from what the worker had said, and what its folder held before, then and a moment later."""
    if AT_RECORD not in text:
        if b"Finished XLA compilation of jit(step)" in text:
            return "finding the cursor"
        return "compile" if b"tracing step" in text or b"jit(step)" in text else "start-up"
    torn = at.torn - had.torn
    if any("/commits/" in name for name in torn) or later.commits > at.commits or len(at.data) > len(at.commits):
        return "commit"
    if torn or later.data > at.data:
        return "upload"
    return "steps"
