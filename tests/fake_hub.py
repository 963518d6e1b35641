"""A small model hub over HTTP: one model at one commit, as huggingface_hub asks for it.

`refuse` makes it answer everything with a status and an error code; `asked` lists the paths of the requests.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Serves the files of `folder` as `model` at `COMMIT`, which the branch `main` names, too."""

    def __init__(self, folder: Path, model: str = "lab/tiny"):
        self.folder, self.model, self.asked = folder, model, []
        self.refuse: tuple[int, str] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.asked.append(path)
        if hub.refuse:
            self._send(hub.refuse[0], b"{}", {"X-Error-Code": hub.refuse[1], "X-Error-Message": hub.refuse[1]})
        elif path in (f"/api/models/{hub.model}", *(f"/api/models/{hub.model}/revision/{r}" for r in ("main", COMMIT))):
            files = [{"rfilename": file.name} for file in sorted(hub.folder.iterdir())]
            self._send(200, json.dumps({"id": hub.model, "sha": COMMIT, "siblings": files}).encode(), {})
        elif path == f"/api/models/{hub.model}/tree/{COMMIT}":
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in hub.folder.iterdir()]
            self._send(200, json.dumps(files).encode(), {})
        elif path.startswith(f"/{hub.model}/resolve/{COMMIT}/") and (hub.folder / path.rpartition("/")[2]).is_file():
            data = (hub.folder / path.rpartition("/")[2]).read_bytes()
            self._send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        elif "/revision/" in path or "/resolve/" in path:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests read answers, not logs."""
