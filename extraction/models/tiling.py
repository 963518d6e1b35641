"""The blocks that the attention kernel of a TPU and the delta rule multiply. No jax.

In: the length of a row, and the window or the layer. Out: the size of blocks, the number of pairs of a query and a key,
and the operations of a chunk. Guarantee: the kernel and the rule use these blocks. Cost: none.
"""

from .config import LayerKind

CHUNK = 64  # tokens of a chunk of the delta rule

_LANES, _MAX_BLOCK = 128, 512


def block_of(length: int) -> int:
    """Return the tokens in a block of queries and keys: the largest that needs no padding beyond whole lanes."""
    whole = -(-length // _LANES) * _LANES
    return max(block for block in range(_LANES, _MAX_BLOCK + 1, _LANES) if whole % block == 0)


def multiplied_pairs(length: int, window: int | None) -> int:
    """Return the pairs of one head of a row: all pairs of the blocks with a visible pair."""
    block = block_of(length)
    blocks = -(-length // block)
    reach = blocks if window is None else min(blocks, 1 + (window + block - 2) // block)
    return block**2 * sum(min(number + 1, reach) for number in range(blocks))


def chunk_flops(kind: LayerKind) -> float:
    """Return the operations of the delta rule for one chunk of one row: products of [C, C] and with the state."""
    keys, values, group = kind.recurrence.key_width, kind.head_width, kind.num_heads // kind.num_kv_heads
    inverse = 2 * (CHUNK.bit_length() - 2)  # two products for each size of blocks from 2 on
    scores = CHUNK**2 * (2 * keys / group + 2 * values + CHUNK * (inverse + 1))
    return 2.0 * kind.num_heads * (scores + 3 * CHUNK * keys * values)
