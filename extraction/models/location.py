"""The location of a model: a local folder, a hub id, or a folder in a bucket.

In: a folder, hub id or URL such as gs://bucket/folder. Out: a `ModelFolder`. Guarantee: only the configuration, the
tokenizer and safetensors are downloaded. Cost: none for a folder; one download into the hub's cache for a hub id (none
with HF_HUB_OFFLINE); for a bucket one listing and the small files, which a local folder caches. The safetensors of a
bucket are read in ranges.
"""

import fnmatch
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import InvalidRequest, ObjectNotFound, PermissionDenied, TryAgain
from ..storage import BACKENDS, ObjectInfo, Storage, backend_of, open_storage
from ..storage.local import disk_error, os_errors
from .unsupported_weights import how_to_convert

_SMALL_FILES = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
_FILES = [*_SMALL_FILES, "*.safetensors"]
_NOT_READ = ["*/*", "consolidated*.safetensors"]  # other forms of the weights, such as Mistral's and Meta's own
_CACHE = "~/.cache/activation-extraction/models"


@dataclass(frozen=True)
class ModelFolder:
    """The files of a model. `model` is the requested location, `revision` the commit of a hub model or None.

    `path` holds the configuration and the tokenizer, and the weights too unless they are in `bucket`.
    """

    path: Path
    model: str
    revision: str | None
    bucket: str | None = None

    @property
    def name(self) -> str:
        """The hub id, or the folder's own name without its parents."""
        if self.revision:
            return self.model
        return self.bucket.rstrip("/").rpartition("/")[2] if self.bucket else self.path.resolve().name

    @property
    def weights(self) -> Storage:
        """The storage of the safetensors."""
        return open_storage(self.bucket or str(self.path))

    def names(self) -> list[str]:
        """Return the names in the folder of the weights itself; folders below it are not read on this machine."""
        if self.bucket:
            return sorted(info.name for info in self.weights.list() if "/" not in info.name)
        with os_errors(str(self.path)):
            return sorted(os.listdir(self.path))


def locate_model(model: str, revision: str | None = None, weights: bool = True) -> ModelFolder:
    """Return the folder of `model`; without `weights`, weights are neither downloaded nor checked.

    Raises InvalidRequest (no such folder or repository, weights in another form than safetensors), PermissionDenied,
    TryAgain.
    """
    with os_errors(f"--model {model}"):
        return _locate(model, revision, weights)


def _locate(model: str, revision: str | None, weights: bool) -> ModelFolder:
    scheme, is_url, _ = model.partition("://")
    if is_url and (scheme not in BACKENDS or not backend_of(model).holds_models):
        raise InvalidRequest(f"--model {model}: give a folder on this machine, gs://bucket/folder or a hub id")
    path = Path(os.path.expanduser(model))
    if is_url or path.is_dir():
        if revision is not None:
            raise InvalidRequest(
                f"--revision {revision}: {model} is a folder, which has no revisions; leave the flag out"
            )
        if is_url:
            return _from_bucket(model, weights)
        return _checked(ModelFolder(path, model, None), os.listdir(path), weights)
    if path.is_file() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise InvalidRequest(f"--model {model}: there is no such folder")
    if model.count("/") == 1 and path.parent.is_dir():  # a hub's owner is seldom a folder here
        raise InvalidRequest(
            f"--model {model}: there is no such folder; the hub was not asked, since ./{path.parent} is a folder here: "
            "start in another folder if this is a hub id"
        )
    return _download(model, revision, weights)


def model_files(names: Collection[str]) -> list[str]:
    """Return the names of a model's safetensors files, without adapters and other forms of the weights."""
    found = (name for name in names if name.endswith(".safetensors") and "/" not in name)
    return sorted(name for name in found if not name.startswith(("adapter_model.", "consolidated")))


