"""Configurations of tiny models: of each family a plain one and one with unusual settings."""

from functools import partial

import transformers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.5, 2.0, 3.0, 5.0],
}
PHI3 = partial(transformers.Phi3Config, **SIZES, pad_token_id=0)
GPT2 = partial(transformers.GPT2Config, n_embd=32, n_layer=3, n_head=4, n_positions=256, vocab_size=97)
GPT_NEO = partial(
    transformers.GPTNeoConfig, hidden_size=32, num_layers=3, num_heads=4, max_position_embeddings=256, vocab_size=97
)
OPT = partial(
    transformers.OPTConfig,
    hidden_size=32,
    ffn_dim=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=256,
    vocab_size=97,
)
NEOX = partial(transformers.GPTNeoXConfig, **{k: v for k, v in SIZES.items() if k != "num_key_value_heads"})
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = SIZES | WINDOWS | {"head_dim": 16, "query_pre_attn_scalar": 10}
EXPERTS = SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2}
QWEN3_MOE = partial(transformers.Qwen3MoeConfig, **EXPERTS, moe_intermediate_size=24, head_dim=16)
QWEN2_MOE = partial(
    transformers.Qwen2MoeConfig,
    **SIZES,
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=20,
)
LATENT = SIZES | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
# Heads of keys that serve several heads of values; a convolution and heads of other widths than usual.
DELTA_NET = SIZES | {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 8,
}
HYBRID_EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
}
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
    "gpt2": GPT2,
    "gpt2-narrow": partial(GPT2, n_inner=24, activation_function="relu"),
    "gpt_neox": NEOX,
    "gpt_neox-in-turn-linear": partial(
        NEOX,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        hidden_act="gelu_fast",
        rope_parameters=LINEAR | {"partial_rotary_factor": 0.5},
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
    "mixtral": partial(transformers.MixtralConfig, **EXPERTS),
    "mixtral-window": partial(transformers.MixtralConfig, **EXPERTS, sliding_window=16, head_dim=16),
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe-normalized-window": partial(
        QWEN3_MOE, norm_topk_prob=True, use_sliding_window=True, sliding_window=16, rope_parameters=YARN
    ),
    "gptj": partial(transformers.GPTJConfig, n_embd=32, n_layer=3, n_head=2, rotary_dim=4, vocab_size=97),
    "gptj-narrow-all-rotated": partial(
        transformers.GPTJConfig,
        n_embd=32,
        n_layer=3,
        n_head=4,
        rotary_dim=8,
        n_inner=24,
        vocab_size=97,
        activation_function="relu",
        layer_norm_epsilon=1e-2,
    ),
    "gpt_neo": partial(GPT_NEO, attention_types=[[["global", "local"], 1], [["global"], 1]], window_size=16),
    "gpt_neo-narrow-local": partial(
        GPT_NEO,
        attention_types=[[["local"], 3]],
        window_size=1,
        intermediate_size=24,
        activation_function="gelu",
        layer_norm_epsilon=1e-2,
        tie_word_embeddings=False,
    ),
    "opt": OPT,
    "opt-unbiased-untied": partial(OPT, enable_bias=False, activation_function="gelu", tie_word_embeddings=False),
    "bloom": partial(transformers.BloomConfig, hidden_size=32, n_layer=3, n_head=4, vocab_size=97),
    "bloom-six-heads-untied": partial(
        transformers.BloomConfig,
        hidden_size=48,
        n_layer=2,
        n_head=6,
        vocab_size=97,
        layer_norm_epsilon=1e-2,
        tie_word_embeddings=False,
    ),
    "gpt2-unscaled": partial(GPT2, scale_attn_weights=False),
    "gpt2-scaled-by-layer": partial(GPT2, scale_attn_by_inverse_layer_idx=True),
    "gpt_oss": partial(transformers.GptOssConfig, **EXPERTS, **WINDOWS, head_dim=16),
    "gpt_oss-unbiased-clamped": partial(
        transformers.GptOssConfig,
        **EXPERTS,
        head_dim=8,
        sliding_window=9,
        attention_bias=False,
        swiglu_limit=0.5,
        swiglu_alpha=0.7,
        rope_parameters=YARN,
    ),
    "olmoe": partial(transformers.OlmoeConfig, **EXPERTS),
    "olmoe-biases-normalized": partial(
        transformers.OlmoeConfig, **EXPERTS, norm_topk_prob=True, attention_bias=True, rope_parameters=LINEAR
    ),
    "deepseek_v2": partial(transformers.DeepseekV2Config, **LATENT, q_lora_rank=None, n_group=1),
    "deepseek_v2-groups-biases": partial(
        transformers.DeepseekV2Config,
        **LATENT,
        q_lora_rank=12,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.5},
    ),
    "deepseek_v3": partial(transformers.DeepseekV3Config, **LATENT, q_lora_rank=12, n_group=4, topk_group=2),
    "deepseek_v3-halves-not-normalized": partial(
        transformers.DeepseekV3Config,
        **LATENT,
        q_lora_rank=None,
        n_group=1,
        topk_group=1,
        norm_topk_prob=False,
        rope_interleave=False,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "qwen2_moe": partial(QWEN2_MOE, mlp_only_layers=[1]),
    "qwen2_moe-unbiased-normalized-window": partial(
        QWEN2_MOE, qkv_bias=False, norm_topk_prob=True, use_sliding_window=True, **WINDOWS, rope_parameters=LINEAR
    ),
    "qwen3_moe-dense-layer": partial(QWEN3_MOE, mlp_only_layers=[1]),
    "qwen3_next": partial(transformers.Qwen3NextConfig, **DELTA_NET, **HYBRID_EXPERTS),
    "qwen3_next-dense-layer-biases-taps": partial(
        transformers.Qwen3NextConfig,
        **DELTA_NET,
        **HYBRID_EXPERTS,
        norm_topk_prob=False,
        mlp_only_layers=[1],
        attention_bias=True,
        linear_conv_kernel_dim=2,
        layer_types=["full_attention", "linear_attention", "full_attention", "linear_attention"],
        rope_parameters=LINEAR | {"partial_rotary_factor": 0.5},
    ),
    "qwen3_5_text": partial(transformers.Qwen3_5TextConfig, **DELTA_NET),
    "qwen3_5_text-tied-one-key-head-gelu": partial(
        transformers.Qwen3_5TextConfig,
        **(DELTA_NET | {"linear_num_key_heads": 1}),
        tie_word_embeddings=True,
        hidden_act="gelu",
        rms_norm_eps=1e-2,
    ),
    "qwen3_5_moe_text": partial(
        transformers.Qwen3_5MoeTextConfig,
        **{name: size for name, size in DELTA_NET.items() if name != "intermediate_size"},
        **HYBRID_EXPERTS,
    ),
}
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
CONFIGS |= {
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
