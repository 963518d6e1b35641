"""The loader is strict: what is missing, unknown, doubled, misshapen or cut is named."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from extraction.errors import DamagedData, InvalidRequest
from tests.test_forward import load
from tests.tiny_models import make_model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    make_model("llama", folder)
    return folder


@pytest.fixture
def model(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def rewrite(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def test_names_without_the_prefix_are_understood(model):
    rewrite(model, lambda t: [t.update({n.removeprefix("model."): t.pop(n)}) for n in list(t)])
    load(model)


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight is missing"),
    (lambda t: t.update({"model.layers.1.extra": t["model.norm.weight"]}), "model.layers.1.extra .* unknown"),
    (lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:-1]}), "model.norm.weight has shape"),
    (lambda t: t.update({"norm.weight": t["model.norm.weight"]}), "norm.weight is there twice"),
])
def test_tensors_that_do_not_fit_are_named(model, change, message):
    rewrite(model, change)
    with pytest.raises(DamagedData, match=message):
        load(model)


def test_a_cut_file_is_named(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedData, match="model.safetensors"):
        load(model)


def test_a_shard_that_the_index_names_must_be_there(model):
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()
    with pytest.raises(DamagedData, match="model-00002-of-00002.safetensors"):
        load(model)


def test_no_weights_at_all(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="no model.safetensors"):
        load(model)
