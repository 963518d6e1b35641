"""The models against transformers' torch models: each family, each hook point."""

import shutil

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.models.config_file import read_model_config
from extraction.models.families import family_of
from extraction.models.location import ModelFolder
from extraction.models.tensor_names import TextModel, find_tensors
from extraction.models.tensors import WeightFiles
from extraction.tools.parity import TorchReference
from tests.helpers.tiny_configs import CONFIGS
from tests.helpers.tiny_models import TinyModel, documents, error, load, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CONFIGS)
def test_every_hook_point_of_packed_documents_is_that_of_the_reference_alone(models, name):
    model = models(name)
    hooks = model.hook_points
    forward = load(model.folder, hooks)
    ours, _ = run(forward, documents())
    assert list(ours) == hooks and set(hooks) == set(model.reference)
    assert forward.widths == {hook: values.shape[1] for hook, values in model.reference.items()}
    for hook in hooks:
        assert error(ours[hook], model.reference[hook]) < 1e-5, hook


def test_a_document_after_a_longer_one_has_the_frequencies_of_its_own_length(models):
    """Both are longer than the original positions of dynamic NTK."""
    folder, hooks = models("granite-biases-dynamic").folder, ("blocks.0.hook_attn_out", "blocks.2.hook_resid_post")
    reference = TorchReference.load(ModelFolder(folder, str(folder), None), hooks)
    docs = documents((140, 90, 48, 49))
    theirs = [reference(tokens) for tokens in docs]
    ours, _ = run(load(folder, hooks), docs)
    for hook in hooks:
        assert error(ours[hook], np.concatenate([values[hook] for values in theirs])) < 1e-5, hook


@pytest.mark.parametrize(
    "name, saving",
    [
        ("qwen2", {"dtype": "bfloat16", "max_shard_size": "8KB"}),
        ("gpt2", {"dtype": "float16"}),
    ],
)
def test_weights_of_half_width_and_in_shards(tmp_path, name, saving):
    model = TinyModel(name, tmp_path, **saving)
    assert (tmp_path / "model.safetensors.index.json").exists() == ("max_shard_size" in saving)
    hooks = ("blocks.1.hook_mlp_out", "ln_final.hook_normalized")
    ours, _ = run(load(tmp_path, hooks), documents())
    for hook in hooks:
        assert error(ours[hook], model.reference[hook]) < 1e-5, hook


def test_hook_points_are_named_in_depth_order(models):
    names = models("llama").hook_points
    assert names[:16] == [
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.0.ln1.hook_normalized",
        "blocks.0.hook_attn_in",
        "blocks.0.attn.hook_q",
        "blocks.0.attn.hook_k",
        "blocks.0.attn.hook_v",
        "blocks.0.attn.hook_z",
        "blocks.0.hook_attn_out",
        "blocks.0.hook_resid_mid",
        "blocks.0.ln2.hook_normalized",
        "blocks.0.hook_mlp_in",
        "blocks.0.mlp.hook_pre",
        "blocks.0.mlp.hook_post",
        "blocks.0.hook_mlp_out",
        "blocks.0.hook_resid_post",
    ]
    assert len(names) == 3 + 3 * 15 and names[-2:] == ["ln_final.hook_normalized", "hook_loss"]


@pytest.mark.parametrize("name, hook", [("gpt_neox", "hook_resid_mid"), ("qwen3_moe", "mlp.hook_post")])
def test_a_hook_point_that_a_family_does_not_have_is_refused_by_its_name(models, name, hook):
    model = models(name)
    assert not any(point.endswith(hook) for point in model.hook_points)
    with pytest.raises(InvalidRequest, match=rf"blocks\.1\.{hook}: no such hook point: in this {name} model"):
        load(model.folder, (f"blocks.1.{hook}",))


def test_a_layer_without_k_and_v_of_its_own_names_the_one_that_has_them(models):
    message = r"blocks\.4\.attn\.hook_k: .*layer 4 uses those of layer 0; of its 6 layers these have it: 0:2"
    with pytest.raises(InvalidRequest, match=message):
        load(models("gemma4_text").folder, ("blocks.4.attn.hook_k",))


def found_with(model, added, like, folder):
    """The tensors that are found in a copy of a model with one tensor more, which has the values of another."""
    shutil.copytree(model.folder, folder)
    config, file = read_model_config(folder), folder / "model.safetensors"
    stored = load_file(file)
    assert like in stored and added not in stored
    save_file(stored | {added: stored[like]}, file)
    family = family_of(config.family)
    names = TextModel(family, family.weight_table(config), config.layers, config.num_layers, config.tied)
    with WeightFiles(ModelFolder(folder, "", None)) as files:
        return find_tensors(files, names)


def test_projections_that_no_layer_uses_are_ignored_once(models, tmp_path, capsys):
    """As in Gemma 4 of the hub, whose layers have the projections also where they use k and v of another layer."""
    k, of_another = (f"model.layers.{layer}.self_attn.k_proj.weight" for layer in (0, 4))
    found = found_with(models("gemma4_text"), of_another, k, tmp_path / "model")
    assert k in found and of_another not in found
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "no layer reads" in line)
    assert line.endswith(f"ignored, since no layer reads them: 1 tensor, such as {of_another}")


def test_a_projection_of_a_layer_that_makes_v_of_k_is_unknown(models, tmp_path):
    k, v = (f"model.language_model.layers.1.self_attn.{name}_proj.weight" for name in "kv")
    with pytest.raises(DamagedData, match=f"tensor {v} is unknown to this architecture"):
        found_with(models("gemma4-mixture"), v, k, tmp_path / "model")


def test_blocks_in_turn_have_the_middle_that_parallel_ones_lack(models):
    assert "blocks.1.hook_resid_mid" in models("gpt_neox-in-turn-linear").hook_points


def test_the_embedding_of_gemma_is_scaled_as_the_reference_rounds_it(models):
    """In bfloat16 sqrt(32) is 5.65625 and not 5.65685, which makes another number of one in forty."""
    torch = pytest.importorskip("torch")
    model = models("gemma2")
    half = {"compute_dtype": "bfloat16", "store_dtype": "bfloat16"}
    ours, _ = run(load(model.folder, ("blocks.0.hook_resid_pre",), **half), documents())
    embed = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.bfloat16).model.embed_tokens
    theirs = embed(torch.tensor(np.concatenate(documents()), dtype=torch.int64)).detach().float().numpy()
    np.testing.assert_array_equal(ours["blocks.0.hook_resid_pre"], theirs)
