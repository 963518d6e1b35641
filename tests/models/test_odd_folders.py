"""Model folders that would end a start late, never, or by a traceback."""

import json
from pathlib import Path

import pytest

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.models.config_file import read_model_config
from extraction.models.location import locate_model
from extraction.storage import open_storage
from tests.helpers.workers import MODEL


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
    with pytest.raises(InvalidRequest, match="--model models/tiny: there is no such folder"):
        locate_model("models/tiny")


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
