"""Weights in another form than safetensors are refused with the command that converts them, wherever they are."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from extraction.core.errors import InvalidRequest
from extraction.models.location import locate_model
from extraction.storage import open_storage
from tests.helpers.fake_hub import FakeHub
from tests.helpers.tiny_models import documents, error, load, run
from tests.helpers.workers import ROOT

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

pytestmark = pytest.mark.slow

LAST = ("blocks.2.hook_resid_post",)


@pytest.fixture
def model(models, tmp_path):
    """A folder of our own with the configuration of the tiny Llama."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(models("llama").folder / "config.json", folder)
    return folder


def adapter_in(folder, base="lab/base"):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    save_file(
        {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 2)},
        folder / "adapter_model.safetensors",
    )


def test_the_command_for_pytorch_model_bin_makes_a_model_that_is_taken(models, model, tmp_path):
    torch.save(load_file(models("llama").folder / "model.safetensors"), model / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match="only pytorch_model.bin is here; convert it: run python -c ") as caught:
        locate_model(str(model))
    _, code = shlex.split(re.search(r"run python (-c '.*?')", str(caught.value))[1])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=200)
    ours, _ = run(load(locate_model(str(tmp_path / "converted")).path, LAST), documents())
    assert error(ours[LAST[0]], models("llama").reference[LAST[0]]) < 1e-5


@pytest.mark.parametrize(
    "file, message",
    [
        ("pytorch_model-00001-of-00002.bin", "only pytorch_model.bin is here"),
        (
            "tiny.Q4_1.gguf",
            r'only GGUF is here; convert it: .*gguf_file="tiny\.Q4_1\.gguf", quantization_config=G\(dequantize=True\)\)\.save_pretrained\("converted"\)',
        ),
        ("tf_model.h5", r"only tf_model\.h5 is here; with transformers 4 .*from_tf=True"),
        ("flax_model.msgpack", "only .*from_flax=True"),
        ("consolidated.00.pth", r"consolidated\.00\.pth is not in the form"),
        ("consolidated.safetensors", r"consolidated\.safetensors is not in the form"),
    ],
)
def test_each_form_has_a_way_out(model, file, message):
    (model / file).touch()
    with pytest.raises(InvalidRequest, match=rf"--model {model}: {message}"):
        locate_model(str(model))
    assert locate_model(str(model), weights=False).path == model


ADAPTER = r"only a LoRA adapter of lab/base is here; merge it: .*AutoPeftModel.*merge_and_unload\(\)\.save_pretrained"


def test_an_adapter_alone_says_how_it_is_merged(model):
    adapter_in(model)
    with pytest.raises(InvalidRequest, match=ADAPTER):
        locate_model(str(model))
    (model / "config.json").unlink()
    with pytest.raises(InvalidRequest, match=ADAPTER):
        locate_model(str(model), weights=False)


def test_an_adapter_beside_a_model_is_ambiguous(models, tmp_path):
    folder = shutil.copytree(models("llama").folder, tmp_path / "model")
    adapter_in(folder)
    with pytest.raises(InvalidRequest, match=r"both a model and a LoRA adapter .* remove adapter_config\.json"):
        locate_model(str(folder))


def test_in_a_bucket(model, gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    adapter_in(model)
    storage = open_storage("gs://bucket/adapter")
    for path in model.iterdir():
        storage.create(path.name, path.read_bytes())
    with pytest.raises(InvalidRequest, match=rf"--model gs://bucket/adapter: {ADAPTER}") as caught:
        locate_model("gs://bucket/adapter")
    assert "copy the folder here as FOLDER, then run python" in str(caught.value)
    open_storage("gs://bucket/gguf").create("a.gguf", b"GGUF")
    with pytest.raises(InvalidRequest, match="--model gs://bucket/gguf: only GGUF is here"):
        locate_model("gs://bucket/gguf")


@pytest.mark.parametrize(
    "file, message",
    [
        ("pytorch_model.bin", "only pytorch_model.bin is here"),
        ("adapter_model.bin", "only a LoRA adapter of lab/base"),
    ],
)
def test_on_the_hub_nothing_large_is_downloaded(model, tmp_path, file, message):
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    adapter_in(model) if "adapter" in file else None
    (model / file).write_bytes(b"large")
    code = "import sys; from extraction.models.location import locate_model; locate_model('lab/tiny')"
    with FakeHub(model) as hub:
        where = os.environ | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=where, capture_output=True, text=True)
    assert f"InvalidRequest: --model lab/tiny: {message}" in result.stderr
    assert not any(path.endswith(".bin") for path in hub.asked)
