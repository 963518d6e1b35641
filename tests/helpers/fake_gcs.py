"""A small Google Cloud Storage server for tests: the JSON API as google-cloud-storage uses it, over real HTTP.

It keeps objects in memory, or in a folder so that they outlive the process. Preconditions are honoured where the object
would land: on media, multipart and resumable uploads. A checksum in an upload's metadata is held against the content.
`permissions` are those of the worker (create, get, list, delete; overwriting needs delete), and with
`one_write_a_second` an object name takes one mutation a second, as in the real service.

It can be told to misbehave, for named operations and objects:

    told = server.instruct("insert", "*/commits/*", "land-then-break", count=1)

operations: insert (single-request upload), resumable-start, resumable-chunk, get (metadata), read (content), list
actions:    fail (with `status` and `reason`), reset (drop the connection before anything), land-then-break (do it, then drop the
            connection without an answer), hold (until `told.release.set()` or for `seconds`, then do it; `told.entered`
            says that a request is held), cut (drop the connection in the middle of the content), corrupt (a byte of
            the content, on the way there or back), misreport (another checksum in the answer), whole (all of
            the content for a part of it), throttle (to `rate` bytes a second), undated (an answer without a Date)

    python -m tests.helpers.fake_gcs --port 0 --bucket bucket --folder DIR
"""

import argparse
import contextlib
import fnmatch
import json
import re
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from sortedcontainers import SortedDict

from tests.helpers.gcs_objects import Instruction, Object, Refused, Session, crc32c, flipped

HEAD = 1 << 16  # bytes of an upload that are read before it is decided what becomes of it
PERMISSIONS = frozenset({"create", "get", "list", "delete"})


