"""Llama (SmolLM2), Qwen2, Qwen2.5 and Qwen3: one block, with biases and q/k norms where the configuration says so.

In: x [B, T, D] and what is common to all blocks (segments and rotation). Out: x [B, T, D]; hook points go to `tap`.
The weight names are those of `LlamaForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import AttentionRule, attention
from .config import ModelConfig
from .modules import ACTIVATIONS, Linear, RMSNorm, rotate, rotation
from .weights import Entry, transposed

Tap = Callable[[str, jax.Array], None]


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.config = config
        heads, kv_heads = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.q = Linear(config.width, heads, config.qkv_bias, dtype)
        self.k = Linear(config.width, kv_heads, config.qkv_bias, dtype)
        self.v = Linear(config.width, kv_heads, config.qkv_bias, dtype)
        self.o = Linear(heads, config.width, config.output_bias, dtype)
        norm = config.qk_norm
        self.q_norm = RMSNorm(config.head_width, config.norm_epsilon, dtype) if norm else None
        self.k_norm = RMSNorm(config.head_width, config.norm_epsilon, dtype) if norm else None

    def __call__(self, x: jax.Array, shared: dict[str, jax.Array], tap: Tap) -> jax.Array:
        q, k, v = (
            part(x).reshape(*x.shape[:2], -1, self.config.head_width) for part in (self.q, self.k, self.v)
        )  # [B, T, H, Dh], [B, T, K, Dh], [B, T, K, Dh]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotate(part, shared["cos"], shared["sin"]) for part in (q, k))
        z = attention(q, k, v, shared["segment_ids"], AttentionRule(self.config.head_width**-0.5))
        z = z.reshape(*x.shape[:2], -1)  # [B, T, H*Dh]
        tap("attn.hook_z", z)
        return self.o(z)


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(config.width, config.mlp_width, config.mlp_bias, dtype)
        self.up = Linear(config.width, config.mlp_width, config.mlp_bias, dtype)
        self.down = Linear(config.mlp_width, config.width, config.mlp_bias, dtype)

    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        inner = self.activation(self.gate(x)) * self.up(x)  # [B, T, F]
        tap("mlp.hook_post", inner)
        return self.down(inner)


class Block(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.norm_attention = RMSNorm(config.width, config.norm_epsilon, dtype)
        self.attention = Attention(config, dtype)
        self.norm_mlp = RMSNorm(config.width, config.norm_epsilon, dtype)
        self.mlp = MLP(config, dtype)

    def __call__(self, x: jax.Array, shared: dict[str, jax.Array], tap: Tap) -> jax.Array:
        added = self.attention(self.norm_attention(x), shared, tap)
        tap("hook_attn_out", added)
        x = x + added
        tap("hook_resid_mid", x)
        added = self.mlp(self.norm_mlp(x), tap)
        tap("hook_mlp_out", added)
        x = x + added
        tap("hook_resid_post", x)
        return x


class Embedding(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.config = config
        self.table = nnx.Param(jnp.zeros((config.vocab_size, config.width), dtype))

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """x [B, T, D], and what all blocks share."""
        cos, sin = rotation(positions, self.config.head_width, self.config.rope)
        return self.table[...][tokens], {"cos": cos, "sin": sin}


FinalNorm = RMSNorm


def weight_table(config: ModelConfig) -> dict[str, dict[str, Entry]]:
    """For each part, our parameter path -> the name in the file, `{l}` being the layer."""
    block = {
        "norm_attention.scale": Entry("model.layers.{l}.input_layernorm.weight"),
        "norm_mlp.scale": Entry("model.layers.{l}.post_attention_layernorm.weight"),
    }
    linears = [(f"attention.{x}", f"self_attn.{x}_proj", config.qkv_bias) for x in "qkv"]
    linears += [("attention.o", "self_attn.o_proj", config.output_bias)]
    linears += [(f"mlp.{x}", f"mlp.{x}_proj", config.mlp_bias) for x in ("gate", "up", "down")]
    for ours, theirs, bias in linears:
        block[f"{ours}.kernel"] = Entry(f"model.layers.{{l}}.{theirs}.weight", transposed)
        if bias:
            block[f"{ours}.bias"] = Entry(f"model.layers.{{l}}.{theirs}.bias")
    if config.qk_norm:
        block["attention.q_norm.scale"] = Entry("model.layers.{l}.self_attn.q_norm.weight")
        block["attention.k_norm.scale"] = Entry("model.layers.{l}.self_attn.k_norm.weight")
    return {
        "embedding": {"table": Entry("model.embed_tokens.weight")},
        "blocks": block,
        "final_norm": {"scale": Entry("model.norm.weight")},
    }


NOT_NEEDED = (r"lm_head\.weight", r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
