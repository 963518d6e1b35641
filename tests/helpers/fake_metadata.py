"""Parts of Google's metadata server, over real HTTP: `instance/preempted`, which tells of a preemption,
the zone, and attributes.

As documented for Compute Engine ("wait for change"): requests need `Metadata-Flavor: Google`; with `wait_for_change`
and `last_etag` an answer comes as soon as the value has another mark than that one, or after `timeout_sec`.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PATH = "/computeMetadata/v1/instance/preempted"
ZONE = "/computeMetadata/v1/instance/zone"
ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"


class FakeMetadata(ThreadingHTTPServer):
    """The server; `host` is what GCE_METADATA_HOST is set to. `failures` are statuses of the next answers."""

    daemon_threads = True

    def __init__(self, failures: tuple[int, ...] = (), flavor: str = "Google"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures, self.flavor = list(failures), flavor
        self.attributes: dict[str, str] = {}
        self.changed, self.value, self.asked = threading.Condition(), "FALSE", threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def preempt(self) -> None:
        with self.changed:
            self.value = "TRUE"
            self.changed.notify_all()

    def __enter__(self) -> "FakeMetadata":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FakeMetadata

    def log_message(self, *arguments: object) -> None:
        return

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.asked.set()
        if self.server.failures:
            return self._answer(self.server.failures.pop(0), "")
        if self.headers.get("Metadata-Flavor") != "Google":
            return self._answer(403, "")
        if url.path == "/":
            return self._answer(200, "")
        if url.path == ZONE:
            return self._answer(200, "projects/123/zones/us-central1-a")
        attribute = self.server.attributes.get(url.path.removeprefix(ATTRIBUTES))
        if attribute is not None:
            return self._answer(200, attribute)
        if url.path != PATH:
            return self._answer(404, "")
        with self.server.changed:
            if query.get("wait_for_change") == "true":
                seen, seconds = query.get("last_etag"), float(query.get("timeout_sec", 60))
                self.server.changed.wait_for(lambda: self.server.value != seen, seconds)
            return self._answer(200, self.server.value)

    def _answer(self, status: int, value: str) -> None:
        self.send_response(status)
        self.send_header("Metadata-Flavor", self.server.flavor)
        self.send_header("ETag", value)
        self.send_header("Content-Length", str(len(value)))
        self.end_headers()
        self.wfile.write(value.encode())
