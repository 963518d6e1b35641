"""Storage: whole, create-only objects by name, on a local disk or in a Google Cloud Storage bucket; and the
files of a repository on the Hugging Face hub, which can only be read.

In: names relative to a location, and bytes. Out: `ObjectInfo`s and bytes.

Guarantee: `create` returns only when the object is stored whole, with the size and crc32c of the data, under a name that
held nothing or the same bytes before; no object is ever visible in part, replaced or deleted. An answer that was lost
or odd is settled by reading back. Every wait is bounded, and what lies beyond the bound is `TryAgain`.

Cost: one request for each operation (a large upload: one to open it, one for each 32 MiB); locally two fsyncs.
"""

from ..errors import InvalidRequest
from .base import ObjectInfo, Storage, check_name, crc32c_base64

__all__ = ["ObjectInfo", "Storage", "check_name", "crc32c_base64", "open_storage"]


def open_storage(location: str) -> Storage:
    """The storage at `gs://bucket/prefix`, `hf://datasets/owner/name@revision` or in a folder.

    Raises InvalidRequest for any other scheme.
    """
    if location.startswith("gs://"):
        from .gcs import GcsStorage

        return GcsStorage(location)
    if location.startswith("hf://"):
        from .hub import HubStorage

        return HubStorage(location)
    if "://" in location:
        raise InvalidRequest(f"{location}: give a folder or gs://bucket/prefix")
    from .local import LocalStorage

    return LocalStorage(location)
