"""S3 for tests: moto's server, which honours `If-None-Match: *`, behind a gate that injects faults.

    with FakeS3() as s3: ...                       # serves the bucket `bucket` at s3.address
    s3.instruct("put", "land-then-break")          # the next put is stored, and its answer is lost
    s3.instruct("read", "fail", status=503, count=2)

Operations: put, multipart-start, part, complete, read, stat, list. Actions: fail (with a status), break (before the
request is carried out), land-then-break, cut and corrupt (of an answer), ignore-condition.
"""

import io
import socket
import threading
from dataclasses import dataclass
from urllib.parse import parse_qs

import boto3
from botocore.config import Config
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-worker-that-nobody-is-told",
               "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip


@dataclass
class Instruction:
    """What becomes of the next `count` requests of an operation."""

    operation: str
    action: str
    status: int = 500
    code: str = "InternalError"
    count: int = 1


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *arguments):
        return


class FakeS3:
    """A server of its own thread. `history` has (operation, key, status) of each request."""

    def __init__(self):
        self.instructions: list[Instruction] = []
        self.history: list[tuple[str, str, int]] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._gate, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def address(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].reset()
        self._thread.start()
        self.client = boto3.client("s3", endpoint_url=self.address, config=Config(retries={"total_max_attempts": 1}),
                                   region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="x")  # fmt: skip
        self.client.create_bucket(Bucket="bucket")
        self.history.clear()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def instruct(self, operation, action, **settings):
        self.instructions.append(Instruction(operation, action, **settings))
        return self.instructions[-1]

    def put(self, key, data):
        """Store an object without a request."""
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("bucket", key, data)

    def data(self, key):
        return self.client.get_object(Bucket="bucket", Key=key)["Body"].read()

    def keys(self):
        return [one["Key"] for one in self.client.list_objects_v2(Bucket="bucket").get("Contents", ())]

    def _gate(self, environ, start_response):
        operation, key = _operation(environ), environ["PATH_INFO"].removeprefix("/bucket").lstrip("/")
        instruction = next((one for one in self.instructions if one.operation == operation and one.count), None)
        action = instruction.action if instruction else "pass"
        if instruction:
            instruction.count -= 1
        if action == "fail":
            self.history.append((operation, key, instruction.status))
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = f"<Error><Code>{instruction.code}</Code><Message>injected</Message></Error>".encode()
            start_response(f"{instruction.status} injected", [("Content-Length", str(len(body)))])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
        if action == "break":
            return self._drop(environ, operation, key)
        if action == "ignore-condition":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        answered = []
        body = b"".join(self._app(environ, lambda status, headers, *rest: answered.append((status, headers))))
        status, headers = answered[0]
        if action == "land-then-break":
            return self._drop(environ, operation, key)
        self.history.append((operation, key, int(status.split()[0])))
        if action == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        start_response(status, headers)
        if environ["REQUEST_METHOD"] == "HEAD":  # a body would be taken for the next answer
            return []
        if action == "cut":
            return _Cut(body[: len(body) // 2], environ["werkzeug.socket"])
        return [body]

    def _drop(self, environ, operation, key):
        self.history.append((operation, key, 0))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError


class _Cut(io.BytesIO):
    """A part of an answer, after which the connection ends."""

    def __init__(self, data, connection):
        super().__init__(data)
        self._connection = connection

    def __iter__(self):
        yield self.read()
        self._connection.shutdown(socket.SHUT_RDWR)


def _operation(environ):
    query, method = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True), environ["REQUEST_METHOD"]
    if method == "PUT":
        return "part" if "partNumber" in query else "put"
    if method == "POST":
        return "multipart-start" if "uploads" in query else "complete"
    return {"GET": "list" if "list-type" in query else "read", "HEAD": "stat"}.get(method, method)
