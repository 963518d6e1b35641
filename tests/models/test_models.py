"""The models against transformers' torch models: each family, each hook point; configurations, attention, rotation."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.models.config import Rope
from extraction.models.config_file import read_model_config
from extraction.models.config_reads import ModelView
from extraction.models.families import FAMILIES, Family, family_of
from extraction.models.families.reading import rope as rope_of
from extraction.models.location import ModelFolder, locate_model
from extraction.models.rope import rope_frequencies, rotation
from extraction.models.tensor_names import TextModel, find_tensors
from extraction.models.tensors import WeightFiles
from extraction.tools.parity import TorchReference
from tests.helpers.known_models import field_of
from tests.helpers.tiny_configs import CONFIGS, DYNAMIC, LINEAR, LLAMA3, LONGROPE, SIZES, WINDOWS, YARN
from tests.helpers.tiny_models import TinyModel, documents, error, load, run

pytestmark = pytest.mark.slow

LLAMA = {"model_type": "llama", **SIZES}
# As transformers 4 saved a model whose file had `rotary_pct` and `rotary_emb_base`.
RESAVED_NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "num_attention_heads": 12,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000,
    "rope_scaling": None,
}
# What people and tools leave in a file, and what no model reads.
UNREAD = {
    "_model_name_or_path": "Q4_1.gguf",
    "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    "custom_pipelines": {"text": {"impl": "own.Pipeline", "pt": ["AutoModel"]}},
    "max_length": 20,
    "model_max_length": 9,
    "name": "mine",
    "problem_type": "regression",
    "quantization_config": None,
    "rope_interleaved": True,
    "some_new_attribute": 3,
    "temperature": 0.6,
    "tokenizer_class": "LlamaTokenizer",
    "torchscript": True,
    "unsloth_fixed": True,
    "_attn_implementation": "eager",
    "partial_rotary_factor": 0.5,
    "sliding_window": 16,
}


@pytest.fixture
def configured(tmp_path):
    """A function that reads a configuration with these attributes."""

    def read(attributes):
        (tmp_path / "config.json").write_text(attributes if isinstance(attributes, str) else json.dumps(attributes))
        return read_model_config(tmp_path)

    return read


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
        ("qwen2", {"dtype": torch.bfloat16, "max_shard_size": "8KB"}),
        ("gpt2", {"dtype": torch.float16}),
    ],
)
def test_weights_of_half_width_and_in_shards(tmp_path, name, saving):
    model = TinyModel(name, tmp_path, **saving)
    assert (tmp_path / "model.safetensors.index.json").exists() == ("max_shard_size" in saving)
    hooks = ("blocks.1.hook_mlp_out", "ln_final.hook_normalized")
    ours, _ = run(load(tmp_path, hooks), documents())
    for hook in hooks:
        assert error(ours[hook], model.reference[hook]) < 1e-5, hook


@pytest.mark.parametrize(
    "parameters, rope",
    [
        ({"rope_type": "default", "rope_theta": 1e6}, Rope(1e6)),
        (LINEAR, Rope(1e4, "linear", 4.0)),
        (LLAMA3, Rope(1e4, "llama3", 8.0, 1.0, 4.0, 64)),
        (YARN, Rope(1e4, "yarn", 4.0, original_max_positions=64, attention_factor=0.1 * np.log(4.0) + 1)),
        (
            {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25, "factor": 2.0},
            Rope(1e6, "proportional", 2.0, fraction=0.25),
        ),
        (
            YARN | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 1.0},
            Rope(
                1e4,
                "yarn",
                4.0,
                original_max_positions=64,
                truncate=False,
                attention_factor=(0.07 * np.log(4.0) + 1) / (0.1 * np.log(4.0) + 1),
            ),
        ),
    ],
)
def test_rotations_are_those_of_the_reference_at_far_positions(parameters, rope):
    """A frequency one place off would be a visible angle at position 100,000."""
    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=parameters)
    reference = LlamaRotaryEmbedding(config)
    theirs = reference.inv_freq.numpy()
    assert rope_of(parameters, ModelView(config), Path()) == rope
    assert rope.attention_factor == pytest.approx(reference.attention_scaling, rel=1e-12)
    assert np.abs(1e5 * (rope_frequencies(64, rope).astype(np.float64) - theirs)).max() < 1e-3


@pytest.mark.parametrize("length", [63, 64, 65, 100, 4000])
@pytest.mark.parametrize("parameters", [DYNAMIC, LONGROPE])
def test_frequencies_of_a_document_are_those_of_a_model_that_sees_it_first(parameters, length):
    config = transformers.LlamaConfig(
        **(SIZES | {"max_position_embeddings": 64}), rope_parameters=parameters | {"rope_theta": 1e4}
    )
    rope, reference = rope_of(config.rope_parameters, ModelView(config), Path()), LlamaRotaryEmbedding(config)
    cos, _ = reference(torch.zeros(1), torch.arange(length)[None])
    ours = rope_frequencies(8, rope, length).astype(np.float64)
    assert np.abs(1e5 * (ours - reference.inv_freq.numpy())).max() < 2e-2  # a power in float32 differs by one place
    lengths = [5, length, 0, 7]
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)])[None].astype(np.int32)
    packed, _ = rotation(jnp.asarray(positions), jnp.asarray(segments), 8, rope)
    np.testing.assert_allclose(packed[0, 5 : 5 + length, 0], cos[0, :, :4], atol=2e-3)
    alone, _ = rotation(jnp.asarray(positions[:, :5]), jnp.asarray(segments[:, :5]), 8, rope)
    np.testing.assert_array_equal(packed[0, :5], alone[0])
    np.testing.assert_array_equal(packed[0, -7:-2], alone[0])


@pytest.mark.parametrize(
    "attributes, expected",
    [
        (LLAMA | UNREAD, {"rope": Rope(1e4), "window": None}),
        (RESAVED_NEOX, {"rope": Rope(1e4, fraction=0.25)}),
        (RESAVED_NEOX | {"partial_rotary_factor": 0.5}, {"rope": Rope(1e4, fraction=0.25)}),
        (LLAMA | {"hidden_act": "swish"}, {"activation": "silu"}),
        (LLAMA | {"model_type": "mistral", "attention_bias": True}, {"qkv_bias": False, "output_bias": False}),
        (
            LLAMA | {"model_type": "qwen3_moe", "qkv_bias": True, "use_qk_norm": False},
            {"qkv_bias": False, "qk_norm": "head"},
        ),
        (
            LLAMA | {"model_type": "mistral", "sliding_window": 9, "layer_types": WINDOWS["layer_types"]},
            {"family": "mistral", "window": (9, None, 9)},
        ),
        (
            LLAMA | {"rope_parameters": YARN | {"attn_factor": 2.0, "turns": 3}},
            {"rope": Rope(1e4, "yarn", 4.0, original_max_positions=64, attention_factor=0.1 * np.log(4.0) + 1)},
        ),
        (LLAMA | {"tie_word_embeddings": True}, {"tied": True}),
        (LLAMA, {"tied": False}),
        ({"model_type": "gpt2"}, {"tied": True}),
        ({"model_type": "gemma2"}, {"tied": True}),
        (LLAMA | {"rope_theta": 5e5, "rope_scaling": None}, {"rope": Rope(5e5)}),
        (
            LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope": Rope(5e5, "linear", 4.0)},
        ),
        (
            LLAMA | {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
            {"rope": Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64)},
        ),
    ],
)
def test_configurations_as_they_are_found(configured, attributes, expected):
    config = configured(attributes)
    assert {name: field_of(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mamba2"}, "mamba2.* supported are llama, "),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            r"quantization_config: .* \(fp8\), .* not quantised, or .*dequantize",
        ),
        ({"quantization_config": {"load_in_4bit": True}}, r"of a kind that it does not name"),
        ({"per_layer_config": {"1": {"intermediate_size": 8}}}, "per_layer_config"),
        ({"is_causal": False}, "is_causal = false is not handled for llama; LlamaModel of transformers reads it"),
        ({"hidden_act": "xielu"}, "xielu"),
        ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}, "RoPE parameters partial_rotary_factor"),
        ({"rope_scaling": {"type": "axial", "factor": 2.0}}, "RoPE type 'axial'"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not handled"),
        ({"model_type": "gemma4_text", "use_bidirectional_attention": "all"}, "use_bidirectional_attention = all"),
        (
            {"model_type": "gemma4_text", "per_layer_config": {"1": {"rms_norm_eps": 0.5}}},
            "not handled for rms_norm_eps",
        ),
        ({"model_type": "gpt_neox", "head_dim": 16}, "head_dim = 16 is not handled for gpt_neox"),
        ({"model_type": "opt", "do_layer_norm_before": False}, "do_layer_norm_before = false is not handled for opt"),
        ({"model_type": "opt", "word_embed_proj_dim": 16}, "word_embed_proj_dim = 16"),
        ({"model_type": "opt", "layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = false"),
        ({"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, "residual_connection_post"),
        ({"model_type": "bloom", "slow_but_exact": True}, "slow_but_exact = true"),
    ],
)
def test_what_is_not_handled_is_refused_by_name(configured, change, message):
    with pytest.raises(InvalidRequest, match=message):
        configured(LLAMA | change)


def test_what_is_not_handled_is_refused_inside_a_configuration_too(configured):
    with pytest.raises(InvalidRequest, match="use_bidirectional_attention = true is not handled for gemma3_text"):
        configured({"model_type": "gemma3", "text_config": {"use_bidirectional_attention": True}})


def test_keys_that_the_reference_does_not_know_are_named_once(configured, capsys):
    configured(
        LLAMA | UNREAD | {"rope_theta": 1e4, "torch_dtype": "bfloat16", "bos_token_id": 1, "attention_dropout": 0.1}
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "config.json: ignored, since LlamaModel of transformers does not read it: _model_name_or_path, auto_map, "
        "custom_pipelines, model_max_length, name, quantization_config, rope_interleaved, sliding_window, "
        "some_new_attribute, tokenizer_class, torchscript, unsloth_fixed"
    )


@pytest.mark.parametrize(
    "attributes",
    [
        '{"model_type": "lla',
        "[]",
        "{}",
        '{"model_type": ["llama"]}',
        LLAMA | {"hidden_size": "wide"},
        LLAMA | {"num_attention_heads": 0},
        LLAMA | {"num_key_value_heads": 3},
        LLAMA | {"num_hidden_layers": 0},
        LLAMA | {"model_type": "mistral", "sliding_window": 0},
        LLAMA | {"model_type": "mixtral", "num_experts_per_tok": 9},
        LLAMA | {"model_type": "qwen3_moe", "decoder_sparse_step": 0},
        LLAMA | {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3},
        LLAMA | {"rope_scaling": {"rope_type": "linear"}},
        LLAMA | {"rope_scaling": {"rope_type": "dynamic"}},
        LLAMA | {"rope_scaling": LONGROPE | {"long_factor": [1.0]}},
        {"model_type": "smollm3", "no_rope_layers": [1]},
        LLAMA | {"head_dim": 7},
        LLAMA | {"model_type": "gemma4_text", "vocab_size_per_layer_input": 50},
        LLAMA | {"model_type": "gemma4_text", "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2},
        LLAMA | {"model_type": "gemma4_text", "num_kv_shared_layers": 3},
        {"model_type": "gemma3"},
    ],
)
def test_a_broken_configuration_is_damaged_data(configured, attributes):
    with pytest.raises(DamagedData, match=r"config\.json"):
        configured(attributes)


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(InvalidRequest, match=r"no config\.json"):
        read_model_config(tmp_path)


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


def test_configurations_are_read_without_jax(models):
    code = f"""
