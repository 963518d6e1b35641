"""Extensions of streams: further streams beside those that exist, which stay as they are.

In: a streams folder (local or gs://bucket/prefix). Out: the `Manifest` of all its streams. `manifest.json` has the
first ones. `extensions/NNNN.json`, counted from 1, names a folder in the streams folder whose `manifest.json` has the
streams that were added; their numbers continue those before.

Guarantee: each extension names the digest of its manifest and that of the part before it, so that the digest of the
last one pins all. A gap or another digest raises DamagedData. Cost: a listing, one read for the first streams, and two
for each extension.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..core import strict_json
from ..core.errors import DamagedData, InvalidRequest, ObjectNotFound
from ..format.digests import digest_of
from ..format.extension_names import list_extensions
from ..storage import Storage, check_name, open_storage
from .manifest import MANIFEST_NAME, SCHEMA, Manifest, StreamsPart, canonical_json, parse_manifest

_KEYS = {"schema", "previous", "folder", "manifest"}


def load_manifest(location: Storage | str) -> Manifest:
    """Read and check the manifests of a streams folder.

    Raises InvalidRequest when the folder has none, DamagedData when one is not a manifest of this schema, or not the
    one that its extension names.
    """
    home = open_storage(location) if isinstance(location, str) else location
    try:
        first = _read(home, "")
    except ObjectNotFound:
        raise InvalidRequest(f"{location} holds no {MANIFEST_NAME}: not a folder of finished streams") from None
    parts = [StreamsPart("", first, first.digest)]
    for name in list_extensions(home):
        parts.append(_extension(home, name, parts[-1].digest))
    return join_parts(parts)


def join_parts(parts: Sequence[StreamsPart]) -> Manifest:
    """Return the manifest of all streams of some parts, the first of which is the beginning."""
    if len(parts) == 1:
        return parts[0].manifest
    manifests = [part.manifest for part in parts]
    return replace(
        manifests[0],
        num_streams=sum(manifest.num_streams for manifest in manifests),
        num_records=sum(manifest.num_records for manifest in manifests),
        files=tuple(file for manifest in manifests for file in manifest.files),
        streams=tuple(stream for manifest in manifests for stream in manifest.streams),
        digest=parts[-1].digest,
        parts=tuple(parts),
    )


def parts_of(manifest: Manifest) -> tuple[StreamsPart, ...]:
    """Return the parts of a manifest: one if the streams were not extended."""
    return manifest.parts or (StreamsPart("", manifest, manifest.digest),)


def up_to(manifest: Manifest, digest: str) -> Manifest | None:
    """Return the manifest without the parts behind the one of this digest, None if there is no such part."""
    if digest not in manifest.digests:
        return None
    return join_parts(parts_of(manifest)[: manifest.digests.index(digest) + 1])


def home_of(home: Storage, part: StreamsPart) -> Storage:
    """Return the folder of a part, which the names of its files are relative to."""
    return open_storage(f"{home.location}/{part.folder}") if part.folder else home


def encode_extension(previous: str, folder: str, manifest: Manifest) -> bytes:
    """Return the bytes of an extension: `previous` is the digest of the part before it."""
    return canonical_json({"schema": SCHEMA, "previous": previous, "folder": folder, "manifest": manifest.digest})


def _extension(home: Storage, name: str, previous: str) -> StreamsPart:
    data, where = home.read(name), f"{home}/{name}"
    try:
        value = strict_json.loads(data)
    except ValueError as error:
        raise DamagedData(f"{where} is not JSON: {error}") from None
    if type(value) is not dict or value.keys() != _KEYS or type(value["folder"]) is not str:
        raise DamagedData(f"{where} is not an extension: it needs {', '.join(sorted(_KEYS))}")
    if value["schema"] != SCHEMA:
        raise DamagedData(f"{where}: schema is {value['schema']}; this version reads schema {SCHEMA}")
    if value["previous"] != previous:
        raise DamagedData(f"{where}: the streams before it have the digest {previous}, not {value['previous']}")
    folder = check_name(value["folder"])
    try:
        manifest = _read(home, f"{folder}/")
    except ObjectNotFound:
        raise DamagedData(f"{where} names {folder}/{MANIFEST_NAME}, which is missing: restore it") from None
    if manifest.digest != value["manifest"]:
        raise DamagedData(f"{home}/{folder}/{MANIFEST_NAME}: not the manifest that {name} names")
    return StreamsPart(folder, manifest, digest_of(data))


def _read(home: Storage, folder: str) -> Manifest:
    return parse_manifest(home.read(f"{folder}{MANIFEST_NAME}"), f"{home}/{folder}{MANIFEST_NAME}")
