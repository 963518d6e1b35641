"""What the small Google Cloud Storage server of the tests keeps: objects, uploads, and instructions to misbehave."""

import base64
import hashlib
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property

import google_crc32c

REASONS = {400: "invalid", 401: "authError", 403: "forbidden", 404: "notFound", 410: "gone", 429: "rateLimitExceeded"}


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def flipped(data: bytes) -> bytes:
    """The data with its first bit flipped."""
    return bytes([data[0] ^ 1]) + data[1:] if data else data


@dataclass
class Object:
    name: str
    data: bytes
    generation: int
    updated: float

    @cached_property
    def crc32c(self) -> str:
        return crc32c(self.data)

    @cached_property
    def metadata(self) -> dict[str, str]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.updated)) + f".{int(self.updated % 1 * 1000):03d}Z"
        return {
            "kind": "storage#object",
            "name": self.name,
            "generation": str(self.generation),
            "metageneration": "1",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "updated": stamp,
            "timeCreated": stamp,
            "md5Hash": base64.b64encode(hashlib.md5(self.data).digest()).decode(),
            "etag": str(self.generation),
            "contentType": "application/octet-stream",
        }


@dataclass
class Instruction:
    operation: str
    name: str
    action: str
    count: int = 1
    status: int = 503
    reason: str = ""
    seconds: float = 60.0
    rate: float = 1e6
    entered: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class Session:
    name: str
    precondition: str | None
    data: bytearray = field(default_factory=bytearray)
    expected_crc32c: str | None = None
    done: Object | None = None


class Refused(Exception):
    def __init__(self, status: int, message: str, reason: str = ""):
        super().__init__(message)
        self.status, self.reason = status, reason or REASONS.get(status, "backendError")
