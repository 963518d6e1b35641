"""Digests as the objects of a run spell them.

In: bytes. Out: `sha256:` and 64 hexadecimal digits. Cost: one pass.
"""

import hashlib
from collections.abc import Iterable


def digest_of(data: bytes | memoryview) -> str:
    """Return the digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_ids(ids: Iterable[str]) -> str:
    """Return the digest of the record ids in order, each followed by a zero byte."""
    return digest_of("\0".join([*ids, ""]).encode(errors="surrogatepass"))
