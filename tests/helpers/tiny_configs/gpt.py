"""Tiny models with LayerNorm: GPT-2, GPT-J, GPT-Neo, GPT-NeoX, OPT, BLOOM, StableLM, Cohere."""

from functools import partial

import transformers

from tests.helpers.tiny_configs.settings import LINEAR, LLAMA3, SIZES, WINDOWS, YARN

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
CONFIGS = {
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
    "stablelm": partial(transformers.StableLmConfig, **SIZES),
    "stablelm-parallel-own-norms-biases": partial(
        transformers.StableLmConfig,
        **SIZES,
        use_parallel_residual=True,
        qk_layernorm=True,
        use_qkv_bias=True,
        layer_norm_eps=1e-2,
        rope_parameters=LINEAR | {"partial_rotary_factor": 0.5},
    ),
    "cohere": partial(transformers.CohereConfig, **SIZES, eos_token_id=1),
    "cohere-own-norms-biases-untied": partial(
        transformers.CohereConfig,
        **SIZES,
        eos_token_id=1,
        use_qk_norm=True,
        attention_bias=True,
        logit_scale=2.0,
        layer_norm_eps=1e-2,
        tie_word_embeddings=False,
        rope_parameters=LLAMA3,
    ),
    "cohere2": partial(transformers.Cohere2Config, **SIZES, **WINDOWS, eos_token_id=1),
    "cohere2-biases-yarn": partial(
        transformers.Cohere2Config,
        **(SIZES | {"num_hidden_layers": 5}),
        eos_token_id=1,
        sliding_window=9,
        attention_bias=True,
        rope_parameters=YARN,
    ),
}
