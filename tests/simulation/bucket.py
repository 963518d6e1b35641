"""A bucket of Google Cloud Storage in memory: requests as the service's own client makes them in, answers out.

In: method, URL, headers and body of a request, and the time. Out: an `Answer`, after the request took effect whole.
Guarantee: as the service documents it: preconditions and checksums are tested where the object would appear, lists are
consistent, one name takes one overwrite a second. A page of a list may be shorter than was asked for. `violations`
names each object that was overwritten although nothing may overwrite it.
"""

import json
import re
import time
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cached_property, lru_cache
from urllib.parse import parse_qsl, unquote

from extraction.storage import crc32c_base64

MAY_BE_REPLACED = re.compile(r".*/progress\.json")
_PATH = re.compile(r"https?://[^/]+(/upload|/download)?/storage/v1/b/[^/]+/o(?:/([^?]+))?(?:\?(.*))?")
_REASONS = {400: "invalid", 401: "authError", 403: "forbidden", 404: "notFound", 410: "gone", 412: "conditionNotMet"}


@dataclass
class Request:
    """An HTTP request; `operation` is create, replace, start, stat, read, list or now."""

    method: str
    url: str
    headers: dict
    body: bytes
    operation: str = ""
    name: str = ""
    kind: str = ""
    query: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kind, self.name, self.query = _parts_of_url(self.url)
        if self.kind == "/upload":
            self._name_upload()
        elif self.name:
            self.operation = "read" if self.kind == "/download" else "stat"
        else:
            self.operation, self.name = "list", self.query.get("prefix", "")
            if "prefix" not in self.query:
                self.operation = "now"

    def _name_upload(self) -> None:
        if "upload_id" in self.query:
            self.operation = "create"
            return
        resumable = self.query["uploadType"] == "resumable"
        found = re.search(rb'"name": *"([^"]*)"', self.body[:2000])
        assert found
        self.name = found[1].decode()
        self.operation = "start" if resumable else "create" if "ifGenerationMatch" in self.query else "replace"


@lru_cache(1 << 14)
def _parts_of_url(url: str) -> tuple[str, str, dict[str, str]]:
    """Return the kind of a URL, the name of its object and its query, which nobody changes."""
    match = _PATH.fullmatch(url)
    assert match, url
    return match[1] or "", unquote(match[2] or ""), dict(parse_qsl(match[3] or ""))


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Object:
    """A stored object. `updated` is in seconds since 1970."""

    name: str
    data: bytes
    generation: int
    updated: float
    crc32c: str

    @cached_property
    def metadata(self) -> str:
        """What the JSON API says of it."""
        whole = int(self.updated)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((self.updated - whole) * 1000):03d}Z"
        sizes = {"size": str(len(self.data)), "crc32c": self.crc32c}
        return json.dumps({"name": self.name, "generation": str(self.generation), "updated": stamp} | sizes)


