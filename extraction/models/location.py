"""Where a model lies: a folder on this machine, or a hub id that is downloaded into the hub's cache.

In: a folder or hub id. Out: a `ModelFolder`. Cost: nothing for a folder; one download for a hub id, of the
configuration, the tokenizer and the safetensors alone. With HF_HUB_OFFLINE set the cache answers, without the network.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidRequest, PermissionDenied, TryAgain

_FILES = ["*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class ModelFolder:
    """A model's files. `model` is what was asked for, `revision` the commit of a hub model, None for a folder."""

    path: Path
    model: str
    revision: str | None


def locate_model(model: str, revision: str | None = None) -> ModelFolder:
    """The folder of `model`. Raises InvalidRequest (no such folder or repository), PermissionDenied, TryAgain."""
    if "://" in model:
        raise InvalidRequest(f"--model {model}: give a folder on this machine or a hub id")
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InvalidRequest(f"--revision {revision}: {model} is a folder, which has no revisions; leave the flag out")
        return ModelFolder(path, model, None)
    if path.is_file() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise InvalidRequest(f"--model {model}: there is no such folder")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> ModelFolder:
    from huggingface_hub import errors

    try:
        return _fetch(model, revision)
    except errors.GatedRepoError as error:
        raise PermissionDenied(f"--model {model}: access must be granted on its page, and HF_TOKEN set") from error
    except errors.RevisionNotFoundError as error:
        raise InvalidRequest(f"--revision {revision}: {model} has no such revision") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InvalidRequest(f"--model {model}: no such folder, and no such repository on the hub") from error
    except (errors.HTTPError, OSError) as error:  # the first is the HTTP library's, whichever the hub's client uses
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise PermissionDenied(f"--model {model}: the hub refuses it to this HF_TOKEN") from error
        raise TryAgain(f"--model {model}: no such folder here, and the hub does not answer ({error})") from error


def _fetch(model: str, revision: str | None) -> ModelFolder:
    """The cache names a snapshot by its commit, so what is recorded is what was downloaded."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        path = snapshot_download(model, revision=revision, allow_patterns=_FILES, local_files_only=True)
    else:
        HfApi().model_info(model, revision=revision)  # a refusal says more here than in the download
        path = snapshot_download(model, revision=revision, allow_patterns=_FILES)
    return ModelFolder(Path(path), model, Path(path).name)
