"""The network between a worker and the bucket: the HTTP transport of the service's own client, with faults.

In: requests of google-cloud-storage, for which `Transport` takes the place of its HTTP session. Out: answers and the
errors of `requests`. A request is lost before or after it took effect, takes effect long after its sender gave up or
died, takes effect twice, or is answered wrongly: a refusal although it took effect, 412 for the worker's own write, 5xx,
403 or 429, an answer that is cut, no JSON or says another checksum, content with a flipped bit or cut. Lists never lack
an object: the service's lists are consistent.

Which fault a request meets, and every delay, is drawn from the generator of the execution.
"""

import io
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from requests.structures import CaseInsensitiveDict

from tests.simulation.bucket import Answer, Bucket, Request, refusal
from tests.simulation.scheduler import Process, Scheduler, Task

TIMEOUT = 60.0  # seconds that the client waits for an answer
LONGEST_DELAY = 600.0  # seconds after which a delayed request has taken effect
_WRITES = ("create", "replace", "start")
_ANY = {"lost-before": 3, "lost-after": 3, "5xx-before": 2, "429": 1, "slow": 2, "garbled": 1}
_FAULTS = {
    "create": _ANY | {"late": 4, "doubled": 3, "5xx-after": 2, "412-after": 2, "misreport": 1, "flipped": 1, "bare": 1},
    "replace": _ANY | {"late": 2, "doubled": 1},
    "start": _ANY | {"5xx-after": 1},
    "stat": _ANY,
    "read": _ANY | {"flipped": 2, "cut": 2},
    "list": _ANY,
    "now": _ANY,
}
_REFUSED = {"403": (403, "forbidden"), "401": (401, "authError")}


@dataclass
class Faults:
    """How often a request meets a fault.

    `refusals`: whether 401 and 403 are among them. Until `down_until` the service answers nothing as it should.
    """

    rate: float = 0.0
    refusals: bool = False
    down_until: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def draw(self, scheduler: Scheduler, request: Request, process: Process) -> str:
        """Return the fault of a request, "" for none."""
        if scheduler.now < self.down_until:
            return scheduler.random.choice(("5xx-before", "5xx-before", "lost-before", "lost-after"))
        if scheduler.random.random() >= self.rate:
            return ""
        if self.refusals and scheduler.random.random() < 0.05:
            process.refused = True
            return scheduler.random.choice(("403", "401"))
        kinds = _FAULTS[request.operation]
        kind = scheduler.random.choices(list(kinds), list(kinds.values()))[0]
        self.counts[f"{request.operation} {kind}"] += 1
        return kind


class Call:
    """A request on its way: whether its sender still waits, and the answer."""

    def __init__(self, scheduler: Scheduler, bucket: Bucket, request: Request, task: Task):
        self.scheduler, self.bucket, self.request, self.task = scheduler, bucket, request, task
        self.answer: Answer | None = None
        self.landed = self.delayed = False

    def __str__(self) -> str:
        """Return what is asked of which kind of object, and whether it took effect."""
        kind = (self.request.name.split("/") + ["", ""])[2] or self.request.name.rpartition("/")[2]
        return f"{self.request.operation} {kind} {'done' if self.landed else 'sent'}"

    @property
    def _is_write(self) -> bool:
        return self.request.operation == "create" and (
            "/batches/" in self.request.name or "/commits/" in self.request.name
        )

    def land(self, answer_after: float | None) -> None:
        """Let the request take effect, and answer it later unless None."""
        process, scheduler = self.task.process, self.scheduler
        if not process.ended:
            process.step(self._is_write)
        if process.ended and not self.delayed:  # the request of a dead worker: lost, delayed, or on time
            self.delayed = True
            drawn = scheduler.random.random()
            if drawn < 0.6:
                if drawn < 0.4:
                    scheduler.after(10 ** scheduler.random.uniform(0, 2), self.land, None)
                return
        answer, self.landed = self.bucket.perform(self.request, scheduler.now), True
        if scheduler.log is not None:
            scheduler.note(f"{process.name}: {self.request.operation} {self.request.name} {answer.status}")
        if not process.ended:
            process.step(self._is_write)
        if answer_after is not None:
            scheduler.after(answer_after, self.arrive, answer)

    def arrive(self, answer: Answer) -> None:
        """Hand the answer to the sender."""
        if self.answer is None:
            self.answer = answer
            self.scheduler.wake(self.task)


