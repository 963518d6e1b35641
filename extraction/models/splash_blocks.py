"""The blocks that the splash attention kernel of a TPU multiplies. No jax.

In: the length of a row, and the window. Out: the size of a block, and the number of pairs of a query and a key.
Guarantee: `splash_attention` uses these blocks. Cost: none.
"""

_LANES, _MAX_BLOCK = 128, 512


def splash_block(length: int) -> int:
    """Return the tokens in a block of queries and keys: the largest that needs no padding beyond whole lanes."""
    whole = -(-length // _LANES) * _LANES
    return max(block for block in range(_LANES, _MAX_BLOCK + 1, _LANES) if whole % block == 0)


def multiplied_pairs(length: int, window: int | None) -> int:
    """Return the pairs of one head of a row: all pairs of the blocks with a visible pair."""
    block = splash_block(length)
    blocks = -(-length // block)
    reach = blocks if window is None else min(blocks, 1 + (window + block - 2) // block)
    return block**2 * sum(min(number + 1, reach) for number in range(blocks))
