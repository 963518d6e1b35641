"""Publish a manifest: the last write, and only to an output without other streams.

In: where the records come from (`Origin`), files and streams. Out: `manifest.json` in the output folder; see
`Published`.

Guarantee: the manifest is written last and create-only, so a folder with a manifest is complete. The same streams are
left unchanged; other streams are refused.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...core.errors import InvalidRequest, ObjectExists, ObjectNotFound
from ...format.digests import digest_of
from ...storage import Storage
from ..manifest import (
    MANIFEST_NAME,
    Manifest,
    ParquetFacts,
    Piece,
    StreamEntry,
    encode_manifest,
    parse_manifest,
)


class OtherStreams(InvalidRequest):
    """The output folder already has other streams. Nothing was written."""


@dataclass(frozen=True)
class Origin:
    """The source of the streams. `options` has everything else that decides their content."""

    dataset: str
    source: str
    revision: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """The manifest in the output folder, and whether it existed before this call."""

    manifest: Manifest
    already_there: bool


def stream_entry(pieces: Sequence[Piece], digest: str) -> StreamEntry:
    """Return the manifest entry of a stream of these pieces."""
    return StreamEntry(sum(piece.records for piece in pieces), digest, tuple(pieces))


def manifest_of(origin: Origin, files: Sequence[ParquetFacts], streams: Sequence[StreamEntry]) -> Manifest:
    """Return the manifest of these streams, with its digest."""
    num_records = sum(stream.num_records for stream in streams)
    values = {field.name: getattr(origin, field.name) for field in fields(origin)}
    draft = Manifest(**values, num_streams=len(streams), num_records=num_records, files=tuple(files),
                     streams=tuple(streams), digest="")  # fmt: skip
    return replace(draft, digest=digest_of(encode_manifest(draft)))


def manifest_there(storage: Storage) -> Manifest | None:
    """Return the manifest in the output, if there is one. Raises DamagedData when it is not a manifest."""
    try:
        return parse_manifest(storage.read(MANIFEST_NAME), f"{storage}/{MANIFEST_NAME}")
    except ObjectNotFound:
        return None


def published_before(storage: Storage, manifest: Manifest) -> Published | None:
    """Return the stored manifest when it is equal. Raises OtherStreams when it differs."""
    there = manifest_there(storage)
    if there is None:
        return None
    if differences := list(_differences(there, manifest)):
        raise OtherStreams(f"the output already has other streams: {'; '.join(differences)}")
    return Published(there, already_there=True)


def _differences(there: Manifest, asked: Manifest) -> Iterator[str]:
    for name in ("dataset", "source", "revision", "options", "num_streams", "num_records"):
        old, new = getattr(there, name), getattr(asked, name)
        if name == "options":
            same = {key for key in old if key in new and old[key] == new[key]}
            old, new = ({key: value for key, value in one.items() if key not in same} for one in (old, new))
        if old != new:
            yield f"{name} {json.dumps(old)[:300]} there, {json.dumps(new)[:300]} requested"
    for old, new in itertools.zip_longest(there.files, asked.files):
        if old != new:
            same_rows = old and new and (old.name, old.num_rows, old.skipped) == (new.name, new.num_rows, new.skipped)
            hint = " in its content, or was written by another version of pyarrow" if same_rows else ""
            yield f"the file {(old or new).name} differs{hint}"
            return
    if there.num_streams == asked.num_streams and there.streams != asked.streams:
        yield "the streams are cut differently"


def publish_manifest(storage: Storage, manifest: Manifest) -> Published:
    """Write the manifest: from now on the streams exist."""
    create_only(storage, MANIFEST_NAME, encode_manifest(manifest))
    return Published(manifest, already_there=False)


def create_only(storage: Storage, name: str, data: bytes) -> None:
    """Write an object; adopt the same bytes. Raises OtherStreams for other bytes."""
    try:
        storage.create(name, data)
    except ObjectExists:
        raise OtherStreams(f"another process wrote {name} with other content to the output") from None
