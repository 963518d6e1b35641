"""Gated DeltaNet in place of attention: a state for each head that a rule corrects token by token.

In: x [B, T, D] and segment_ids [B, T]. Out: [B, T, D]. A head's state S [Dk, Dv] starts at zero in every document. Each
token lets it decay, reads with its key what the state would answer, corrects that answer towards its value, and reads
the result with its query (arXiv 2412.06464). Guarantee: neither the state nor the short convolution crosses a document,
wherever in the row it begins; padding gives finite values. The state is kept and accumulated in float32.

Cost: T is cut into chunks of 64 tokens, which are scanned. The corrections of a chunk depend on each other as a
triangular system (the WY form), whose inverse is made of matrix products. One state of each head and the 64 x 64 scores
of one chunk are in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from .config import LayerKind, ModelConfig
from .modules import ACTIVATIONS, FromHeads, RMSNorm, Tap, ToHeads
from .tiling import CHUNK

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from .block import Shared

_L2_EPSILON = 1e-6


class ConvolvedHeads(ToHeads):
    """x [B, T, D] -> [B, T, H, Dh]; the heads of a token are mixed with those of the tokens before it.

    `filter` [H, Dh, n] weighs the last n tokens of the document, the token itself last.
    """

    def __init__(self, heads: int, head_width: int, config: ModelConfig, taps: int, dtype: jnp.dtype):
        super().__init__(heads, head_width, config.width, False, dtype)
        self.activation = ACTIVATIONS[config.activation]
        self.filter = nnx.Param(jnp.zeros((heads, head_width, taps), dtype))

    def convolve(
        self, heads: Float[jax.Array, "B T H Dh"], segment_ids: Int[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T H Dh"]:
        """Return the heads [B, T, H, Dh] after the convolution inside each document and the non-linearity."""
        weights, mixed = self.filter[...].astype(jnp.float32), jnp.zeros(heads.shape, jnp.float32)
        taps = weights.shape[-1]
        for back in range(min(taps, heads.shape[1])):
            same = _earlier(segment_ids, back, -1) == segment_ids
            part = _earlier(heads, back, 0).astype(jnp.float32) * weights[None, None, :, :, taps - 1 - back]
            mixed += jnp.where(same[:, :, None, None], part, 0.0)
        return self.activation(mixed.astype(heads.dtype))


class PerHead(nnx.Module):
    """x [B, T, D] -> float32 [B, T, H], one number for each head; kernel [H, D]."""

    def __init__(self, heads: int, inputs: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((heads, inputs), dtype))

    def __call__(self, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T H"]:
        """Return the numbers of x [B, T, D], float32 [B, T, H]."""
        return jnp.einsum("btd,hd->bth", x, self.kernel[...], preferred_element_type=jnp.float32)


class Decay(PerHead):
    """The logarithm of the factor by which each token's state decays, at most 0. `log_rate` and `bias` are float32."""

    def __init__(self, heads: int, inputs: int, dtype: jnp.dtype):
        super().__init__(heads, inputs, dtype)
        self.log_rate = nnx.Param(jnp.zeros((heads,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((heads,), jnp.float32))

    def __call__(self, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T H"]:
        """Return the log decays of x [B, T, D], float32 [B, T, H]."""
        speed, bias = jnp.exp(self.log_rate[...])[None, None], self.bias[...][None, None]
        return -speed * jax.nn.softplus(super().__call__(x) + bias)


class GatedDeltaNet(nnx.Module):
    """The layer. Values have `num_heads` heads; each of the `num_kv_heads` heads of queries and keys serves a few."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        heads, key_heads, width, delta = kind.num_heads, kind.num_kv_heads, kind.head_width, kind.recurrence
        self.queries = ConvolvedHeads(key_heads, delta.key_width, config, delta.taps, dtype)
        self.keys = ConvolvedHeads(key_heads, delta.key_width, config, delta.taps, dtype)
        self.values = ConvolvedHeads(heads, width, config, delta.taps, dtype)
        self.rate, self.decay = PerHead(heads, config.width, dtype), Decay(heads, config.width, dtype)
        self.gate = ToHeads(heads, width, config.width, False, dtype)
        self.norm = RMSNorm(width, config.norm_epsilon, dtype)
        self.o = FromHeads(heads, width, config.width, False, dtype)

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what the layer adds to the residual stream, [B, T, D], given x [B, T, D]."""
        q, k, v = (part.convolve(part(x), shared.segment_ids) for part in (self.queries, self.keys, self.values))
        read = delta_rule(Rows(q, k, v, self.decay(x), jax.nn.sigmoid(self.rate(x)), shared.segment_ids))
        scale = self.norm.scale[...].astype(jnp.float32)[None, None, None]
        gate = jax.nn.silu(self.gate(x).astype(jnp.float32))
        z = (self.norm.normalized(read) * scale * gate).astype(x.dtype)  # [B, T, H, Dv]
        tap("attn.hook_z", z.reshape(*x.shape[:2], -1))
        return self.o(z)


class Rows(NamedTuple):
    """What the rule reads, one row for each token.

    Attributes:
        q, k: [B, T, K, Dk].
        v: [B, T, H, Dv], H a multiple of K.
        log_decay: float32 [B, T, H], at most 0.
        rate: float32 [B, T, H], how far an answer is corrected, between 0 and 1.
        segment_ids: [B, T].
    """

    q: Float[jax.Array, "B T K Dk"]
    k: Float[jax.Array, "B T K Dk"]
    v: Float[jax.Array, "B T H Dv"]
    log_decay: Float[jax.Array, "B T H"]
    rate: Float[jax.Array, "B T H"]
    segment_ids: Int[jax.Array, "B T"]


def delta_rule(rows: Rows) -> Float[jax.Array, "B T H Dv"]:
    """Return what each token reads from its document's state, float32 [B, T, H, Dv].

    On a mesh each device computes its own heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return _rule(rows)
    if rows.k.shape[2] % mesh.shape["model"]:  # fewer heads of keys than devices: one for each head of values
        group = rows.v.shape[2] // rows.k.shape[2]
        rows = rows._replace(q=jnp.repeat(rows.q, group, axis=2), k=jnp.repeat(rows.k, group, axis=2))
    heads = PartitionSpec("data", None, "model")
    specs = (*(heads,) * 5, PartitionSpec("data"))
    return jax.shard_map(lambda *own: _rule(Rows(*own)), in_specs=specs, out_specs=heads, check_vma=False)(*rows)


def _rule(rows: Rows) -> jax.Array:
    batch, length, key_heads, key_width = rows.k.shape
    heads, width = rows.v.shape[2:]
    scanned = Rows(*map(_chunked, rows))
    first = jnp.zeros((batch, key_heads, heads // key_heads, key_width, width), jnp.float32)
    before = jnp.full((batch,), -1, rows.segment_ids.dtype)
    _, read = jax.lax.scan(_next_chunk, (first, before), scanned)  # [n, B, K, G, C, Dv]
    read = read.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, width)
    return read[:, :length]


def _next_chunk(carry: tuple[jax.Array, jax.Array], rows: Rows) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Return the state after a chunk with the segment of its last token, and what its tokens read.

    Args:
        carry: the state before it, float32 [B, K, G, Dk, Dv], and the segment of the token before it, [B].
        rows: of this chunk, with C tokens in place of T. G = H / K heads of values share a head of keys.

    Returns:
        The next carry, and float32 [B, K, G, C, Dv].
    """
    state, before = carry
    q, k = (_unit(part).swapaxes(1, 2) for part in (rows.q, rows.k))  # [B, K, C, Dk]
    q *= k.shape[-1] ** -0.5
    v, log_decay, rate = (_grouped(part, k.shape[1]) for part in (rows.v, rows.log_decay, rows.rate))  # [B, K, G, C, .]
    # How much is left of an earlier token and of the state; nothing if they are of another document.
    segments = rows.segment_ids[:, None, None]  # [B, 1, 1, C]
    same = (segments[..., :, None] == segments[..., None, :]) & _lower(0)
    between = jnp.exp(jnp.where(same, _sums_between(log_decay), -jnp.inf))  # [B, K, G, C, C]
    continued = (segments == before[:, None, None, None])[..., None]
    since = jnp.exp(jnp.where(continued, jnp.cumsum(log_decay, axis=-2), -jnp.inf))  # [B, K, G, C, 1]

    system = rate * jnp.einsum("bkcd,bkmd->bkcm", k, k)[:, :, None] * jnp.where(_lower(-1), between, 0.0)
    # The state's answers to the keys; the corrections, each of which has seen those before it in the chunk.
    answers = since * jnp.einsum("bkcd,bkgde->bkgce", k, state)
    corrections = jnp.einsum("bkgcm,bkgme->bkgce", _inverse(system), rate * (v - answers))
    scores = jnp.einsum("bkcd,bkmd->bkcm", q, k)[:, :, None] * between
    read = since * jnp.einsum("bkcd,bkgde->bkgce", q, state)
    read += jnp.einsum("bkgcm,bkgme->bkgce", scores, corrections)
    state = since[..., -1:, :] * state
    state += jnp.einsum("bkcd,bkgce->bkgde", k, between[..., -1, :, None] * corrections)
    return (state, rows.segment_ids[:, -1]), read


def _inverse(system: jax.Array) -> jax.Array:
    """Return the inverse of 1 + system, strictly lower triangular [..., C, C]: of blocks of 2, of 4, and so on.

    Made of products of inverses of blocks, which do not grow where powers of the system would.
    """
    size = system.shape[-1]
    at = jnp.arange(size)
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=system.dtype), system.shape)
    block = 1
    while block < size:
        pair = (at[:, None] // (2 * block) == at[None] // (2 * block)) & (at[:, None] // block > at[None] // block)
        corner = jnp.where(pair[(None,) * (system.ndim - 2)], system, 0.0)
        if block > 1:
            corner = jnp.matmul(jnp.matmul(inverse, corner, precision="highest"), inverse, precision="highest")
        inverse, block = inverse - corner, 2 * block
    return inverse


def _sums_between(log_decay: jax.Array) -> jax.Array:
    """Return the sums of log decays after token m up to token c, [..., C, C], of [..., C, 1].

    Summed anew for each pair: differences of sums from the beginning lose the small ones after a large one.
    """
    after = jnp.where(_lower(-1), log_decay, 0.0)  # [..., l, m]: the decay of token l, if it comes after m
    return jnp.einsum("cl,...lm->...cm", _lower(0)[0, 0, 0].astype(jnp.float32), after, precision="highest")


def _lower(diagonal: int) -> jax.Array:
    return jnp.tri(CHUNK, k=diagonal, dtype=bool)[None, None, None]


def _unit(heads: jax.Array) -> jax.Array:
    """Return the heads [..., Dk] in float32, each of length 1."""
    wide = heads.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + _L2_EPSILON)


def _grouped(part: jax.Array, key_heads: int) -> jax.Array:
    """Return float32 [B, K, G, C, W] of [B, C, H, W] or [B, C, H]."""
    batch, tokens, heads = part.shape[:3]
    wide = part.astype(jnp.float32).reshape(batch, tokens, key_heads, heads // key_heads, -1)
    return wide.transpose(0, 2, 3, 1, 4)


def _chunked(part: jax.Array) -> jax.Array:
    """Return [n, B, C, ...] of [B, T, ...]; the last chunk is filled up with zeros, a segment of padding."""
    batch, length = part.shape[:2]
    padded = jnp.pad(part, ((0, 0), (0, -length % CHUNK), *((0, 0),) * (part.ndim - 2)))
    return padded.reshape(batch, -1, CHUNK, *part.shape[2:]).swapaxes(0, 1)


def _earlier(part: jax.Array, back: int, fill: int) -> jax.Array:
    """Return [B, T, ...] with the row of `back` tokens before in the place of each token, `fill` before the first."""
    length = part.shape[1]
    return jnp.pad(part, ((0, 0), (back, 0), *((0, 0),) * (part.ndim - 2)), constant_values=fill)[:, :length]
