"""The stacked parameters of all layers, in the form that the scan over the layers slices.

In: a tree of arrays with a leading layer axis. Out: the tree to scan over, and in the body of the scan the parameters
of one layer. Guarantee: the bits stay equal. XLA's CPU backend slices bfloat16 through float32 and so widens the whole
stack in each step; there bfloat16 is passed as 16-bit integers. Cost: on a CPU, one copy of such a stack in each step.
"""

import jax
import jax.numpy as jnp

from .devices import current_device


def to_slice(stacked: dict) -> dict:
    """Return the tree to scan over."""
    return jax.tree.map(lambda leaf: leaf.view(jnp.uint16) if _as_integers(leaf) else leaf, stacked)


def of_layer(sliced: dict, like: dict) -> dict:
    """Return the parameters of one layer, in the dtypes of the stack."""
    return jax.tree.map(lambda leaf, whole: leaf.view(whole.dtype), sliced, like)


def _as_integers(leaf: jax.Array) -> bool:
    return current_device().platform == "cpu" and leaf.dtype == jnp.bfloat16
