"""Reading `config.json`: what is understood, ignored, refused by name, or damaged; where a model is found."""

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.models.config import Rope
from extraction.models.config_file import OLDEST_TRANSFORMERS, read_model_config
from extraction.models.families import FAMILIES, Family, family_of
from extraction.models.location import ModelFolder, locate_model
from tests.helpers.known_models import field_of
from tests.helpers.tiny_configs.settings import LINEAR, LLAMA3, LONGROPE, SIZES, WINDOWS, YARN

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


NEMOTRON_H = {"model_type": "nemotron_h", **SIZES, "mamba_num_heads": 8, "n_groups": 2}


@pytest.mark.parametrize("attributes", [
    NEMOTRON_H | {"hybrid_override_pattern": "M-*", "n_routed_experts": 128, "moe_intermediate_size": 1856},
    NEMOTRON_H | {"hybrid_override_pattern": "M-", "norm_topk_prob": False, "moe_latent_size": 32},
    {"model_type": "llama4_text", **SIZES, "no_rope_layers": [1, 1, 1], "attn_temperature_tuning": False},
    {"model_type": "llama4_text", **SIZES, "attn_temperature_tuning": False, "floor_scale": 4},
    {"model_type": "llama4_text", **SIZES, "no_rope_layers": [0, 0, 0], "use_qk_norm": False},
    {"model_type": "smollm3", **SIZES, "use_sliding_window": False, "sliding_window": 4096},
    {"model_type": "gpt_neo", "use_cache": False, "output_hidden_states": True, "return_dict": False},
    {"model_type": "bloom", "use_cache": False, "output_attentions": True},
])  # fmt: skip
def test_keys_that_change_nothing_in_this_model_refuse_nothing(configured, attributes):
    assert not any(kind.experts and attributes["model_type"] == "nemotron_h" for kind in configured(attributes).layers)


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
        ({"model_type": "olmoe", "sliding_window": 128}, "sliding_window = 128"),
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


def test_an_older_transformers_is_refused(configured, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "5.22.2")
    with pytest.raises(InvalidRequest, match=r"^transformers 5\.22\.2 is too old: pip install 'transformers>=5\.23'$"):
        read_model_config(configured(LLAMA))


def test_the_oldest_transformers_is_the_one_that_is_installed_at_least():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "transformers>=" + ".".join(map(str, OLDEST_TRANSFORMERS)) in project["optional-dependencies"]["worker"]


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(InvalidRequest, match=r"no config\.json"):
        read_model_config(tmp_path)


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
