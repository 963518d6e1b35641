"""Rows of several experts: each is multiplied by the kernel of its own, in the way of its platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extraction.models.mixture import dot_by_blocks, grouped_dot
from tests.helpers.tiny_models import error

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sizes", [[700, 0, 1, 63, 64, 65, 107], [0, 0, 0, 0, 0, 0, 1000], [1000, 0, 0, 0, 0, 0, 0]])
def test_each_row_is_multiplied_by_the_kernel_of_its_group(sizes):
    rng = np.random.default_rng(0)
    rows, kernels = rng.standard_normal((1000, 6), np.float32), rng.standard_normal((7, 6, 5), np.float32)
    ours = jax.jit(dot_by_blocks)(rows, kernels, np.array(sizes, np.int32))
    theirs = np.einsum("mi,mio->mo", rows.astype(np.float64), kernels[np.repeat(np.arange(7), sizes)])
    assert error(np.asarray(ours), theirs) < 1e-6


@pytest.mark.parametrize("platform, form, other", [("tpu", "ragged_dot", "while"), ("cpu", "while", "ragged_dot")])
def test_only_a_tpu_is_left_to_multiply_groups_in_its_own_way(platform, form, other):
    """Other compilers would multiply every row by the kernels of all groups."""
    shapes = (((1000, 64), jnp.bfloat16), ((7, 64, 32), jnp.bfloat16), ((7,), jnp.int32))
    traced = jax.jit(grouped_dot).trace(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert form in program and other not in program
