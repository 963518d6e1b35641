"""Where a model lies: a folder on this machine, or a hub id that is downloaded into the hub's cache.

In: a folder or hub id. Out: a `ModelFolder`. Cost: nothing for a folder; one download for a hub id, of the
configuration, the tokenizer and the safetensors alone.
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
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFolder(path, model, None)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise InvalidRequest(f"--model {model}: there is no such folder")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> ModelFolder:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        commit = HfApi().model_info(model, revision=revision).sha
        return ModelFolder(Path(snapshot_download(model, revision=commit, allow_patterns=_FILES)), model, commit)
    except GatedRepoError as error:
        raise PermissionDenied(f"--model {model}: access must be granted on its page, and HF_TOKEN set") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InvalidRequest(f"--model {model}: no such folder, and no such repository on the hub") from error
    except RevisionNotFoundError as error:
        raise InvalidRequest(f"--revision {revision}: {model} has no such revision") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise TryAgain(f"--model {model}: no such folder here, and the hub does not answer") from error