import pathlib, sys
from extraction.models.config_file import read_model_config
from extraction.models.families import FAMILIES, family_of
from extraction.models.location import locate_model
families = [family_of(model_type) for model_type in FAMILIES]
assert not {{"jax", "flax", "torch", "transformers"}} & set(sys.modules), "at import"
print(read_model_config(locate_model({str(models("llama").folder)!r}).path).width)
assert not {{"jax", "flax"}} & set(sys.modules), "when reading"
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "32\n"), result.stderr


def test_every_line_of_the_registry_names_a_family():
    assert all(isinstance(family_of(model_type), Family) for model_type in FAMILIES)


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


def test_projections_that_no_layer_uses_are_known(models, tmp_path):
    """As in Gemma 4 of the hub, whose layers have the projections also where they use k and v of another layer."""
    folder = shutil.copytree(models("gemma4_text").folder, tmp_path / "model")
    config, file = read_model_config(folder), folder / "model.safetensors"
    k, of_another = (f"model.layers.{layer}.self_attn.k_proj.weight" for layer in (0, 4))
    stored = load_file(file)
    assert k in stored and of_another not in stored
    save_file(stored | {of_another: stored[k]}, file)
    family = family_of(config.family)
    names = TextModel(family, family.weight_table(config), config.layers, 6, config.tied)
    with WeightFiles(ModelFolder(folder, "", None)) as files:
        found = find_tensors(files, names)
    assert k in found and of_another not in found


