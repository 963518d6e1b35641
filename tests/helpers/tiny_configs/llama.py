"""Tiny dense models of Llama's form, alone and inside a model that also reads images."""

from functools import partial

import transformers

from tests.helpers.tiny_configs.settings import DYNAMIC, LINEAR, LLAMA3, LONGROPE, SIZES, WINDOWS, YARN

PHI3 = partial(transformers.Phi3Config, **SIZES, pad_token_id=0)
TEXT = SIZES | {"head_dim": 16}
GROWING = {"rope_type": "default", "rope_theta": 1e4, "original_max_position_embeddings": 32, "llama_4_scaling_beta": 1}
MROPE = SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"intermediate_size": 48, "depth": 1, "num_heads": 2}
CONFIGS = {
    "llama": partial(transformers.LlamaConfig, **SIZES),
    "llama-biases-tied-llama3": partial(
        transformers.LlamaConfig,
        **SIZES,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        hidden_act="gelu",
        rope_parameters=LLAMA3,
    ),
    "llama-one-kv-head-linear": partial(
        transformers.LlamaConfig, **(SIZES | {"num_key_value_heads": 1}), rms_norm_eps=1e-2, rope_parameters=LINEAR
    ),
    "smollm3": partial(transformers.SmolLM3Config, **SIZES, pad_token_id=0, no_rope_layer_interval=2),
    "smollm3-biases-window": partial(
        transformers.SmolLM3Config,
        **(SIZES | {"num_hidden_layers": 5}),
        pad_token_id=0,
        no_rope_layers=[0, 1, 1, 0, 1],
        use_sliding_window=True,
        sliding_window=16,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
        rope_parameters=YARN,
    ),
    "mistral": partial(transformers.MistralConfig, **SIZES, sliding_window=16),
    "ministral": partial(transformers.MinistralConfig, **SIZES, **WINDOWS, head_dim=8),
    "ministral3": partial(
        transformers.Ministral3Config, **SIZES, head_dim=16, rope_parameters=YARN | {"llama_4_scaling_beta": 0.4}
    ),
    "mistral3": partial(
        transformers.Mistral3Config, text_config=TEXT | {"model_type": "mistral"}, vision_config=PIXTRAL
    ),
    "mistral3-ministral3-tied": partial(
        transformers.Mistral3Config,
        text_config=TEXT | {"model_type": "ministral3", "sliding_window": 16, "rope_parameters": GROWING},
        vision_config=PIXTRAL,
        tie_word_embeddings=True,
    ),
    "qwen2_vl": partial(transformers.Qwen2VLConfig, text_config=MROPE, vision_config=QWEN_VISION | {"hidden_size": 32}),
    "qwen2_5_vl-window": partial(
        transformers.Qwen2_5_VLConfig,
        text_config=MROPE | WINDOWS | {"use_sliding_window": True},
        vision_config=QWEN_VISION | {"hidden_size": 32, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
    ),
    "qwen3_vl": partial(
        transformers.Qwen3VLConfig,
        text_config=MROPE | {"head_dim": 8, "attention_bias": True},
        vision_config=QWEN_VISION
        | {"hidden_size": 32, "out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "qwen2": partial(transformers.Qwen2Config, **SIZES),
    "qwen2-window-above": partial(
        transformers.Qwen2Config, **SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "qwen3": partial(transformers.Qwen3Config, **SIZES, head_dim=16),
    "qwen3-yarn-tied-window": partial(
        transformers.Qwen3Config,
        **SIZES,
        head_dim=16,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=YARN | {"attention_factor": 1.5, "beta_fast": 16},
        use_sliding_window=True,
        **WINDOWS,
    ),
    "phi3": PHI3,
    "phi3-longrope-partial-window": partial(
        PHI3,
        sliding_window=48,
        original_max_position_embeddings=64,
        rope_parameters=LONGROPE | {"partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5], "long_factor": [2, 5]},
    ),
    "glm": partial(transformers.GlmConfig, **SIZES, head_dim=16, pad_token_id=0),
    "glm-all-rotated": partial(
        transformers.GlmConfig,
        **SIZES,
        head_dim=8,
        pad_token_id=0,
        attention_bias=True,
        rope_parameters=LINEAR | {"partial_rotary_factor": 1.0},
    ),
    "glm4": partial(transformers.Glm4Config, **SIZES, head_dim=16, pad_token_id=0),
    "glm4-no-biases-tied": partial(
        transformers.Glm4Config, **SIZES, head_dim=8, pad_token_id=0, attention_bias=False, tie_word_embeddings=True
    ),
    "granite": partial(
        transformers.GraniteConfig,
        **SIZES,
        attention_multiplier=0.2,
        embedding_multiplier=3.0,
        residual_multiplier=0.3,
        logits_scaling=4.0,
    ),
    "granite-biases-dynamic": partial(
        transformers.GraniteConfig,
        **(SIZES | {"max_position_embeddings": 48}),
        attention_bias=True,
        mlp_bias=True,
        residual_multiplier=1.7,
        rope_parameters=DYNAMIC,
    ),
    "olmo2": partial(transformers.Olmo2Config, **SIZES, eos_token_id=1),
    "olmo2-biases": partial(
        transformers.Olmo2Config, **SIZES, eos_token_id=1, attention_bias=True, rope_parameters=LLAMA3
    ),
    "olmo3": partial(transformers.Olmo3Config, **SIZES, **WINDOWS, eos_token_id=1),
    "olmo3-yarn": partial(
        transformers.Olmo3Config,
        **SIZES,
        **WINDOWS,
        eos_token_id=1,
        attention_bias=True,
        rope_parameters={
            "full_attention": YARN | {"attention_factor": 1.2},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
}
