"""Experts in one tensor, and MXFP4 weights against transformers' own conversion; damaged ones are named."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from extraction.core.errors import DamagedData
from extraction.models.location import ModelFolder
from extraction.models.mxfp4 import expand_mxfp4
from extraction.tools.parity import TorchReference
from tests.helpers.tiny_configs import CONFIGS
from tests.helpers.tiny_models import TinyModel, documents, error, load, make_model, run

pytestmark = pytest.mark.slow

BLOCK = 32


def packed(rng, *shape):
    """Blocks and scales of random weights [..., I] of the size of the tiny model's, shape [..., I / 32]."""
    blocks = rng.integers(0, 256, (*shape, BLOCK // 2), np.uint8)
    return blocks, rng.integers(121, 126, shape, np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_values_are_those_of_transformers(dtype):
    """Each byte, and scales from 2^-120 to 2^120."""
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = np.arange(7 * 3 * 2 * 16, dtype=np.uint32).astype(np.uint8).reshape(7, 3, 2, 16)
    scales = np.linspace(7, 247, 7 * 3 * 2).astype(np.uint8).reshape(7, 3, 2)
    theirs = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=getattr(torch, dtype))
    ours = np.asarray(expand_mxfp4(blocks, scales).astype(dtype)).swapaxes(1, 2)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs.float().numpy())


@pytest.fixture
def folder(tmp_path):
    """A tiny gpt-oss with packed experts, as the hub has it."""
    name = "gpt_oss-unbiased-clamped"
    config = CONFIGS[name](intermediate_size=2 * BLOCK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, name, lambda: config)
        make_model(name, tmp_path)
    tensors, rng = load_file(tmp_path / "model.safetensors"), np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(rng, experts, outputs, inputs // BLOCK)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    written = json.loads((tmp_path / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(written))
    return tmp_path


def test_a_packed_model_is_that_which_transformers_expands(folder):
    hooks = ["blocks.0.hook_mlp_out", "blocks.1.mlp.hook_router_logits", "ln_final.hook_normalized"]
    reference = TorchReference.load(ModelFolder(folder, str(folder), None), hooks)
    alone = [reference(tokens) for tokens in documents()]
    ours, _ = run(load(folder, hooks), documents())
    for hook in hooks:
        assert error(ours[hook], np.concatenate([values[hook] for values in alone])) < 1e-5, hook


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda scales: None, "down_proj_scales is missing"),
        (lambda scales: scales.astype(np.float32), "down_proj_scales is F32; handled are U8"),
        (lambda scales: scales[:, :-1], r"down_proj_blocks has shape .*, which does not fit"),
    ],
)
def test_scales_that_do_not_fit_are_named(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name] = change(tensors[name])
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    with pytest.raises(DamagedData, match=message):
        load(folder, ("blocks.1.hook_mlp_out",))


@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3"])
def test_experts_may_be_saved_in_one_tensor(tmp_path, name):
    model = TinyModel(name, tmp_path, save_original_format=False)
    assert "model.layers.2.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    hook = "blocks.2.hook_resid_post"
    ours, _ = run(load(tmp_path, (hook,)), documents())
    assert error(ours[hook], model.reference[hook]) < 1e-5