def test_blocks_in_turn_have_the_middle_that_parallel_ones_lack(models):
    assert "blocks.1.hook_resid_mid" in models("gpt_neox-in-turn-linear").hook_points


def test_the_embedding_of_gemma_is_scaled_as_the_reference_rounds_it(models):
    """In bfloat16 sqrt(32) is 5.65625 and not 5.65685, which makes another number of one in forty."""
    model = models("gemma2")
    half = {"compute_dtype": "bfloat16", "store_dtype": "bfloat16"}
    ours, _ = run(load(model.folder, ("blocks.0.hook_resid_pre",), **half), documents())
    embed = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.bfloat16).model.embed_tokens
    theirs = embed(torch.tensor(np.concatenate(documents()), dtype=torch.int64)).detach().float().numpy()
    np.testing.assert_array_equal(ours["blocks.0.hook_resid_pre"], theirs)


def test_a_folder_is_its_own_location(tmp_path):
    assert locate_model(str(tmp_path)) == ModelFolder(tmp_path, str(tmp_path), None)


@pytest.mark.parametrize(
    "model, revision, message",
    [
        ("/no/such/folder", None, "no such folder"),
        ("./models", None, "no such folder"),
        ("a/b/c", None, "no such folder"),
        ("ftp://bucket/model", None, "gs://bucket/folder or a hub id"),
        ("hf://lab/model", None, "or a hub id"),
        ("gs://bucket/model", "main", "has no revisions"),
        (".", "main", "--revision main"),
    ],
)
def test_what_is_no_location_is_refused(model, revision, message):
    with pytest.raises(InvalidRequest, match=message):
        locate_model(model, revision)