class Refused(Exception):
    """The service refuses a request."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.answer = refusal(status, message)


def refusal(status: int, message: str, reason: str = "") -> Answer:
    """Return the answer of a request that is refused."""
    reason = reason or _REASONS.get(status, "backendError")
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
    return Answer(status, json.dumps({"error": error}).encode(), {"Content-Type": "application/json"})


@lru_cache(4096)
def _checksum(data: bytes) -> str:
    return crc32c_base64(data)


class Bucket:
    """The objects, by name. `page_size` is the most objects in a page of a list."""

    def __init__(self, page_size: int = 1000):
        self.objects: dict[str, Object] = {}
        self.violations: list[str] = []
        self.requests = 0
        self.page_size = page_size
        self._names: list[str] = []
        self._sessions: dict[str, tuple[str, str, str | None]] = {}
        self._closed: dict[str, Object] = {}
        self._last_generation = 1_000_000

    def perform(self, request: Request, now: float) -> Answer:
        """Let a request take effect; return the answer."""
        self.requests += 1
        try:
            return getattr(self, f"_{request.operation}")(request, now)
        except Refused as refused:
            return refused.answer

    def _create(self, request: Request, now: float) -> Answer:
        if "upload_id" in request.query:
            name, expected, precondition = self._sessions[request.query["upload_id"]]
            data = request.body
            if request.query["upload_id"] in self._closed:  # the service repeats the answer of a finished upload
                return _json(self._closed[request.query["upload_id"]].metadata)
        else:
            name, precondition = request.name, request.query.get("ifGenerationMatch")
            expected, data = _parts_of(request)
        if expected and expected != _checksum(data):
            raise Refused(400, f'Provided CRC32C "{expected}" doesn\'t match calculated CRC32C "{_checksum(data)}".')
        there = self.objects.get(name)
        if precondition is not None and int(precondition) != (there.generation if there else 0):
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if there and now - there.updated < 1:
            raise Refused(429, f"The object {name} exceeded the rate limit for object mutation operations.")
        if there and not MAY_BE_REPLACED.fullmatch(name):
            self.violations.append(f"{name} was overwritten")
        if not there:
            insort(self._names, name)
        self._last_generation += 1
        stored = self.objects[name] = Object(name, data, self._last_generation, now, _checksum(data))
        if "upload_id" in request.query:
            self._closed[request.query["upload_id"]] = stored
        return _json(stored.metadata)

    _replace = _create

    def _start(self, request: Request, now: float) -> Answer:
        metadata = json.loads(request.body)
        upload = f"u{len(self._sessions)}"
        self._sessions[upload] = metadata["name"], metadata.get("crc32c", ""), request.query.get("ifGenerationMatch")
        location = f"{request.url.partition('?')[0]}?uploadType=resumable&upload_id={upload}"
        return Answer(200, b"", {"Location": location})

    def _find(self, request: Request) -> Object:
        found = self.objects.get(request.name)
        if found is None or request.query.get("generation") not in (None, str(found.generation)):
            raise Refused(404, f"No such object: bucket/{request.name}")
        return found

    def _stat(self, request: Request, now: float) -> Answer:
        return _json(self._find(request).metadata)

    def _read(self, request: Request, now: float) -> Answer:
        stored = self._find(request)
        data, headers = stored.data, {"X-Goog-Hash": f"crc32c={stored.crc32c}"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked:
            return Answer(200, data, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Answer(206, data[first : last + 1], headers) if first < len(data) else Answer(416, b"")

    def _list(self, request: Request, now: float) -> Answer:
        prefix, delimiter = request.name, request.query.get("delimiter")
        first = max(prefix, request.query.get("startOffset", ""), request.query.get("pageToken", ""))
        items, prefixes, token = [], [], ""
        for name in self._names[bisect_left(self._names, first) :]:
            if not name.startswith(prefix):
                break
            folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                if prefix + folder + found not in prefixes:
                    prefixes.append(prefix + folder + found)
            elif len(items) == self.page_size:
                token = name
                break
            else:
                items.append(self.objects[name].metadata)
        parts = [f'"items": [{", ".join(items)}]'] if items else []
        parts += [f'"prefixes": {json.dumps(prefixes)}'] if prefixes else []
        parts += [f'"nextPageToken": {json.dumps(token)}'] if token else []
        return _json(f"{{{', '.join(parts)}}}")

    def _now(self, request: Request, now: float) -> Answer:
        return Answer(200, b"{}", {"Date": formatdate(int(now), usegmt=True), "Content-Type": "application/json"})


def _json(text: str) -> Answer:
    return Answer(200, text.encode(), {"Content-Type": "application/json"})


def _parts_of(request: Request) -> tuple[str, bytes]:
    """Return the checksum in the metadata of a multipart upload, and its content."""
    kind = next(value for key, value in request.headers.items() if key.lower() == "content-type")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    boundary = b"--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()
    _, first, rest = request.body.split(boundary, 2)
    content = rest[: rest.rindex(b"\r\n" + boundary + b"--")].partition(b"\r\n\r\n")[2]
    return json.loads(first.partition(b"\r\n\r\n")[2]).get("crc32c", ""), content
