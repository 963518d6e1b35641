"""The scan of states that decay, one for each head: the Gated DeltaNet's and Mamba-2's.

In: queries, keys, values, decays and rates of each token, and segment_ids [B, T]. Out: what each token reads, float32
[B, T, H, Dv]. A head's state S [Dk, Dv] starts at zero in every document. Each token lets it decay, writes with its
key, and reads with its query. It adds its value times its rate, or corrects what the state would answer towards its
value by the delta rule (arXiv 2412.06464). Guarantee: no state crosses a document, wherever in the row it begins;
padding gives finite values. The state is kept and accumulated in float32.

Cost: `chunk_flops`. T is cut into chunks of 64 tokens, which are scanned. The corrections of a chunk depend on each
other as a triangular system (the WY form), whose inverse is made of matrix products. One state of each head and the 64
x 64 scores of one chunk are in memory.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .config import LayerKind, Mamba

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CHUNK = 64  # tokens that are scanned at once
_L2_EPSILON = 1e-6


class ScanRows(NamedTuple):
    """The input of the scan, one row for each token.

    Attributes:
        q, k: [B, T, K, Dk].
        v: [B, T, H, Dv], H a multiple of K.
        log_decay: float32 [B, T, H], at most 0.
        rate: float32 [B, T, H], the factor of what is written.
        segment_ids: [B, T].
    """

    q: Float[jax.Array, "B T K Dk"]
    k: Float[jax.Array, "B T K Dk"]
    v: Float[jax.Array, "B T H Dv"]
    log_decay: Float[jax.Array, "B T H"]
    rate: Float[jax.Array, "B T H"]
    segment_ids: Int[jax.Array, "B T"]


def scan_states(rows: ScanRows, corrects: bool) -> Float[jax.Array, "B T H Dv"]:
    """Return what each token reads from its document's state, float32 [B, T, H, Dv].

    Args:
        rows: of all tokens.
        corrects: whether a token corrects an answer, with queries and keys of length 1; else it adds its value.

    On a mesh each device computes its own heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return _scan(rows, corrects)
    if rows.k.shape[2] % mesh.shape["model"]:  # fewer heads of keys than devices: one for each head of values
        group = rows.v.shape[2] // rows.k.shape[2]
        rows = rows._replace(q=jnp.repeat(rows.q, group, axis=2), k=jnp.repeat(rows.k, group, axis=2))
    heads = PartitionSpec("data", None, "model")
    specs = (*(heads,) * 5, PartitionSpec("data"))
    mapped = partial(jax.shard_map, in_specs=specs, out_specs=heads, check_vma=False)
    return mapped(lambda *own: _scan(ScanRows(*own), corrects))(*rows)


def chunk_flops(kind: LayerKind) -> float:
    """Return the operations of a recurrence for one chunk of one row: products of [C, C] and with the state."""
    keys, values, group = kind.required_recurrence.key_width, kind.head_width, kind.num_heads // kind.num_kv_heads
    products = CHUNK**2 * (keys / group + values + CHUNK) + 2 * CHUNK * keys * values
    if not isinstance(kind.recurrent, Mamba):  # the answers, the system and its inverse, the corrections
        inverse = 2 * (CHUNK.bit_length() - 2)  # two products for each size of blocks from 2 on
        products += CHUNK**2 * (keys / group + values + CHUNK * inverse) + CHUNK * keys * values
    return 2.0 * kind.num_heads * products


def _scan(rows: ScanRows, corrects: bool) -> jax.Array:
    batch, length, key_heads, key_width = rows.k.shape
    heads, width = rows.v.shape[2:]
    scanned = ScanRows(*map(_chunked, rows))
    first = jnp.zeros((batch, key_heads, heads // key_heads, key_width, width), jnp.float32)
    before = jnp.full((batch,), -1, rows.segment_ids.dtype)
    _, read = jax.lax.scan(partial(_next_chunk, corrects=corrects), (first, before), scanned)  # [n, B, K, G, C, Dv]
    read = read.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, width)
    return read[:, :length]


def _next_chunk(
    carry: tuple[jax.Array, jax.Array], rows: ScanRows, corrects: bool
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Return the state after a chunk with the segment of its last token, and what its tokens read.

    Args:
        carry: the state before it, float32 [B, K, G, Dk, Dv], and the segment of the token before it, [B].
        rows: of this chunk, with C tokens in place of T. G = H / K heads of values share a head of keys.
        corrects: as in `scan_states`.

    Returns:
        The next carry, and float32 [B, K, G, C, Dv].
    """
    state, before = carry
    as_read = _unit if corrects else _wide
    q, k = (as_read(part).swapaxes(1, 2) for part in (rows.q, rows.k))  # [B, K, C, Dk]
    q *= k.shape[-1] ** -0.5 if corrects else 1.0
    v, log_decay, rate = (_grouped(part, k.shape[1]) for part in (rows.v, rows.log_decay, rows.rate))  # [B, K, G, C, .]
    # How much is left of an earlier token and of the state; nothing if they are of another document.
    segments = rows.segment_ids[:, None, None]  # [B, 1, 1, C]
    same = (segments[..., :, None] == segments[..., None, :]) & _lower(0)
    between = jnp.exp(jnp.where(same, _sums_between(log_decay), -jnp.inf))  # [B, K, G, C, C]
    continued = (segments == before[:, None, None, None])[..., None]
    since = jnp.exp(jnp.where(continued, jnp.cumsum(log_decay, axis=-2), -jnp.inf))  # [B, K, G, C, 1]

    if corrects:
        # The state's answers to the keys; the corrections, each of which has seen those before it in the chunk.
        answers = since * jnp.einsum("bkcd,bkgde->bkgce", k, state)
        system = rate * jnp.einsum("bkcd,bkmd->bkcm", k, k)[:, :, None] * jnp.where(_lower(-1), between, 0.0)
        written = jnp.einsum("bkgcm,bkgme->bkgce", _inverse(system), rate * (v - answers), precision="highest")
    else:
        written = rate * v
    scores = jnp.einsum("bkcd,bkmd->bkcm", q, k)[:, :, None] * between
    read = since * jnp.einsum("bkcd,bkgde->bkgce", q, state)
    read += jnp.einsum("bkgcm,bkgme->bkgce", scores, written, precision="highest" if corrects else None)
    state = since[..., -1:, :] * state
    state += jnp.einsum("bkcd,bkgce->bkgde", k, between[..., -1, :, None] * written)
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
    wide = _wide(heads)
    return wide * jax.lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + _L2_EPSILON)


def _wide(heads: jax.Array) -> jax.Array:
    return heads.astype(jnp.float32)


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
