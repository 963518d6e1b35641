"""Publishing a manifest: the last thing written, and only where no other streams are.

In: where the records come from (`Origin`), files and streams. Out: `manifest.json` in the output folder; see
`Published`.

Guarantee: the manifest is written last and create-only, so a folder with a manifest is complete. The same streams are
left as they are; others are refused and nothing is touched.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...core.errors import InvalidRequest, ObjectExists, ObjectNotFound
from ...storage import Storage
from ..manifest import (
    MANIFEST_NAME,
    Manifest,
    ParquetFacts,
    Piece,
    StreamEntry,
    encode_manifest,
    parse_manifest,
    sha256,
)


class OtherStreams(InvalidRequest):
    """The output folder already holds other streams than those asked for. Nothing was written."""


@dataclass(frozen=True)
class Origin:
    """What the streams are made from. `options` holds whatever else decides their content."""

    dataset: str
    source: str
    revision: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """The manifest in the output folder, and whether it was there before this call."""

    manifest: Manifest
    already_there: bool


def stream_entry(pieces: Sequence[Piece], digest: str) -> StreamEntry:
    """A stream of these pieces."""
    return StreamEntry(sum(piece.records for piece in pieces), digest, tuple(pieces))


def manifest_of(origin: Origin, files: Sequence[ParquetFacts], streams: Sequence[StreamEntry]) -> Manifest:
    """The manifest of these streams, with its digest."""
    num_records = sum(stream.num_records for stream in streams)
    values = {field.name: getattr(origin, field.name) for field in fields(origin)}
    draft = Manifest(**values, num_streams=len(streams), num_records=num_records, files=tuple(files),
                     streams=tuple(streams), digest="")  # fmt: skip
    return replace(draft, digest=sha256(encode_manifest(draft)))


def manifest_there(storage: Storage) -> Manifest | None:
    """The manifest in the output, if there is one. Raises DamagedData when it cannot be read as one."""
    try:
        return parse_manifest(storage.read(MANIFEST_NAME), f"{storage}/{MANIFEST_NAME}")
    except ObjectNotFound:
        return None


def published_before(storage: Storage, manifest: Manifest) -> Published | None:
    """The manifest that is there, when it says the same. Raises OtherStreams when it says something else."""
    there = manifest_there(storage)
    if there is None:
        return None
    if differences := list(_differences(there, manifest)):
        raise OtherStreams(f"the output already holds other streams: {'; '.join(differences)}")
    return Published(there, already_there=True)


def _differences(there: Manifest, asked: Manifest) -> Iterator[str]:
    for name in ("dataset", "source", "revision", "options", "num_streams", "num_records"):
        old, new = getattr(there, name), getattr(asked, name)
        if name == "options":
            same = {key for key in old if key in new and old[key] == new[key]}
            old, new = ({key: value for key, value in one.items() if key not in same} for one in (old, new))
        if old != new:
            yield f"{name} {json.dumps(old)[:300]} there, {json.dumps(new)[:300]} asked"
    for old, new in itertools.zip_longest(there.files, asked.files):
        if old != new:
            yield f"the file {(old or new).name} differs"
            return
    if there.num_streams == asked.num_streams and there.streams != asked.streams:
        yield "the streams are cut differently"


def publish_manifest(storage: Storage, manifest: Manifest) -> Published:
    """Write the manifest: from here on the streams exist."""
    create_only(storage, MANIFEST_NAME, encode_manifest(manifest))
    return Published(manifest, already_there=False)


def create_only(storage: Storage, name: str, data: bytes) -> None:
    """Write an object; the same bytes may be there already. Raises OtherStreams when others are."""
    try:
        storage.create(name, data)
    except ObjectExists:
        raise OtherStreams(f"somebody else wrote {name} with other content to the output at the same time") from None
