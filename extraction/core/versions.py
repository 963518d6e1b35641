"""Versions of the software of a worker: packages that may change rounding, and the project itself.

In: the metadata of installed packages and the project's source files. Out: {name: version}. Guarantee: no package is
imported. Cost: some ten milliseconds, once.
"""

import functools
import hashlib
import platform
from importlib import metadata
from pathlib import Path

DEVICE = "device"  # the kind of chip, which its worker adds
PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "numpy", "tokenizers", "transformers")
COMPARED = ("project", "jax", "jaxlib", "flax", "libtpu", "numpy", "tokenizers", "transformers", DEVICE)
_ROOT = Path(__file__).parents[2]


@functools.cache
def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages; `project` is a digest of the sources."""
    versions = {"python": platform.python_version(), "project": _source_digest()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted([_ROOT / "checkpoint.py", *(_ROOT / "extraction").rglob("*.py")]):
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"sha256:{digest.hexdigest()[:16]}"


@functools.cache
def cpu_features() -> str:
    """Return a short digest of the machine's instruction set, which decides how a CPU rounds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {' '.join(sorted(found.split()))}".encode()).hexdigest()[:8]


def version_differences(stored: dict[str, str], own: dict[str, str]) -> list[str]:
    """Return a line for each compared name that differs: `jax: 0.10.1 in the run, 0.10.2 here`."""
    return [
        f"{name}: {stored.get(name, 'none')} in the run, {own.get(name, 'none')} here"
        for name in COMPARED
        if stored.get(name) != own.get(name)
    ]
