"""Storage: whole, create-only objects by name, in a folder or in one of `BACKENDS`.

The backends are buckets of Google Cloud Storage and of S3, and repositories of the Hugging Face hub, which are
read-only.

In: names relative to a location, and bytes. Out: `ObjectInfo`s and bytes.

Guarantee: `create` returns only when the object is stored whole, with the size and crc32c of the data, under a name
that was free or had the same bytes; no object is ever visible in part, replaced or deleted. After a lost or unexpected
answer the object is read back. Every wait is bounded; beyond the bound `TryAgain` is raised.

Cost: one request for each operation (a large upload: one to open it, one for each 32 MiB); locally two fsyncs.
"""

import re
from pkgutil import resolve_name

from ..core.errors import InvalidRequest
from .base import ObjectInfo, Storage, check_name, crc32c_base64

__all__ = ["BACKENDS", "ObjectInfo", "Storage", "backend_of", "check_name", "crc32c_base64", "open_storage"]

_FOLDER = "extraction.storage.local:LocalStorage"
_LOOKS_LIKE_URL = re.compile(r"\s*([a-z][a-z0-9+.-]*:/|(gs|gcs|hf|s3|file|https?)(:|//|\\))", re.IGNORECASE)
# Scheme of a location, before :// -> its `Storage`, imported on first use.
BACKENDS = {
    "gs": "extraction.storage.gcs:GcsStorage",
    "hf": "extraction.storage.hub:HubStorage",
    "s3": "extraction.storage.s3:S3Storage",
}


def open_storage(location: str) -> Storage:
    """Return the storage at gs://bucket/prefix, s3://bucket/prefix, hf://datasets/owner/name@revision or in a folder.

    Raises InvalidRequest for any other location.
    """
    return backend_of(location)(location)


def backend_of(location: str) -> type[Storage]:
    """Return the storage class of a location.

    Raises InvalidRequest for a scheme that is not in `BACKENDS`, and for a folder whose name looks like a URL.
    """
    scheme, is_url, _ = location.partition("://")
    if is_url and scheme in BACKENDS:
        return resolve_name(BACKENDS[scheme])
    if is_url or _LOOKS_LIKE_URL.match(location):
        known = " or ".join(f"{scheme}://..." for scheme in BACKENDS)
        raise InvalidRequest(f"{location}: give {known} or a local folder (./NAME for one whose name looks like a URL)")
    return resolve_name(_FOLDER)
