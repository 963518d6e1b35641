"""The files of a dataset or model repository on the Hugging Face hub, read without a copy.

In: `hf://datasets/owner/name@revision/folder` (`hf://owner/name` is a model), names and ranges. Out: bytes and file
metadata. HF_ENDPOINT and HF_TOKEN have their meaning of the hub's own client, which sends the requests.

Guarantee: a revision is resolved to a commit once, when the storage is opened, and everything is read at that commit.
Nothing is ever written. Errors that may pass (no connection, 408, 429, 5xx, a cut answer) follow `retries`.

Cost: one request to open, one for each range, one for a thousand names of a listing.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, TypeVar

from ..core.errors import DamagedData, InvalidRequest, ObjectNotFound, PermissionDenied, TryAgain
from .base import ObjectInfo, Part, RangedFile, Storage, check_name, size_said
from .retries import Passing, RetryPolicy, is_passing_status

Result = TypeVar("Result")
_READ_AHEAD = 1 << 20
_TIMEOUT = 60.0  # seconds to connect, and between two bytes of an answer
_LOCATION = re.compile(
    r"hf://(?:(datasets)/)?((?!datasets/)[^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubPlace:
    """A place on the hub: `kind` is `dataset` or `model`, `revision` as requested or None, `path` in the repository."""

    kind: str
    repository: str
    revision: str | None
    path: str

    def __str__(self) -> str:
        return self.at(self.revision)

    def at(self, revision: str | None) -> str:
        """Return the location of this place at another revision."""
        at = f"@{revision}" if revision else ""
        path = f"/{self.path}" if self.path else ""
        return f"hf://{'datasets/' if self.kind == 'dataset' else ''}{self.repository}{at}{path}"


def parse_place(location: str) -> HubPlace:
    """Return the parts of `hf://datasets/owner/name@revision/path`. Raises InvalidRequest."""
    match = _LOCATION.fullmatch(location)
    if not match:
        raise InvalidRequest(f"{location}: give hf://datasets/OWNER/NAME[@REVISION][/PATH]")
    return HubPlace("dataset" if match[1] else "model", match[2], match[3], (match[4] or "").strip("/"))


def hub_endpoint() -> str | None:
    """Return the server that HF_ENDPOINT names, as the hub's own client reads it; None for the hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