class FakeGcs(ThreadingHTTPServer):
    """The server; `address` is what STORAGE_EMULATOR_HOST is set to. Use as a context manager.

    `history` lists (time, method, "operation name", status) of every answer; a dropped connection has status 0.
    `ranges` lists (name, first byte, end) of all content that was asked for, in the order in which it was given.
    """

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
        self.ranges: list[tuple[str, int, int]] = []
        self.permissions, self.one_write_a_second = PERMISSIONS, False
        self._last_generation = 1_000_000
        for path in sorted(folder.glob("*")) if folder else []:
            self._keep(unquote(path.name), path.read_bytes(), path.stat().st_mtime)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FakeGcs":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for told in self.instructions:
            told.release.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed is no news
            super().handle_error(request, client_address)

    def instruct(self, operation: str, name: str, action: str, **settings: object) -> Instruction:
        with self.lock:
            self.instructions.append(Instruction(operation, name, action, **settings))
            return self.instructions[-1]

    def instruction(self, operation: str, name: str) -> Instruction | None:
        """The first instruction for this request, used up by one."""
        with self.lock:
            for found in self.instructions:
                matches = fnmatch.fnmatch(operation, found.operation) and fnmatch.fnmatch(name, found.name)
                if matches and found.count > 0:
                    found.count -= 1
                    return found
        return None

    def operations(self, *kinds: str) -> list[str]:
        """What was done successfully so far, as "operation name", in order."""
        return [
            what
            for _, _, what, status in list(self.history)
            if 200 <= status < 300 and (not kinds or what.split(" ")[0] in kinds)
        ]

    def require(self, permission: str) -> None:
        if permission not in self.permissions:
            raise Refused(
                403,
                f"worker@project.iam.gserviceaccount.com does not have storage.objects.{permission} "
                f"access to the Google Cloud Storage object. Permission 'storage.objects.{permission}' "
                "denied on resource (or it may not exist).",
            )

    def find(self, name: str, generation: str | None = None) -> Object:
        self.require("get")
        with self.lock:
            found = self.objects.get(name)
        if found is None or generation not in (None, str(found.generation)):
            self.require("list")  # without it, the service does not tell missing from forbidden
            raise Refused(404, f"No such object: {self.bucket}/{name}")
        return found

    def land(self, name: str, data: bytes, precondition: str | None) -> Object:
        """Make an object visible, whole, if its precondition holds at this moment."""
        self.require("create")
        with self.lock:
            there = self.objects.get(name)
            self.check_precondition(there, precondition)
            if there:
                self.require("delete")
            if there and self.one_write_a_second and time.time() - there.updated < 1:
                raise Refused(429, "The object exceeded the rate limit for object mutation operations.")
            return self._keep(name, data, time.time())

    def check_precondition(self, there: Object | None, precondition: str | None) -> None:
        if precondition is not None and int(precondition) != (there.generation if there else 0):
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")

    def _keep(self, name: str, data: bytes, updated: float) -> Object:
        self._last_generation += 1
        stored = Object(name, bytes(data), self._last_generation, updated)
        if self.folder:
            temporary = self.folder.parent / f"{self.folder.name}-{uuid.uuid4().hex}"
            temporary.write_bytes(data)
            temporary.replace(self.folder / quote(name, safe=""))
        self.objects[name] = stored
        return stored

    def remove(self, name: str) -> None:
        with self.lock:
            del self.objects[name]
            if self.folder:
                (self.folder / quote(name, safe="")).unlink()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeGcs

    def log_message(self, *arguments: object) -> None:
        return

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.what, self.told, self.silent = url.path, None, False
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.body = b""
        self._take(HEAD)
        try:
            if url.path == "/_instructions":
                self.server.instruct(**json.loads(self.body))
                return self._answer(200, b"{}")
            match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
            if not match:
                raise Refused(404, f"no such path {url.path}")
            kind, bucket, name = match[1], match[2], unquote(match[3] or "")
            if bucket != self.server.bucket:
                raise Refused(404, "The specified bucket does not exist.")
            self._serve(kind, name)
        except Refused as refused:
            self._take()
            text = str(refused)
            error = {"code": refused.status, "message": text, "errors": [{"reason": refused.reason, "message": text}]}
            self._answer(refused.status, json.dumps({"error": error}).encode())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = _route

    def _take(self, most: int | None = None, rate: float | None = None) -> None:
        """Read on in the request's body, to its end or by `most` bytes, at no more than `rate` bytes a second."""
        wanted = self.unread if most is None else min(most, self.unread)
        body, begin = bytearray(self.body), time.monotonic()
        while True:
            if rate:
                time.sleep(max(0.0, begin + len(body) / rate - time.monotonic()))
            if not wanted:
                break
            data = self.rfile.read(min(wanted, HEAD) if rate else wanted)
            if not data:
                raise ConnectionResetError("the client went away")
            body += data
            self.unread -= len(data)
            wanted -= len(data)
        self.body = bytes(body)

    def _serve(self, kind: str | None, name: str) -> None:
        if kind == "/upload":
            return self._upload()
        if self.command == "DELETE":
            self.server.require("delete")
            self.server.find(name)
            self.server.remove(name)
            return self._answer(204, b"")
        if not name:
            return self._perform("list", self.query.get("prefix", ""), self._list)
        if kind == "/download" or self.query.get("alt") == "media":
            return self._perform("read", name, lambda: self._read(name))
        return self._perform("get", name, lambda: self._answer(200, self._metadata(self._find(name))))

    def _perform(self, operation: str, name: str, act) -> None:
        """Do what a request asks for, in the way that an instruction says."""
        self.what = f"{operation} {name}"
        told = self.told = self.server.instruction(operation, name)
        action = told.action if told else None
        if action == "fail":
            raise Refused(told.status, "as instructed", told.reason)
        if action == "reset" or (action == "cut" and operation != "read"):
            return self._drop()
        self._take(rate=told.rate if action == "throttle" else None)
        if action == "hold":
            told.entered.set()
            told.release.wait(told.seconds)
        if action == "land-then-break":
            self.silent = True
            with contextlib.suppress(Refused):
                act()
            return self._drop()
        act()
        return None

    def _drop(self) -> None:
        self.server.history.append((time.time(), self.command, self.what, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _upload(self) -> None:
        if "upload_id" in self.query:
            session = self.server.sessions.get(self.query["upload_id"])
            if session is None:
                raise Refused(410, "no such upload")
            return self._perform("resumable-chunk", session.name, lambda: self._chunk(session))
        kind = self.query["uploadType"]
        metadata = self._multipart_metadata() if kind == "multipart" else {}
        if kind == "resumable":
            self._take()
            metadata = json.loads(self.body or b"{}")
        name = metadata.get("name") or self.query["name"]
        if kind == "resumable":
            return self._perform("resumable-start", name, lambda: self._start(name, metadata))
        self._perform("insert", name, lambda: self._insert(name, kind, metadata.get("crc32c")))
        return None

    def _insert(self, name: str, kind: str, expected: str | None) -> None:
        data = self._multipart_content() if kind == "multipart" else self.body
        self._answer(200, self._metadata(self._land(name, data, self.query.get("ifGenerationMatch"), expected)))

    def _land(self, name: str, data: bytes, precondition: str | None, expected: str | None) -> Object:
        if self.told and self.told.action == "corrupt":
            data = flipped(data)
        if expected and expected != crc32c(data):
            raise Refused(400, f'Provided CRC32C "{expected}" doesn\'t match calculated CRC32C "{crc32c(data)}".')
        return self.server.land(name, data, precondition)

    def _boundary(self) -> bytes:
        return b"--" + re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()

    def _multipart_metadata(self) -> dict:
        first = self.body.split(self._boundary(), 2)[1]
        return json.loads(first.partition(b"\r\n\r\n")[2])

    def _multipart_content(self) -> bytes:
        rest = self.body.split(self._boundary(), 2)[2]
        return rest.rpartition(b"\r\n" + self._boundary() + b"--")[0].partition(b"\r\n\r\n")[2]

    def _start(self, name: str, metadata: dict) -> None:
        self.server.require("create")
        self.server.check_precondition(self.server.objects.get(name), self.query.get("ifGenerationMatch"))
        upload_id = uuid.uuid4().hex
        session = Session(name, self.query.get("ifGenerationMatch"), expected_crc32c=metadata.get("crc32c"))
        self.server.sessions[upload_id] = session
        path = f"/upload/storage/v1/b/{self.server.bucket}/o?uploadType=resumable&upload_id={upload_id}"
        self._answer(200, b"", Location=self.server.address + path)

    def _chunk(self, session: Session) -> None:
        first, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"]).groups()
        if session.done is None and first is not None:
            if int(first) > len(session.data):
                raise Refused(400, "a chunk is missing before this one")
            session.data[int(first) :] = self.body
        if session.done is None and total != "*" and len(session.data) == int(total):
            session.done = self._land(session.name, bytes(session.data), session.precondition, session.expected_crc32c)
        if session.done is not None:
            return self._answer(200, self._metadata(session.done))
        self._answer(308, b"", **({"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}))
        return None

    def _find(self, name: str) -> Object:
        found = self.server.find(name, self.query.get("generation"))
        self.server.check_precondition(found, self.query.get("ifGenerationMatch"))
        return found

    def _metadata(self, stored: Object) -> bytes:
        wrong = {"crc32c": "AAAAAA=="} if self.told and self.told.action == "misreport" else {}
        return json.dumps({"bucket": self.server.bucket} | stored.metadata | wrong).encode()

    def _read(self, name: str) -> None:
        stored, action = self._find(name), self.told and self.told.action
        data, status, headers = stored.data, 200, {"X-Goog-Hash": f"crc32c={stored.crc32c}"}
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and (asked[1] != "0" or asked[2]) and action != "whole":
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self._answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        headers["X-Goog-Generation"] = str(stored.generation)
        self.server.ranges.append((name, first, first + len(data)))
        if action == "throttle":
            time.sleep(len(data) / self.told.rate)
        self._answer(status, flipped(data) if action == "corrupt" else data, cut=action == "cut", **headers)
        return None

    def _list(self) -> None:
        self.server.require("list")
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        first = max(prefix, self.query.get("startOffset", ""), self.query.get("pageToken", ""))
        most, items, prefixes, token = min(int(self.query.get("maxResults", 1000)), 1000), [], [], {}
        with self.server.lock:
            names = self.server.objects.irange(first)
            while (name := next(names, None)) is not None and name.startswith(prefix):
                folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if len(items) + len(prefixes) == most:
                    token = {"nextPageToken": name}
                    break
                if found:
                    prefixes.append(prefix + folder + found)
                    names = self.server.objects.irange(prefixes[-1] + "\U0010ffff")  # past the objects of the folder
                else:
                    items.append(self.server.objects[name].metadata)
        asked = re.search(r"items\(([^)]*)\)", self.query.get("fields", ""))
        if asked:
            items = [{key: item[key] for key in asked[1].split(",")} for item in items]
        lists = {key: values for key, values in (("items", items), ("prefixes", prefixes)) if values}
        self._answer(200, json.dumps({"kind": "storage#objects"} | lists | token).encode())

    def _answer(self, status: int, body: bytes, cut: bool = False, **headers: str) -> None:
        if self.silent:
            return
        self.server.history.append((time.time(), self.command, self.what, status))
        told = self.told
        self.send_response(status) if told is None or told.action != "undated" else self.send_response_only(status)
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
    parser.add_argument("--permissions", default=",".join(sorted(PERMISSIONS)))
    arguments = parser.parse_args()
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    server = FakeGcs(arguments.bucket, arguments.port, arguments.folder)
    server.permissions = frozenset(arguments.permissions.split(","))
    print(server.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
