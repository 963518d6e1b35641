"""What XLA makes of the step for a CPU: nothing large is moved or widened that need not be."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from extraction.models.attention import attend
from extraction.models.config_file import read_model_config
from extraction.models.step import lower_step, weight_shapes
from extraction.models.step_options import StepOptions
from tests.models.test_attention import RULES, drawn

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_are_not_transposed(dtype):
    program = jax.jit(partial(attend, rule=RULES["causal"])).lower(*drawn(128, dtype=dtype)).compile().as_text()
    scores = 2 * 4 * 128 * 128
    moved = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", program)
    assert moved and scores not in [math.prod(map(int, shape.split(","))) for shape in moved]


def test_weights_in_bfloat16_are_not_widened(models):
    config = read_model_config(models("llama").folder)
    options = StepOptions(("blocks.2.hook_resid_post",), 2, 150, "bfloat16")
    program = lower_step(config, options).compile().as_text()
    stacks = [",".join(map(str, leaf.shape)) for path, leaf in weight_shapes(config, options) if path[0] == "blocks"]
    assert stacks and not [stack for stack in stacks if f"f32[{stack}]" in program]