class HubStorage(Storage):
    """The files of one repository under a folder, at one commit, the `revision`. `location` names it, too."""

    holds_models = False  # `--model` takes the id of a hub model, which is downloaded

    def __init__(self, location: str):
        from huggingface_hub import HfApi

        place = parse_place(location)
        self._place = place
        self._retries = RetryPolicy()
        self._api = HfApi(endpoint=hub_endpoint())
        self.revision = place.revision if _COMMIT.fullmatch(place.revision or "") else self._resolve()
        self.location = place.at(self.revision)
        self._prefix = f"{place.path}/" if place.path else ""

    @classmethod
    def split(cls, location: str) -> tuple[str, str]:
        place = parse_place(location)
        return str(replace(place, path="")), place.path

    @property
    def unpinned_location(self) -> str:
        return self._place.at(None)

    def _resolve(self) -> str:
        """Return the commit of the revision."""
        place = self._place
        found = self._call(
            str(place), lambda: self._api.repo_info(place.repository, revision=place.revision, repo_type=place.kind)
        )
        if found.sha is None:
            raise TryAgain(f"{place}: the hub names no commit of this revision")
        return found.sha

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return bytes(self._read(name, start, end).data)

    def read_part(self, name: str, start: int, end: int) -> Part:
        return self._read(name, start, end)

    def _read(self, name: str, start: int, end: int | None) -> Part:
        if end is not None and end <= start:
            return Part(b"", None)
        url = self._url(name)
        wanted = f"bytes={start}-{'' if end is None else end - 1}"
        part = self._call(f"{self.location}/{name}", lambda: self._get(url, wanted, start, end))
        if end is not None and len(part.data) > end - start:
            raise DamagedData(f"{self.location}/{name}: {len(part.data)} bytes arrived, {end - start} were requested")
        return part

    def _get(self, url: str, wanted: str, start: int, end: int | None) -> Part:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        # A range counts bytes of the uncompressed file.
        headers = build_hf_headers(token=self._api.token) | {"Range": wanted, "Accept-Encoding": "identity"}
        answer = get_session().get(url, headers=headers, timeout=_TIMEOUT)
        if answer.status_code == 416:
            return Part(b"", None)
        hf_raise_for_status(answer)
        if answer.status_code == 206:
            return Part(answer.content, size_said(answer.headers.get("Content-Range")))
        return Part(answer.content[start:end], len(answer.content))

    def stat(self, name: str) -> ObjectInfo:
        from huggingface_hub import get_hf_file_metadata

        url = self._url(name)
        facts = self._call(
            f"{self.location}/{name}", lambda: get_hf_file_metadata(url, token=self._api.token, timeout=_TIMEOUT)
        )
        if facts.size is None:
            raise TryAgain(f"{self.location}/{name}: the hub gives no size of the file")
        return ObjectInfo(name, facts.size, "", etag=facts.etag)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        folder = (self._prefix + prefix).rpartition("/")[0]
        found = self._call(str(self._place), lambda: list(self._tree(folder)))
        for info in sorted(found, key=lambda info: info.name):
            if info.name.startswith(prefix) and info.name > start_after:
                yield info

    def _tree(self, folder: str) -> Iterator[ObjectInfo]:
        from huggingface_hub.hf_api import RepoFile

        tree = self._api.list_repo_tree(
            self._place.repository, folder or None, recursive=True, revision=self.revision, repo_type=self._place.kind
        )
        for entry in tree:
            if isinstance(entry, RepoFile):
                etag = entry.lfs.sha256 if entry.lfs else entry.blob_id
                yield ObjectInfo(entry.path.removeprefix(self._prefix), entry.size, "", etag=etag)

    def open(self, name: str) -> io.BufferedReader:
        return io.BufferedReader(self.open_version(self.stat(name)), _READ_AHEAD)

    def open_version(self, info: ObjectInfo) -> RangedFile:
        return RangedFile(partial(self.read, info.name), info.size)

    def folders(self) -> Sequence[str]:
        return sorted({info.name.partition("/")[0] for info in self.list() if "/" in info.name})

    def create(self, name: str, data: bytes | memoryview) -> NoReturn:
        raise self._read_only()

    def replace(self, name: str, data: bytes) -> NoReturn:
        raise self._read_only()

    def now(self) -> NoReturn:
        raise self._read_only()

    def _read_only(self) -> InvalidRequest:
        return InvalidRequest(f"{self.location}: nothing can be written there; give a folder or gs://bucket/prefix")

    def _url(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        place = self._place
        path = self._prefix + check_name(name)
        return hf_hub_url(
            place.repository, path, repo_type=place.kind, revision=self.revision, endpoint=self._api.endpoint
        )

    def _call(self, what: str, attempt: Callable[[], Result]) -> Result:
        """Return the result of `attempt`, retried; `what` names the place in messages."""
        return self._retries.call(what, attempt, lambda error: judge(error, what))


def judge(error: Exception, what: str, may: str = "read it") -> Passing | Exception:
    """Return `Passing` or the domain error for an error of the client; any other error itself.

    `may` is the permission of the token that the request needs.
    """
    from huggingface_hub import errors

    http_error = errors.HTTPError  # type: ignore[reportPrivateImportUsage]  # of the HTTP library that the client uses
    if not isinstance(error, http_error | OSError | errors.HFValidationError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InvalidRequest(f"{what}: HF_HUB_OFFLINE is set, and it is not on this machine")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError) or (status is not None and not is_passing_status(status)):
        return _refusal(what, error, status, may)
    return Passing(_first_line(error), _asked_to_wait(error))


def _refusal(what: str, error: Exception, status: int | None, may: str) -> Exception:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return PermissionDenied(f"{what}: gated; ask for access on its page, and set HF_TOKEN to a token that has it")
    if isinstance(error, errors.RevisionNotFoundError):
        return InvalidRequest(f"{what}: the repository has no such revision")
    if isinstance(error, errors.EntryNotFoundError):
        return ObjectNotFound(f"{what} is not there")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InvalidRequest(f"{what}: no such repository on the hub; if it is private, set HF_TOKEN")
    if status in (401, 403):
        return PermissionDenied(f"{what}: the hub refuses; set HF_TOKEN to a token that may {may}")
    return InvalidRequest(f"{what}: {_first_line(error)}")


def _asked_to_wait(error: Exception) -> float:
    """Return the seconds that the hub asks to wait before the next request."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    after = headers.get("Retry-After", "")
    return float(after) if after.isdigit() else 0.0


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
