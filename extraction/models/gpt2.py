"""GPT-2: learned positions, layer norms, a plain mlp.

In and out as in the other architectures; the weight names are those of `GPT2LMHeadModel`, whose matrices are [I, O] and
which keeps q, k and v in one. Here they are three, so that each can be shared out by heads.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import AttentionRule, attention
from .config import ModelConfig
from .llama import Tap
from .modules import ACTIVATIONS, LayerNorm, Linear
from .weights import Entry, unchanged


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.config = config
        self.q, self.k, self.v = (Linear(config.width, config.width, True, dtype) for _ in range(3))
        self.o = Linear(config.width, config.width, True, dtype)

    def __call__(self, x: jax.Array, shared: dict[str, jax.Array], tap: Tap) -> jax.Array:
        shape = (*x.shape[:2], self.config.num_heads, self.config.head_width)
        q, k, v = (part(x).reshape(shape) for part in (self.q, self.k, self.v))  # [B, T, H, Dh]
        z = attention(q, k, v, shared["segment_ids"], AttentionRule(self.config.head_width**-0.5)).reshape(x.shape)
        tap("attn.hook_z", z)
        return self.o(z)


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(config.width, config.mlp_width, True, dtype)
        self.down = Linear(config.mlp_width, config.width, True, dtype)

    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        inner = self.activation(self.up(x))  # [B, T, F]
        tap("mlp.hook_post", inner)
        return self.down(inner)


class Block(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        norm = partial(LayerNorm, config.width, config.norm_epsilon, dtype)
        self.norm_attention, self.norm_mlp = norm(), norm()
        self.attention, self.mlp = Attention(config, dtype), MLP(config, dtype)

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
        self.table = nnx.Param(jnp.zeros((config.vocab_size, config.width), dtype))
        self.positions = nnx.Param(jnp.zeros((config.max_positions, config.width), dtype))

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """x [B, T, D], and nothing that all blocks share."""
        return self.table[...][tokens] + self.positions[...][positions], {}


FinalNorm = LayerNorm


def weight_table(config: ModelConfig) -> dict[str, dict[str, Entry]]:
    """For each part, our parameter path -> the name in the file, `{l}` being the layer."""
    block = {}
    linears = [(f"attention.{name}", "attn.c_attn", partial(_third, number)) for number, name in enumerate("qkv")]
    linears += [(ours, theirs, unchanged) for ours, theirs in (
        ("attention.o", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj"))]
    for ours, theirs, transform in linears:
        block[f"{ours}.kernel"] = Entry(f"transformer.h.{{l}}.{theirs}.weight", transform)
        block[f"{ours}.bias"] = Entry(f"transformer.h.{{l}}.{theirs}.bias", transform)
    for ours, theirs in (("norm_attention", "ln_1"), ("norm_mlp", "ln_2")):
        block[f"{ours}.scale"] = Entry(f"transformer.h.{{l}}.{theirs}.weight")
        block[f"{ours}.bias"] = Entry(f"transformer.h.{{l}}.{theirs}.bias")
    return {
        "embedding": {"table": Entry("transformer.wte.weight"), "positions": Entry("transformer.wpe.weight")},
        "blocks": block,
        "final_norm": {"scale": Entry("transformer.ln_f.weight"), "bias": Entry("transformer.ln_f.bias")},
    }


def _third(number: int, tensor: jax.Array) -> jax.Array:
    """Of three equal parts of the last axis, one."""
    return jnp.split(tensor, 3, axis=-1)[number]


NOT_NEEDED = (r"lm_head\.weight", r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
