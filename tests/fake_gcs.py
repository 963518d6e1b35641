"""A small Google Cloud Storage server for tests: the JSON API as google-cloud-storage uses it, over real HTTP.

It keeps objects in memory, or in a folder so that they outlive the process. Preconditions are honoured where the object
would land: on media, multipart and resumable uploads. It can be told to misbehave, for named operations and objects:

    server.instruct("insert", "*/commits/*", "land-then-break", count=1)

operations: insert (single-request upload), resumable-start, resumable-chunk, get (metadata), read (content), list
actions:    fail (with `status`), reset (drop the connection before anything), land-then-break (do it, then drop the
            connection without an answer), hold (for `seconds`, then do it), corrupt, cut (half of the content), throttle
            (to `rate` bytes a second)

    python -m tests.fake_gcs --port 0 --bucket bucket --folder DIR
"""

import argparse
import base64
import contextlib
import fnmatch
import hashlib
import itertools
import json
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c
from sortedcontainers import SortedDict


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


@dataclass
class Object:
    data: bytes
    generation: int
    updated: float

    @cached_property
    def crc32c(self) -> str:
        return crc32c(self.data)

    @cached_property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()


@dataclass
class Instruction:
    operation: str
    name: str
    action: str
    count: int = 1
    status: int = 503
    seconds: float = 0.0
    rate: float = 0.0


@dataclass
class Session:
    name: str
    precondition: str | None
    data: bytearray = field(default_factory=bytearray)
    expected_crc32c: str | None = None
    done: Object | None = None


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message)
        self.status, self.reason = status, reason


