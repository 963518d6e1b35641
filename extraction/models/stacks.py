"""The parameters of all layers, stacked, in the form that the scan over the layers slices.

In: a tree of arrays with a leading layer axis. Out: the tree that the scan is given, and in its body the parameters of
one layer, the same bits. XLA's CPU backend slices bfloat16 by way of float32, and so widens the whole stack in each
step; there bfloat16 goes in as 16-bit integers. Cost: on a CPU, one copy of such a stack in each step; elsewhere none.
"""

import jax
import jax.numpy as jnp

from .devices import current_platform


def to_slice(stacked: dict) -> dict:
    """What the scan is given."""
    return jax.tree.map(lambda leaf: leaf.view(jnp.uint16), stacked) if _as_integers(stacked) else stacked


def of_layer(sliced: dict, like: dict) -> dict:
    """The parameters of one layer, in the dtypes of the stack that it is from."""
    return jax.tree.map(lambda leaf, whole: leaf.view(whole.dtype), sliced, like)


def _as_integers(stacked: dict) -> bool:
    return current_platform() == "cpu" and all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(stacked))
