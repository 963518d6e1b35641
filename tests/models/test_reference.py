"""What changes the hidden states of transformers' models is never ignored: each key of each family is tried out."""

import json
import logging

import pytest
import transformers

from extraction.core.errors import ExtractionError
from extraction.models.config_file import read_model_config
from extraction.models.families import FAMILIES, family_of
from tests.helpers.known_models import ACCEPTED, FOLDER

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 31,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 8}
LATENT = {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "v_head_dim": 6,
}
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA4 = WINDOWS | {"global_head_dim": 16}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "shared_expert_intermediate_size": 8,
}
OF_A_FAMILY = {
    "mistral": {"sliding_window": 6},
    "ministral": WINDOWS,
    "qwen2": WINDOWS | {"use_sliding_window": True},
    "qwen3": WINDOWS | {"use_sliding_window": True},
    "smollm3": WINDOWS | {"use_sliding_window": True},
    "olmo3": WINDOWS,
    "cohere2": WINDOWS,
    "llama4_text": {
        "attention_chunk_size": 6,
        "floor_scale": 6,
        "intermediate_size_mlp": 24,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
    },
    "gemma2": WINDOWS,
    "gemma3_text": WINDOWS,
    "gemma4_text": GEMMA4 | {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 31},
    "gemma4_unified_text": GEMMA4,
    "olmoe": EXPERTS,
    "qwen2_moe": WINDOWS
    | {"use_sliding_window": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "deepseek_v2": LATENT | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": LATENT,
    "mixtral": EXPERTS | {"sliding_window": 6},
    "qwen3_moe": EXPERTS | {"sliding_window": 6, "use_sliding_window": True},
    "qwen3_next": HYBRID | EXPERTS,
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID | EXPERTS,
    "gpt_oss": EXPERTS | WINDOWS,
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "full_attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 31},
    "gptj": {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 31, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 16,
        "num_heads": 2,
        "num_layers": 2,
        "max_position_embeddings": 64,
        "vocab_size": 31,
        "window_size": 6,
        "attention_types": [[["global", "local"], 1]],
    },
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "vocab_size": 31,
    },
    "bloom": {"hidden_size": 16, "n_head": 2, "n_layer": 2, "vocab_size": 31},
    "gpt_neox": {key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")},
}
# Keys that tools and people write, beside those of the configurations' classes and of the stored files.
WRITTEN = {
    "is_causal": False,
    "name": "x",
    "partial_rotary_factor": 0.5,
    "head_dim": 4,
    "rope_interleaved": True,
    "clip_qkv": 0.1,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "rope_theta": 50.0,
    "sliding_window": 3,
    "attention_bias": True,
    "layer_types": ["full_attention", "sliding_attention"],
    "use_qk_norm": False,
    "rotary_pct": 0.5,
    "mlp_bias": True,
    "use_bidirectional_attention": True,
    "final_logit_softcapping": 1.0,
    "attn_logit_softcapping": 0.1,
    "tokenizer_class": "X",
    "embedding_multiplier": 3.0,
    "logits_scaling": 3.0,
    "residual_multiplier": 3.0,
    "attention_multiplier": 3.0,
    "per_layer_config": {"1": {"rms_norm_eps": 0.5, "layer_norm_epsilon": 0.5}},
    "temperature": 0.5,
    "max_length": 7,
    "auto_map": {"AutoModel": "own.Model"},
    "torchscript": True,
    "problem_type": "regression",
    "model_max_length": 5,
}
WITHOUT_MODEL = {
    "model_type",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "return_dict",
}


def others(key, value):
    """Other values of a key."""
    if key in WRITTEN:
        yield WRITTEN[key]
    if isinstance(value, bool) or value is None:
        yield not value
    elif isinstance(value, int | float):
        yield value * 2 if value else 1
    elif isinstance(value, str):
        yield "relu"
    elif key == "rope_parameters" and "rope_theta" in value:
        yield value | {"rope_theta": 50.0}
        yield value | {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "attn_factor": 3.0}


@pytest.fixture
def tried(tmp_path):
    """Functions that write a configuration, and give what transformers makes of it and what we make of it."""
    ids = torch.arange(20)[None] % 31
    states = {}

    def write(written):
        (tmp_path / "config.json").write_text(json.dumps(written))

    def hidden():
        """The hidden states; None if transformers makes no such model, or one with other parameters."""
        try:
            config = transformers.AutoConfig.from_pretrained(tmp_path)
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
            if not states:
                states.update({k: torch.randn_like(v) * 0.3 for k, v in model.state_dict().items()})
            model.load_state_dict(states)
            with torch.no_grad():
                return model(ids, use_cache=False, return_dict=True).last_hidden_state
        except Exception:  # whatever it is, the key has been read
            return None

    def ours():
        try:
            return read_model_config(tmp_path)
        except ExtractionError:
            return None

    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    yield write, hidden, ours
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore:`rope_scaling`:FutureWarning")  # a class without rotation warns of the key
@pytest.mark.parametrize("model_type", sorted(name for name in FAMILIES if family_of(name).inside is None))
def test_what_changes_the_hidden_states_is_not_ignored(tried, model_type):
    write, hidden, ours = tried
    base = OF_A_FAMILY.get(model_type, {})
    own_names = ("gpt2", "gpt_neox", "gptj", "gpt_neo", "opt", "bloom")
    base = {"model_type": model_type} | (base if model_type in own_names else SIZES | base)
    full = transformers.CONFIG_MAPPING[model_type](**base).to_dict()
    for name in ACCEPTED:
        found = json.loads((FOLDER / f"{name}.json").read_bytes())
        full = (found if found["model_type"] == model_type else {}) | full
    write(base)
    expected, known = hidden(), ours()
    assert expected is not None and known is not None
    changing = set()
    for key, value in (WRITTEN | full).items():
        for other in others(key, value) if key not in WITHOUT_MODEL else ():
            write(base | {key: other})
            noticed = ours() != known
            if noticed and len(changing) > 6:
                continue  # whatever the reference makes of it, it is not ignored
            found = hidden()
            if found is None or not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                assert noticed, f"{key} = {other} changes the hidden states and is ignored"
                changing.add(key)
    assert len(changing) > 6
