"""Files put into a dataset repository of the Hugging Face hub.

In: `hf://datasets/owner/name[/folder]`, names and bytes. Out: commits of some files each. Guarantee: a file that the
repository has with the same content is not sent again, so the same call after an interruption continues. Errors that
may pass follow `retries`. Cost: in memory are the files of one commit.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..core.errors import InvalidRequest
from .base import check_name
from .hub import HubPlace, hub_endpoint, judge, parse_place
from .retries import RetryPolicy

FILES_AT_A_TIME, BYTES_AT_A_TIME = 50, 256 << 20
File = tuple[str, bytes]
Result = TypeVar("Result")


def upload(location: str, files: Iterable[File]) -> int:
    """Put files into the repository, which is made if it is missing; return how many were sent.

    Raises InvalidRequest for a place that is no dataset or names a revision, PermissionDenied, TryAgain.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    place, retries = parse_place(location), RetryPolicy()
    if place.kind != "dataset" or place.revision is not None:
        raise InvalidRequest(f"{location}: give hf://datasets/OWNER/NAME[/FOLDER], without a revision")
    api, sent = HfApi(endpoint=hub_endpoint()), 0

    def call(attempt: Callable[[], Result]) -> Result:
        return retries.call(location, attempt, lambda error: judge(error, location, "write to it"))

    call(lambda: api.create_repo(place.repository, repo_type="dataset", exist_ok=True))
    known = call(lambda: _known(api, place))
    for group in _groups(_new(files, place, known)):
        operations = [CommitOperationAdd(name, data) for name, data in group]
        message = f"Add {len(operations)} files"
        call(
            lambda o=operations, m=message: api.create_commit(
                place.repository, o, commit_message=m, repo_type="dataset"
            )
        )
        sent += len(operations)
    return sent


def _known(api: object, place: HubPlace) -> dict[str, str]:
    """Return {path: sha256} of the large files of the repository."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(place.repository, recursive=True, repo_type="dataset")  # type: ignore[attr-defined]
    return {entry.path: entry.lfs.sha256 for entry in tree if isinstance(entry, RepoFile) and entry.lfs}


def _new(files: Iterable[File], place: HubPlace, known: dict[str, str]) -> Iterator[File]:
    for name, data in files:
        path = f"{place.path}/{check_name(name)}".lstrip("/")
        if known.get(path) != hashlib.sha256(data).hexdigest():
            yield path, data


def _groups(files: Iterable[File]) -> Iterator[list[File]]:
    group: list[File] = []
    for file in files:
        group.append(file)
        if len(group) == FILES_AT_A_TIME or sum(len(data) for _, data in group) > BYTES_AT_A_TIME:
            yield group
            group = []
    if group:
        yield group
