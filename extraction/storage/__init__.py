"""Storage: whole, create-only objects by name, in a folder or at one of `BACKENDS`: a Google Cloud Storage bucket, or
the files of a repository on the Hugging Face hub, which can only be read.

In: names relative to a location, and bytes. Out: `ObjectInfo`s and bytes.

Guarantee: `create` returns only when the object is stored whole, with the size and crc32c of the data, under a name that
held nothing or the same bytes before; no object is ever visible in part, replaced or deleted. An answer that was lost
or odd is settled by reading back. Every wait is bounded, and what lies beyond the bound is `TryAgain`.

Cost: one request for each operation (a large upload: one to open it, one for each 32 MiB); locally two fsyncs.
"""

from pkgutil import resolve_name

from ..core.errors import InvalidRequest
from .base import ObjectInfo, Storage, check_name, crc32c_base64

__all__ = ["BACKENDS", "ObjectInfo", "Storage", "backend_of", "check_name", "crc32c_base64", "open_storage"]

_FOLDER = "extraction.storage.local:LocalStorage"
# What a location begins with, before :// -> where its `Storage` is; imported when such a location is asked for.
BACKENDS = {
    "gs": "extraction.storage.gcs:GcsStorage",
    "hf": "extraction.storage.hub:HubStorage",
}


def open_storage(location: str) -> Storage:
    """The storage at `gs://bucket/prefix`, `hf://datasets/owner/name@revision` or in a folder.

    Raises InvalidRequest for what is none of them.
    """
    return backend_of(location)(location)


def backend_of(location: str) -> type[Storage]:
    """The kind of storage that a location is in. Raises InvalidRequest for one that is not in `BACKENDS`."""
    scheme, is_url, _ = location.partition("://")
    if is_url and scheme not in BACKENDS:
        known = " or ".join(f"{scheme}://..." for scheme in BACKENDS)
        raise InvalidRequest(f"{location}: give a local folder, {known}")
    return resolve_name(BACKENDS[scheme] if is_url else _FOLDER)