class Transport:
    """What the client sends its requests through; one for each process."""

    def __init__(self, scheduler: Scheduler, bucket: Bucket, faults: Faults):
        self._scheduler, self._bucket, self._faults = scheduler, bucket, faults
        self.is_mtls = False

    def get(self, url: str, headers: dict | None = None, timeout: object = None, stream: bool = False):
        """Send a GET request."""
        return self.request("GET", url, headers=headers, timeout=timeout)

    def request(self, method: str, url: str, data=None, headers=None, timeout=None, **_: object) -> requests.Response:
        """Send a request, and wait for the answer. Raises the errors of `requests`."""
        scheduler = self._scheduler
        task = scheduler.alive()
        body = data if isinstance(data, bytes) else data.encode() if data else b""
        request = Request(method, url, headers or {}, body)
        fault = self._faults.draw(scheduler, request, task.process)
        if fault and scheduler.log is not None:
            scheduler.note(f"{request.operation} {request.name}: {fault}")
        call = task.doing = Call(scheduler, self._bucket, request, task)
        answer = self._exchange(call, fault)
        task.doing = None
        if scheduler.log is not None:
            scheduler.note(f"{request.operation} {request.name} -> {answer.status if answer else 'nothing'}")
        if answer is None:
            raise requests.exceptions.ConnectionError("the connection was lost")
        return _Response(_distorted(answer, fault, scheduler), method, url)

    def _exchange(self, call: Call, fault: str) -> Answer | None:
        """Return the answer, None for a connection that broke. Raises ReadTimeout."""
        scheduler, uniform = self._scheduler, self._scheduler.random.uniform
        there, back = uniform(0.002, 0.15), uniform(0.002, 0.15)
        if fault == "slow":
            there, back = uniform(0.1, 40.0), uniform(0.1, 15.0)
        if fault in ("lost-before", "5xx-before", "429", "403", "401"):
            scheduler.park(there + back)
            return None if fault == "lost-before" else self._refusal(fault)
        if fault == "flipped" and call.request.operation == "create":
            call.request = replace(call.request, body=_flipped(call.request.body))
        if fault == "late":
            scheduler.after(10 ** uniform(-1, 2.77), call.land, None)
            return self._give_up(there + back)
        scheduler.after(there, call.land, None if fault == "lost-after" else back)
        if fault == "doubled":  # as by a proxy that repeats it; the answer may be that of either
            scheduler.after(there + 10 ** uniform(-3, 2), call.land, uniform(0.0, 0.1))
        if fault == "lost-after":
            return self._give_up(there + back)
        scheduler.park(TIMEOUT)
        if call.answer is None:
            raise requests.exceptions.ReadTimeout("no answer")
        if fault in ("5xx-after", "412-after"):
            return self._refusal(fault)
        return call.answer

    def _give_up(self, seconds: float) -> None:
        """Wait for an answer that does not come. Raises ReadTimeout, or returns None for a broken connection."""
        if self._scheduler.random.random() < 0.3:
            self._scheduler.park(TIMEOUT)
            raise requests.exceptions.ReadTimeout("no answer")
        self._scheduler.park(seconds)

    def _refusal(self, fault: str) -> Answer:
        if fault in _REFUSED:
            return refusal(_REFUSED[fault][0], "the caller has no access", _REFUSED[fault][1])
        if fault == "412-after":
            return refusal(412, "At least one of the pre-conditions you specified did not hold.")
        if fault == "429":
            return refusal(429, "slow down", "rateLimitExceeded")
        status = self._scheduler.random.choice((408, 500, 502, 503, 504))
        if self._scheduler.random.random() < 0.3:
            return Answer(status, b"<html><body>try again</body></html>", {"Content-Type": "text/html"})
        return refusal(status, "try again")


def _flipped(data: bytes) -> bytes:
    """Return the data with a bit of its content flipped."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else data


def _distorted(answer: Answer, fault: str, scheduler: Scheduler) -> Answer:
    """Return the answer as it arrives."""
    if answer.status not in (200, 206):
        return answer
    if fault == "garbled" and "X-Goog-Hash" not in answer.headers and answer.body:
        bodies = (answer.body[: len(answer.body) // 2], b"<html>welcome to this network</html>", b"")
        return replace(answer, body=scheduler.random.choice(bodies))
    if fault == "misreport":
        return replace(answer, body=json.dumps(json.loads(answer.body) | {"crc32c": "AAAAAA=="}).encode())
    if fault == "bare":
        return replace(answer, body=b"{}")
    whole = f"bytes 0-{len(answer.body) - 1}/{len(answer.body)}"
    if fault == "flipped" and answer.headers.get("Content-Range", whole) == whole and "X-Goog-Hash" in answer.headers:
        return replace(answer, body=_flipped(answer.body))
    if fault == "cut" and "X-Goog-Hash" in answer.headers:
        whole = {"Content-Length": str(len(answer.body))}
        return replace(answer, body=answer.body[: len(answer.body) // 2], headers=answer.headers | whole)
    return answer


class _Response(requests.Response):
    """A response without cookies and history, whose content is there."""

    def __init__(self, answer: Answer, method: str, url: str):
        self.status_code, self.url, self.encoding = answer.status, url, "utf-8"
        self._content, self._content_consumed, self.raw = answer.body, True, io.BytesIO(answer.body)
        self.headers = CaseInsensitiveDict(answer.headers)
        self.request = SimpleNamespace(method=method, url=url)  # type: ignore[assignment]  # for the texts of errors


def make_client(transport: Transport) -> storage.Client:
    """Return the service's own client, over the simulated network."""
    return storage.Client(project=None, credentials=AnonymousCredentials(), _http=transport)  # type: ignore[arg-type]
