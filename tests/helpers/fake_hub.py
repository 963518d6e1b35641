"""A small hub over HTTP: one model and any datasets, at one commit, as huggingface_hub asks for them.

`refuse` makes it answer everything with a status and an error code; `asked` lists the paths of the requests.
`trouble` spoils some answers: (glob of the path, what, how often), where what is a status, with the seconds of a
Retry-After behind it if wanted (`429 1`), or `cut`. Files of datasets are stored as large ones are: behind a
redirect, known by their sha256, and read in ranges.
"""

import base64
import hashlib
import json
import re
import threading
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Serves the files of `folder` as `model` at `COMMIT`, which the branch `main` names, too."""

    def __init__(self, folder: Path, model: str = "lab/tiny", datasets: dict[str, Path] | None = None):
        self.folder, self.model, self.asked = folder, model, []
        self.datasets = datasets or {}
        self.uploads: Path | None = None  # where repositories are made, None for a hub that is only read
        self.sent: list[str] = []
        self.refuse: tuple[int, str] | None = None
        self.trouble: list[tuple[str, str, int]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spoils(self, path: str) -> str | None:
        """What is to go wrong with this request, used up by one."""
        with self._lock:
            for number, (pattern, what, count) in enumerate(self.trouble):
                if count and fnmatchcase(path, pattern):
                    self.trouble[number] = (pattern, what, count - 1)
                    return what
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.hub, self.requestline.split()[1].partition("?")[0]  # self.path is without a second slash
        hub.asked.append(path)
        if hub.refuse:
            self._send(hub.refuse[0], b"{}", {"X-Error-Code": hub.refuse[1], "X-Error-Message": hub.refuse[1]})
        elif (what := hub.spoils(path)) and what != "cut":
            status, _, seconds = what.partition(" ")
            self._send(int(status), b"{}", {"Retry-After": seconds} if seconds else {})
        elif match := re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)(/.*)?", path):
            self._dataset(hub.datasets.get(match[2]), match[2], (match[1] or "") + (match[3] or ""))
        elif path.startswith("/stored/"):
            self._stored(path.removeprefix("/stored/"), what == "cut")
        elif path in (f"/api/models/{hub.model}", *(f"/api/models/{hub.model}/revision/{r}" for r in ("main", COMMIT))):
            files = [{"rfilename": file.name} for file in sorted(hub.folder.iterdir())]
            self._send(200, json.dumps({"id": hub.model, "sha": COMMIT, "siblings": files}).encode(), {})
        elif path == f"/api/models/{hub.model}/tree/{COMMIT}":
            files = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                for f in hub.folder.iterdir()
            ]
            self._send(200, json.dumps(files).encode(), {})
        elif path.startswith(f"/{hub.model}/resolve/{COMMIT}/") and (hub.folder / path.rpartition("/")[2]).is_file():
            data = (hub.folder / path.rpartition("/")[2]).read_bytes()
            self._send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        elif "/revision/" in path or "/resolve/" in path:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Facts of some paths, of the tree that GET lists."""
        url, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.uploads is not None and (answer := self._upload(url.path, body)) is not None:
            status = self.hub.spoils(url.path)
            return self._send(int(status or 200), b"{}" if status else json.dumps(answer).encode(), {})
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", url.path)
        if not match or match[1] not in self.hub.datasets:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
        folder = self.hub.datasets[match[1]]
        found = [_entry(folder, folder / path) for path in asked if (folder / path).exists()]
        self._send(200, json.dumps(found).encode(), {})
        return None

    def _upload(self, path: str, body: bytes) -> dict[str, object] | None:
        """Carry out a request that makes a repository or puts files into it; None for any other."""
        hub, parts = self.hub, path.split("/")
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            name = json.loads(body)
            name = f"{name['organization']}/{name['name']}" if name.get("organization") else name["name"]
            hub.datasets.setdefault(name, hub.uploads / name).mkdir(parents=True, exist_ok=True)
            return {"url": f"{hub.endpoint}/datasets/{name}"}
        if parts[2:3] != ["datasets"] or len(parts) < 6:
            return None
        if parts[5] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if parts[5] != "commit" or hub.spoils(f"refused{path}"):
            return None
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = hub.datasets["/".join(parts[3:5])] / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
                hub.sent.append(line["value"]["path"])
        return {
            "success": True,
            "commitOid": COMMIT,
            "commitUrl": f"{hub.endpoint}/datasets/{parts[3]}/{parts[4]}/commit/{COMMIT}",
        }

    def _dataset(self, folder: Path | None, name: str, rest: str) -> None:
        if folder is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if rest in ("api/", *(f"api//revision/{revision}" for revision in ("main", COMMIT))):
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
            return self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), {})
        if match := re.fullmatch(rf"api//tree/(?:{COMMIT}|main)(?:/(.*))?", rest):
            inside, deep = folder / unquote(match[1] or ""), "recursive=true" in self.path.lower()
            if not inside.is_dir():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            entries = [_entry(folder, path) for path in sorted(inside.rglob("*") if deep else inside.iterdir())]
            return self._send(200, json.dumps(entries).encode(), {})
        match = re.fullmatch(rf"/resolve/{COMMIT}/(.*)", rest)
        if not match:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        path = folder / unquote(match[1])
        if not path.is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")  # another host, as the store of large files is
        facts = _entry(folder, path)["lfs"]
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(facts["size"]), "X-Linked-ETag": f'"{facts["oid"]}"'}
        self._send(302, b"", headers | {"Location": f"{elsewhere}/stored/{name}/{match[1]}"})
        return None

    def _stored(self, where: str, cut: bool) -> None:
        owner, name, path = where.split("/", 2)
        data = (self.hub.datasets[f"{owner}/{name}"] / unquote(path)).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self._send(200, data, {}, cut)
        begin, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1) + 1
        if begin >= len(data):
            return self._send(416, b"", {})
        self._send(206, data[begin:end], {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, cut)
        return None

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: object) -> None:
        """Tests read answers, not logs."""


def _entry(folder: Path, path: Path) -> dict[str, object]:
    """A file or folder as the hub's tree lists it."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lfs = {"oid": digest, "size": path.stat().st_size, "pointerSize": 134}
    return {"type": "file", "path": name, "size": lfs["size"], "oid": "0" * 40, "lfs": lfs}
