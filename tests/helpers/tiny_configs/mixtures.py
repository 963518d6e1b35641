"""Tiny mixtures of experts, and models with linear attention."""

from functools import partial

import transformers

from tests.helpers.tiny_configs.settings import LINEAR, LLAMA3, SIZES, WINDOWS, YARN

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
LLAMA4 = SIZES | {"head_dim": 16, "intermediate_size": 24, "intermediate_size_mlp": 48, "num_local_experts": 5}
NEMOTRON_H = {name: size for name, size in SIZES.items() if name != "num_hidden_layers"} | {
    "head_dim": 16,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 12,
    "n_groups": 2,
}
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
CONFIGS = {
    "mixtral": partial(transformers.MixtralConfig, **EXPERTS),
    "mixtral-window": partial(transformers.MixtralConfig, **EXPERTS, sliding_window=16, head_dim=16),
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe-normalized-window": partial(
        QWEN3_MOE, norm_topk_prob=True, use_sliding_window=True, sliding_window=16, rope_parameters=YARN
    ),
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
    "llama4_text": partial(
        transformers.Llama4TextConfig,
        **LLAMA4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=2,
        attention_chunk_size=16,
        floor_scale=32,
    ),
    "llama4_text-biases-two-experts-not-normalized": partial(
        transformers.Llama4TextConfig,
        **LLAMA4,
        num_experts_per_tok=2,
        moe_layers=[0, 2],
        no_rope_layers=[1, 1, 0],
        layer_types=["full_attention", "chunked_attention", "chunked_attention"],
        attention_chunk_size=7,
        use_qk_norm=False,
        attn_temperature_tuning=False,
        attention_bias=True,
        hidden_act="gelu",
        rope_parameters=LLAMA3 | {"low_freq_factor": 1.0, "high_freq_factor": 1.0},
    ),
    "nemotron_h": partial(transformers.NemotronHConfig, **NEMOTRON_H, chunk_size=16),
    "nemotron_h-mixture": partial(
        transformers.NemotronHConfig,
        **(NEMOTRON_H | {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]}),
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=20,
    ),
    "nemotron_h-biases-one-group-repeated": partial(
        transformers.NemotronHConfig,
        **(NEMOTRON_H | {"layers_block_type": ["linear_attention", "mlp"] * 2 + ["full_attention"], "n_groups": 1}),
        mlp_bias=True,
        mlp_hidden_act="gelu",
        mamba_hidden_act="gelu",
        conv_kernel=2,
        time_step_min=0.7,
        layer_norm_epsilon=1e-2,
        chunk_size=8,
        tie_word_embeddings=True,
    ),
}
