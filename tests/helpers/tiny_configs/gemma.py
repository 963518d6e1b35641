"""Tiny models of the Gemma generations."""

from functools import partial

import transformers

from tests.helpers.tiny_configs.settings import LINEAR, SIZES, WINDOWS

GEMMA = SIZES | WINDOWS | {"head_dim": 16, "query_pre_attn_scalar": 10}
GEMMA4_TEXT = SIZES | {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 16,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 101,
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 2.0,
}
GEMMA4_MIXTURE = GEMMA4_TEXT | {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 5,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "use_bidirectional_attention": "vision",
}
CONFIGS = {
    "gemma": partial(transformers.GemmaConfig, **SIZES, head_dim=16),
    "gemma-biases": partial(
        transformers.GemmaConfig,
        **SIZES,
        head_dim=8,
        attention_bias=True,
        hidden_act="gelu",
        tie_word_embeddings=False,
    ),
    "gemma2": partial(transformers.Gemma2Config, **GEMMA, attn_logit_softcapping=2.0),
    "gemma2-uncapped-untied": partial(
        transformers.Gemma2Config, **GEMMA, attn_logit_softcapping=None, tie_word_embeddings=False
    ),
    "gemma3_text": partial(
        transformers.Gemma3TextConfig,
        **GEMMA,
        rope_parameters={
            "full_attention": LINEAR | {"rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "gemma3": partial(
        transformers.Gemma3Config,
        text_config=GEMMA,
        mm_tokens_per_image=4,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
    "gemma4_text": partial(transformers.Gemma4TextConfig, **GEMMA4_TEXT),
    "gemma4-mixture": partial(transformers.Gemma4Config, text_config=GEMMA4_MIXTURE),
    "gemma4_unified": partial(
        transformers.Gemma4UnifiedConfig,
        text_config=GEMMA4_TEXT
        | {
            "hidden_size_per_layer_input": None,
            "vocab_size_per_layer_input": None,
            "attention_bias": True,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 1e5,
                    "partial_rotary_factor": 0.5,
                    "factor": 2.0,
                },
                "sliding_attention": LINEAR,
            },
        },
    ),
}