def _checked(folder: ModelFolder, names: Collection[str], weights: bool) -> ModelFolder:
    """Return the folder. Raises InvalidRequest if its files are a model in another form."""
    whole = "config.json" in names and (not weights or bool(model_files(names)))
    if whole and "adapter_config.json" in names:
        raise InvalidRequest(
            f"--model {folder.model}: both a model and a LoRA adapter are here, and they make different values; if the "
            "adapter is merged into the model, remove adapter_config.json, and else merge it (merge_and_unload of peft)"
        )
    if not whole and (how := how_to_convert(folder.model, names, _base_of(folder.path / "adapter_config.json"))):
        raise InvalidRequest(f"--model {folder.model}: {how}")
    return folder


def _base_of(adapter: Path) -> str | None:
    """Return the base model that the file of an adapter names, or None."""
    try:
        return json.loads(adapter.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _from_bucket(model: str, weights: bool) -> ModelFolder:
    """Copy the small files to a cache folder named by their digest, so that a changed model has another folder."""
    source = open_storage(model)
    there = [info for info in source.list() if "/" not in info.name]
    names = [info.name for info in there]
    files = [info for info in there if any(fnmatch.fnmatch(info.name, pattern) for pattern in _SMALL_FILES)]
    if not files:
        _checked(ModelFolder(Path(), model, None, model), names, weights)
        raise InvalidRequest(f"--model {model}: there is no config.json in this folder of the bucket")
    facts = "".join(f"{info.name} {info.size} {info.crc32c or info.etag}\n" for info in files)
    folder = Path(os.path.expanduser(_CACHE)) / hashlib.sha256(facts.encode()).hexdigest()[:32]
    cache = open_storage(str(folder))
    for info in files:
        if not _is_there(cache, info):
            cache.replace(info.name, source.read(info.name))  # whole, in the place of one that a full disk has cut
    return _checked(ModelFolder(folder, model, None, model), names, weights)


def _is_there(cache: Storage, info: ObjectInfo) -> bool:
    try:
        return cache.stat(info.name).holds(info.size, info.crc32c)
    except ObjectNotFound:
        return False


def _download(model: str, revision: str | None, weights: bool) -> ModelFolder:
    from huggingface_hub import constants, errors

    try:
        return _fetch(model, revision, weights)
    except errors.GatedRepoError as error:
        raise PermissionDenied(f"--model {model}: access must be granted on its page, and HF_TOKEN set") from error
    except errors.RevisionNotFoundError as error:
        raise InvalidRequest(f"--revision {revision}: {model} has no such revision") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InvalidRequest(
            f"--model {model}: no such folder, and no such repository on the hub; if it is private, set HF_TOKEN"
        ) from error
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage] - of its HTTP library
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise PermissionDenied(
                f"--model {model}: the hub refuses; set HF_TOKEN to a token that may read it"
            ) from error
        if isinstance(error, OSError) and (known := disk_error(error, str(error.filename or constants.HF_HUB_CACHE))):
            raise known from error
        if constants.HF_HUB_OFFLINE:
            raise InvalidRequest(f"--model {model}: HF_HUB_OFFLINE is set, and it is not on this machine") from error
        raise TryAgain(f"--model {model}: no such folder here, and the hub does not answer ({error})") from error


def _fetch(model: str, revision: str | None, weights: bool) -> ModelFolder:
    """Download a hub model. The cache names a snapshot by its commit, which becomes the recorded revision."""
    from huggingface_hub import HfApi, constants, snapshot_download

    wanted = {"revision": revision, "allow_patterns": _FILES if weights else _SMALL_FILES, "ignore_patterns": _NOT_READ}
    if constants.HF_HUB_OFFLINE:
        path = Path(snapshot_download(model, local_files_only=True, **wanted))
        return _checked(ModelFolder(path, model, path.name), os.listdir(path), weights)
    found = HfApi().model_info(model, revision=revision)  # its errors are clearer than those of the download
    path = Path(snapshot_download(model, **wanted))
    return _checked(ModelFolder(path, model, path.name), [file.rfilename for file in found.siblings or ()], weights)
