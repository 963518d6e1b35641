"""The bytes of a packed file.

In: the name of a file, and its stored bytes. Out: the bytes as they were before they were packed. Guarantee: all
members are read; a file that is cut, of no bytes, or goes on with other bytes raises OSError. Cost: small buffers.
"""

import bz2
import io
from typing import Any

from .file_kinds import packing_of

CHUNK = 1 << 16  # bytes; a member's end copies the rest of one


def unpacked(name: str, stored: io.BufferedReader) -> io.BufferedReader:
    """Return the bytes of a file as they were before it was packed."""
    import pyarrow

    packing = packing_of(name)
    if packing is None:
        return stored
    if not stored.peek(1):
        raise OSError("it is empty, which no packed file is")
    raw: Any = _Bz2(stored) if packing == "bz2" else pyarrow.CompressedInputStream(stored, packing)
    return io.BufferedReader(raw, 1 << 20)


class _Bz2(io.RawIOBase):
    """The bytes of a bz2 file; pyarrow refuses a member behind an empty one."""

    def __init__(self, stored: io.BufferedReader):
        self._stored, self._member = stored, bz2.BZ2Decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self._member.eof:
                data = self._member.unused_data or self._stored.read(CHUNK)
                if not data:
                    return 0
                self._member = bz2.BZ2Decompressor()
            elif self._member.needs_input:
                data = self._stored.read(CHUNK)
                if not data:
                    raise OSError("Truncated compressed stream")
            made = self._member.decompress(data, len(buffer))
            if made:
                buffer[: len(made)] = made
                return len(made)