class FakeGcs(ThreadingHTTPServer):
    """The server; `address` is what STORAGE_EMULATOR_HOST is set to. Use as a context manager."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, bucket: str = "bucket", port: int = 0, folder: Path | None = None):
        super().__init__(("127.0.0.1", port), Handler)
        self.bucket, self.folder = bucket, folder
        self.lock = threading.Lock()
        self.objects: SortedDict[str, Object] = SortedDict()
        self.sessions: dict[str, Session] = {}
        self.instructions: list[Instruction] = []
        self.history: list[tuple[float, str, str, int]] = []
        self.can_overwrite, self.one_write_a_second = True, False
        self._last_generation = 1_000_000
        for path in sorted(folder.glob("*")) if folder else []:
            self._last_generation += 1
            self.objects[unquote(path.name)] = Object(path.read_bytes(), self._last_generation, path.stat().st_mtime)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FakeGcs":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def instruct(self, operation: str, name: str, action: str, **settings: object) -> None:
        with self.lock:
            self.instructions.append(Instruction(operation, name, action, **settings))

    def instruction(self, operation: str, name: str) -> Instruction | None:
        """The first instruction for this request, used up by one."""
        with self.lock:
            for found in self.instructions:
                if found.count > 0 and fnmatch.fnmatch(operation, found.operation) and fnmatch.fnmatch(name, found.name):
                    found.count -= 1
                    return found
        return None

    def find(self, name: str) -> Object:
        with self.lock:
            if name not in self.objects:
                raise Refused(404, "notFound", f"No such object: {self.bucket}/{name}")
            return self.objects[name]

    def land(self, name: str, data: bytes, precondition: str | None) -> Object:
        """Make an object visible, whole, if its precondition holds at this moment."""
        with self.lock:
            there = self.objects.get(name)
            if precondition is not None and int(precondition) != (there.generation if there else 0):
                raise Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
            if there and not self.can_overwrite:
                raise Refused(403, "forbidden", "does not have storage.objects.delete access to the object.")
            if there and self.one_write_a_second and time.time() - there.updated < 1:
                raise Refused(429, "rateLimitExceeded", "The object exceeded the rate limit for object mutation operations.")
            self._last_generation += 1
            stored = Object(bytes(data), self._last_generation, time.time())
            if self.folder:
                temporary = self.folder.parent / f"{self.folder.name}-{uuid.uuid4().hex}"
                temporary.write_bytes(data)
                temporary.replace(self.folder / quote(name, safe=""))
            self.objects[name] = stored
            return stored


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeGcs

    def log_message(self, *arguments: object) -> None:
        return

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def do_DELETE(self) -> None:
        self._route("DELETE")

    def _route(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if url.path == "/_instructions":
                self.server.instruct(**json.loads(self.body))
                return self._answer(200, b"{}")
            match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
            if not match:
                raise Refused(404, "notFound", f"no such path {url.path}")
            kind, bucket, name = match[1], match[2], unquote(match[3] or "")
            if bucket != self.server.bucket:
                raise Refused(404, "notFound", "The specified bucket does not exist.")
            self._serve(method, kind, name)
        except Refused as refused:
            self._note(url.path, refused.status)
            error = {"code": refused.status, "message": str(refused), "errors": [{"reason": refused.reason, "message": str(refused)}]}
            self._answer(refused.status, json.dumps({"error": error}).encode())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _serve(self, method: str, kind: str | None, name: str) -> None:
        if kind == "/upload":
            return self._upload(method)
        if method == "DELETE":
            raise Refused(403, "forbidden", "does not have storage.objects.delete access to the object.")
        if not name:
            return self._perform("list", self.query.get("prefix", ""), self._list)
        if kind == "/download" or self.query.get("alt") == "media":
            return self._perform("read", name, lambda: self._read(name))
        return self._perform("get", name, lambda: self._answer(200, self._metadata(name, self.server.find(name))))

    def _perform(self, operation: str, name: str, act) -> None:
        """Do what a request asks for, in the way that an instruction says."""
        told = self.told = self.server.instruction(operation, name)
        action = told.action if told else None
        if action == "fail":
            raise Refused(told.status, "backendError", "as instructed")
        if action == "reset":
            return self._drop()
        if action == "hold":
            time.sleep(told.seconds)
        if action == "throttle":
            time.sleep(len(self.body) / told.rate)
        if action == "cut" and operation != "read":
            return self._drop()
        if action == "land-then-break":
            self._answer = lambda *arguments, **keywords: None
            with contextlib.suppress(Refused):
                act()
            del self._answer
            return self._drop()
        self._note(f"{operation} {name}", 200)
        act()

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _note(self, what: str, status: int) -> None:
        self.server.history.append((time.time(), self.command, what, status))

    def _upload(self, method: str) -> None:
        if "upload_id" in self.query:
            session = self.server.sessions.get(self.query["upload_id"])
            if session is None:
                raise Refused(410, "gone", "no such upload")
            return self._perform("resumable-chunk", session.name, lambda: self._chunk(session))
        metadata, data = self._parts() if self.query["uploadType"] == "multipart" else ({}, self.body)
        if self.query["uploadType"] == "resumable":
            metadata, data = json.loads(self.body or b"{}"), b""
        name = metadata.get("name") or self.query["name"]
        if self.query["uploadType"] == "resumable":
            return self._perform("resumable-start", name, lambda: self._start(name, metadata))
        self._perform("insert", name, lambda: self._insert(name, data, metadata.get("crc32c")))

    def _insert(self, name: str, data: bytes, expected: str | None) -> None:
        stored = self._land(name, data, self.query.get("ifGenerationMatch"), expected)
        self._answer(200, self._metadata(name, stored))

    def _land(self, name: str, data: bytes, precondition: str | None, expected: str | None) -> Object:
        if expected and expected != crc32c(data):
            raise Refused(400, "invalid", "Provided CRC32C does not match the content.")
        return self.server.land(name, data, precondition)

    def _parts(self) -> tuple[dict, bytes]:
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
        _, first, rest = self.body.split(b"--" + boundary, 2)
        content = rest.rpartition(b"\r\n--" + boundary + b"--")[0]
        return json.loads(first.partition(b"\r\n\r\n")[2]), content.partition(b"\r\n\r\n")[2]

    def _start(self, name: str, metadata: dict) -> None:
        precondition = self.query.get("ifGenerationMatch")
        there = self.server.objects.get(name)
        if precondition is not None and int(precondition) != (there.generation if there else 0):
            raise Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        upload_id = uuid.uuid4().hex
        self.server.sessions[upload_id] = Session(name, precondition, expected_crc32c=metadata.get("crc32c"))
        path = f"/upload/storage/v1/b/{self.server.bucket}/o?uploadType=resumable&upload_id={upload_id}"
        self._answer(200, b"", Location=self.server.address + path)

    def _chunk(self, session: Session) -> None:
        first, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"]).groups()
        if session.done is None and first is not None:
            if int(first) > len(session.data):
                raise Refused(400, "invalid", "a chunk is missing before this one")
            session.data[int(first) :] = self.body
        if session.done is None and total != "*" and len(session.data) == int(total):
            session.done = self._land(session.name, bytes(session.data), session.precondition, session.expected_crc32c)
        if session.done is not None:
            return self._answer(200, self._metadata(session.name, session.done))
        self._answer(308, b"", **({"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}))

    def _metadata(self, name: str, stored: Object) -> bytes:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.updated))
        return json.dumps({
            "kind": "storage#object", "bucket": self.server.bucket, "name": name, "generation": str(stored.generation),
            "metageneration": "1", "size": str(len(stored.data)), "crc32c": stored.crc32c, "updated": stamp,
            "md5Hash": stored.md5, "timeCreated": stamp,
            "etag": str(stored.generation), "contentType": "application/octet-stream",
        }).encode()

    def _read(self, name: str) -> None:
        stored, told = self.server.find(name), self.told
        data, status, headers = stored.data, 200, {"X-Goog-Hash": f"crc32c={stored.crc32c}"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and (asked[1] != "0" or asked[2]):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self._answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        headers["X-Goog-Generation"] = str(stored.generation)
        if told and told.action == "corrupt":
            data = bytes([data[0] ^ 1]) + data[1:]
        self._answer(status, data, cut=bool(told and told.action == "cut"), **headers)

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        first = max(prefix, self.query.get("startOffset", ""), self.query.get("pageToken", ""))
        most, items, prefixes, token = int(self.query.get("maxResults", 1000)), [], [], {}
        with self.server.lock:
            names = self.server.objects.irange(first)
            for name in itertools.takewhile(lambda name: name.startswith(prefix), names):
                if len(items) + len(prefixes) == most:
                    token = {"nextPageToken": name}
                    break
                folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if not found:
                    items.append(json.loads(self._metadata(name, self.server.objects[name])))
                elif prefix + folder + found not in prefixes[-1:]:
                    prefixes.append(prefix + folder + found)
        content = {"kind": "storage#objects"} | ({"items": items} if items else {}) | ({"prefixes": prefixes} if prefixes else {})
        self._answer(200, json.dumps(content | token).encode())

    def _answer(self, status: int, body: bytes, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "application/octet-stream")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._drop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", default="bucket")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    server = FakeGcs(arguments.bucket, arguments.port, arguments.folder)
    print(server.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
