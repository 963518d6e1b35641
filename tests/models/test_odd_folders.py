"""Model folders that would end a start late, never, or by a traceback."""

import errno
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from extraction.batching.tokenizer import RecordTokenizer
from extraction.batching.tokenizer.files import read_files
from extraction.core.errors import DamagedData, InvalidRequest, PermissionDenied, TryAgain
from extraction.models.config_file import read_model_config
from extraction.models.location import ModelFolder, locate_model
from extraction.models.tensors import WeightFiles
from extraction.storage import open_storage
from tests.helpers.workers import MODEL


def failing(code):
    def fail(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("text, said", [
    ("[" * 100_000, "not JSON"), ('{"a":' * 100_000, "not JSON"),
    (json.dumps({"model_type": "llama", "num_hidden_layers": 10**9}), "num_hidden_layers is 1,000,000,000"),
    (json.dumps({"model_type": "gpt2", "n_layer": 10**9}), "n_layer is 1,000,000,000"),
])  # fmt: skip
def test_an_absurd_configuration_is_one_sentence(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DamagedData, match=said):
        read_model_config(tmp_path)


def test_a_relative_folder_that_is_not_there_is_no_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(InvalidRequest, match="--model models/tiny: there is no such folder; .* since ./models is"):
        locate_model("models/tiny")


@pytest.mark.parametrize("model", ["~nobodyofthisname/model", "x" * 300, f"/{'x' * 300}"])
def test_a_name_that_no_folder_has_is_one_sentence(model):
    with pytest.raises(InvalidRequest, match=f"--model {model}: "):
        locate_model(model)


def test_a_folder_that_may_not_be_read_is_one_sentence(monkeypatch):
    """The file system refuses, as it does not for root."""
    for call in ("listdir", "open"):
        monkeypatch.setattr(os, call, failing(errno.EACCES))
    with pytest.raises(PermissionDenied, match=f"--model {MODEL}: Permission denied"):
        locate_model(str(MODEL))
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EACCES))
    with pytest.raises(PermissionDenied, match=f"{MODEL}: Permission denied"):
        read_files(MODEL)


@pytest.mark.parametrize(
    "code, error", [(errno.ENOSPC, TryAgain), (errno.EACCES, PermissionDenied), (errno.EROFS, PermissionDenied)]
)
def test_a_disk_that_refuses_a_download_is_named(monkeypatch, tmp_path, code, error):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(code))
    with pytest.raises(error, match=f"{tmp_path}: {os.strerror(code)}"):
        locate_model("lab/tiny")


def test_an_offline_machine_without_the_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidRequest, match="--model lab/tiny: HF_HUB_OFFLINE is set, and it is not on this machine"):
        locate_model("lab/tiny")


def test_a_torn_copy_of_a_bucket_file_is_replaced(gcs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bucket = open_storage("gs://bucket/tiny")
    for path in MODEL.iterdir():
        if path.is_file():
            bucket.create(path.name, path.read_bytes())
    folder = locate_model("gs://bucket/tiny").path
    for name in ("config.json", "tokenizer.json"):
        right = (folder / name).read_bytes()
        for torn in (b"", right[:99]):
            Path(folder / name).write_bytes(torn)
            assert (locate_model("gs://bucket/tiny").path / name).read_bytes() == right


def test_weights_are_the_names_of_the_folder_itself(tmp_path, monkeypatch):
    """An unreadable folder such as lost+found, and those of a training, are below it."""
    shutil.copy(MODEL / "model.safetensors", tmp_path)
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", failing(errno.EACCES))
    with WeightFiles(ModelFolder(tmp_path, str(tmp_path), None)) as files:
        assert files.places


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DamagedData, match="model.safetensors: a Git LFS pointer .* `git lfs pull`"):
        WeightFiles(ModelFolder(tmp_path, str(tmp_path), None))
    with pytest.raises(DamagedData, match="tokenizer.json: a Git LFS pointer"):
        RecordTokenizer(tmp_path)


def test_a_text_config_of_null_is_none(tmp_path):
    shutil.copy(MODEL / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": null}')
    assert RecordTokenizer(tmp_path).special_tokens().record_prefix == ()
