"""`extensions/NNNN.json` of an output: further streams that a run has taken up.

In: the digest and the sizes of extended streams, or stored bytes that anybody may have changed. Out: `RunExtension`.
Guarantee: an extension names the object before it by its digest, the first one `run.json`; equal streams give equal
bytes, whichever worker writes them. Cost: one listing, and a read for each extension.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..core.errors import DamagedData
from ..core.strict_json import dumps, loads
from ..storage import Storage
from .digests import digest_of
from .extension_names import list_extensions

_MOST = 16 << 20  # bytes; some 20 for each stream


class Extent(NamedTuple):
    """Streams that were added in one step: the digest of all so far, and how many records of each are extracted."""

    manifest_digest: str
    records_per_stream: tuple[int, ...]


@dataclass(frozen=True)
class RunExtension:
    """Streams that a run took up. `previous` is the digest of the object before; `digest` that of the stored bytes."""

    format: int
    previous: str
    manifest_digest: str
    records_per_stream: tuple[int, ...]
    digest: str = field(default="", compare=False)

    def to_bytes(self) -> bytes:
        """Return the bytes of the object."""
        value = asdict(self)
        del value["digest"]
        return dumps(value, indent=2)


def read_extensions(storage: Storage, number_of_format: int, previous: str) -> tuple[RunExtension, ...]:
    """Return the extensions of a run, in order; `previous` is the digest of `run.json`.

    Raises DamagedData for a gap, or for one that is unreadable or does not follow the one before it.
    """
    found: list[RunExtension] = []
    for name in list_extensions(storage):
        found.append(_parse(storage.read_small(name, _MOST), f"{storage}/{name}"))
        if (found[-1].format, found[-1].previous) != (number_of_format, previous):
            raise DamagedData(f"{storage}/{name}: it does not follow the object before it, {previous}")
        previous = found[-1].digest
    return tuple(found)


def _parse(data: bytes, name: str) -> RunExtension:
    try:
        value: Any = loads(data)
        sizes, texts = value["records_per_stream"], (value["previous"], value["manifest_digest"])
        if type(sizes) is not list or not all(type(size) is int and 0 <= size < 1 << 63 for size in sizes):
            raise ValueError("records_per_stream is not a list of numbers of records")
        if type(value["format"]) is not int or not all(type(text) is str for text in texts):
            raise ValueError("format, previous or manifest_digest has the wrong type")
        return RunExtension(value["format"], *texts, tuple(sizes), digest_of(data))
    except (ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DamagedData(f"{name}: not a readable extension of a run ({what})") from error
