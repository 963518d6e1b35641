"""Counters of a worker for Prometheus: an HTTP endpoint that each commit updates.

In: commits. Out: `http://HOST:PORT/metrics` in Prometheus' text format, by the package prometheus_client. Guarantee:
counters are of this process alone. Cost: one thread that waits for requests.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import InvalidRequest
from ..core.logs import say
from ..format.commit import Commit
from ..format.not_finite import total


class Metrics:
    """Counters of this process, labelled with the stream. Raises InvalidRequest for an address that is not free."""

    def __init__(self, port: int, host: str = "127.0.0.1"):
        try:
            import prometheus_client
        except ModuleNotFoundError:
            raise InvalidRequest("--metrics-port needs the package prometheus_client: install '.[metrics]'") from None
        prometheus_client.disable_created_metrics()  # they add a line without use to each counter
        registry = prometheus_client.CollectorRegistry()

        def metric(kind: type, name: str, text: str, *labels: str):
            return kind(f"extraction_{name}", text, ("stream", *labels), registry=registry)

        counter, gauge = prometheus_client.Counter, prometheus_client.Gauge
        self._tokens = metric(counter, "tokens", "Tokens of records committed by this process.")
        self._rows = metric(counter, "stored_rows", "Rows of activations committed by this process.")
        self._bytes = metric(counter, "stored_bytes", "Bytes of batch files committed by this process.")
        self._batches = metric(counter, "batches", "Commits made by this process.")
        self._not_finite = metric(counter, "not_finite_values", "Stored values that are NaN or infinite.")
        self._seconds = metric(counter, "stage_seconds", "Seconds that each stage took.", "stage")
        self._records = metric(gauge, "records_committed", "Records of the stream that are committed, by any process.")
        self._finished = metric(gauge, "stream_finished", "1 when the stream is complete.")
        self._time = metric(gauge, "last_commit_timestamp_seconds", "When this process last committed.")
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, host, registry=registry)
        except OSError as error:
            raise InvalidRequest(f"--metrics-host {host} --metrics-port {port}: {error.strerror}") from error

    @property
    def address(self) -> str:
        """The address of the endpoint."""
        return str(self._server.server_address[0])

    @property
    def port(self) -> int:
        """The port of the endpoint."""
        return self._server.server_port

    def on_commit(self, commit: Commit) -> None:
        """Count one more commit."""
        stream = str(commit.stream)
        self._tokens.labels(stream).inc(commit.num_tokens)
        self._rows.labels(stream).inc(commit.num_rows)
        self._bytes.labels(stream).inc(commit.data_bytes)
        self._batches.labels(stream).inc()
        self._not_finite.labels(stream).inc(total(commit.not_finite))
        for stage, seconds in commit.seconds.items():
            self._seconds.labels(stream, stage).inc(seconds)
        self._records.labels(stream).set(commit.cursor_after.record)
        self._finished.labels(stream).set(commit.end_of_stream)
        self._time.labels(stream).set_to_current_time()

    def close(self) -> None:
        """Stop the endpoint."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serve_metrics(port: int | None, host: str) -> Iterator[Metrics | None]:
    """Yield counters that are served meanwhile, None without a port. Raises as `Metrics`."""
    if port is None:
        yield None
        return
    metrics = Metrics(port, host)
    say(f"metrics at http://{metrics.address}:{metrics.port}/metrics")
    try:
        yield metrics
    finally:
        metrics.close()
