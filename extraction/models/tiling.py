"""The blocks that the attention kernel of a TPU and the scan of states multiply. No jax.

In: the length of a row, and the window or the layer. Out: the size of blocks, the number of pairs of a query and a key,
and the operations of a chunk. Guarantee: the kernel and the scan use these blocks. Cost: none.
"""

from .config import LayerKind, Mamba

CHUNK = 64  # tokens of a chunk of the scan of states

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
    """Return the operations of a recurrence for one chunk of one row: products of [C, C] and with the state."""
    keys, values, group = kind.recurrence.key_width, kind.head_width, kind.num_heads // kind.num_kv_heads
    products = CHUNK**2 * (keys / group + values + CHUNK) + 2 * CHUNK * keys * values
    if not isinstance(kind.recurrent, Mamba):  # the answers, the system and its inverse, the corrections
        inverse = 2 * (CHUNK.bit_length() - 2)  # two products for each size of blocks from 2 on
        products += CHUNK**2 * (keys / group + values + CHUNK * inverse) + CHUNK * keys * values
    return 2.0 * kind.num_heads * products
