"""Every form of attention against the one written out in float64; which one a platform gets."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extraction.models.attention import (
    OnEachDevice,
    attend,
    attend_blocks,
    attend_equal_blocks,
    attend_library,
    attention,
    cudnn_has,
    form_for,
)
from extraction.models.attention_rule import AttentionRule
from extraction.models.devices import DeviceKind
from extraction.models.fused_attention import FusedAttention
from extraction.models.splash_attention import attend_splash
from extraction.models.splash_blocks import multiplied_pairs, splash_block
from tests.helpers.attention_reference import exact_attention, relative_error

pytestmark = pytest.mark.slow

FORMS = {
    "plain": attend,
    "blocks": attend_blocks,
    "equal blocks": attend_equal_blocks,
    "splash": attend_splash,
    "library": attend_library,
}
RULES = {
    "causal": AttentionRule(0.3),
    "window": AttentionRule(0.3, window=40),
    "of one": AttentionRule(0.3, window=1),
    "softcap": AttentionRule(0.3, softcap=2.0),
    "both": AttentionRule(0.3, window=100, softcap=2.0),
}


def drawn(length, heads=4, kv_heads=2, head_width=16, dtype=jnp.float32):
    """q, k, v and segments; padding inside and at the end."""
    rng = np.random.default_rng(length)
    q, k, v = (jnp.asarray(rng.standard_normal((2, length, n, head_width)), dtype) for n in (heads, kv_heads, kv_heads))
    segment_ids = np.sort(rng.integers(0, 4, (2, length)), axis=1).astype(np.int32)
    segment_ids[0, length - length // 7 :] = 0
    return q, k, v, segment_ids


def check(form, inputs, rule, limit=1e-6, **sinks):
    ours = np.asarray(jax.jit(partial(form, rule=rule))(*inputs, **sinks)).astype(np.float64)
    real = inputs[3] > 0
    assert np.isfinite(ours).all()
    assert relative_error(ours[real], exact_attention(*inputs, rule, **sinks)[real]) < limit


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_attention_of_each_query_alone(form, rule):
    if form == "library" and RULES[rule].softcap:
        assert not cudnn_has(jnp.zeros((1, 1, 1, 64), jnp.bfloat16), RULES[rule])
    else:
        check(FORMS[form], drawn(150), RULES[rule])


@pytest.mark.parametrize("length", [1, 127, 128, 300, 640])
@pytest.mark.parametrize("form", ["blocks", "equal blocks", "splash"])
def test_any_length(form, length):
    check(FORMS[form], drawn(length), RULES["causal"])


@pytest.mark.parametrize("window", [None, 40, 200, 1000])
@pytest.mark.parametrize("length", [200, 300, 1000])
@pytest.mark.parametrize("form", ["blocks", "equal blocks", "splash"])
def test_a_document_as_long_as_its_row(form, length, window):
    q, k, v, segment_ids = drawn(length)
    check(FORMS[form], (q, k, v, np.ones_like(segment_ids)), AttentionRule(0.3, window=window))


@pytest.mark.parametrize("heads, kv_heads, head_width", [(1, 1, 64), (3, 1, 128), (4, 4, 256)])
def test_splash_groups_heads_of_any_width(heads, kv_heads, head_width):
    check(attend_splash, drawn(200, heads, kv_heads, head_width), AttentionRule(head_width**-0.5))


@pytest.mark.parametrize("rule", ["causal", "window"])
@pytest.mark.parametrize("form", ["plain", "blocks", "equal blocks", "splash"])
def test_a_sink_is_a_term_of_the_sum_without_a_value(form, rule):
    """Sinks below, among and above the scores."""
    check(FORMS[form], drawn(150), RULES[rule], sinks=jnp.array([-30.0, 0.5, 3.0, 30.0]))


@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("form", ["plain", "blocks", "equal blocks"])
def test_scores_fall_with_the_distance_by_the_slope_of_each_head(form, heads):
    pytest.importorskip("torch")  # the reference has its slopes from transformers' code for torch
    check(FORMS[form], drawn(300, heads), AttentionRule(0.3, alibi=True))


@pytest.mark.parametrize("form", ["blocks", "splash"])
def test_half_width(form):
    check(FORMS[form], drawn(150, dtype=jnp.bfloat16), RULES["causal"], limit=1e-2)


def test_splash_on_a_mesh():
    """In a process of its own, since the number of devices is fixed when jax starts."""
    code = """
import jax, numpy as np
from jax.sharding import Mesh
from extraction.models.attention import OnEachDevice
from extraction.models.splash_attention import attend_splash
from tests.models.test_attention import RULES, check, drawn
sinks = np.linspace(-2, 2, 8, dtype=np.float32)
for kv_heads, mesh in ((4, (2, 2)), (2, (1, 4)), (1, (1, 4))):
    with jax.set_mesh(Mesh(np.array(jax.devices()).reshape(mesh), ("data", "model"))):
        check(OnEachDevice(attend_splash), drawn(150, heads=8, kv_heads=kv_heads), RULES["causal"])
        check(OnEachDevice(attend_splash), drawn(150, heads=8, kv_heads=kv_heads), RULES["window"], sinks=sinks)
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("length, block", [(1, 128), (512, 512), (1152, 384), (2048, 512), (1664, 128)])
def test_blocks_of_splash_add_no_more_than_lanes(length, block):
    assert splash_block(length) == block


@pytest.mark.parametrize("window", [None, 1, 128, 300, 512, 513, 700, 1024, 4096])
@pytest.mark.parametrize("length", [100, 512, 1024, 2048])
def test_splash_multiplies_whole_blocks(length, window):
    """Those of which a pair is seen."""
    block = splash_block(length)
    blocks = -(-length // block)
    back = np.arange(blocks * block)[:, None] - np.arange(blocks * block)[None, :]
    seen = (back >= 0) & (back < (window or len(back)))
    visited = seen.reshape(blocks, block, blocks, block).any(axis=(1, 3))
    assert multiplied_pairs(length, window) == visited.sum() * block**2


def test_the_device_chooses():
    rule, half, whole = RULES["causal"], drawn(8, dtype=jnp.bfloat16, head_width=64)[0], drawn(8)[0]
    cpu, tpu = DeviceKind("cpu", "cpu"), DeviceKind("tpu", "TPU v5 lite")
    h100, a100 = DeviceKind("gpu", "NVIDIA H100 80GB HBM3"), DeviceKind("gpu", "NVIDIA A100-SXM4-80GB")
    assert form_for(cpu, half, rule) is form_for(h100, whole, rule) is form_for(a100, whole, rule) is attend_blocks
    assert form_for(h100, half, rule) == form_for(h100, half, rule, True) == OnEachDevice(FusedAttention())
    assert form_for(DeviceKind("gpu", "NVIDIA GH200 480GB"), half, RULES["both"]) == OnEachDevice(FusedAttention())
    assert form_for(a100, half, rule) == form_for(h100, half[..., :40], rule) == OnEachDevice(attend_library)
    assert form_for(a100, half, rule, with_sinks=True) is attend_blocks
    assert form_for(a100, half, rule, value_width=32) is form_for(h100, half, rule, value_width=32) is attend_blocks
    assert form_for(tpu, half, rule) == form_for(tpu, whole, rule) == OnEachDevice(attend_splash)
    slopes = AttentionRule(0.3, alibi=True)
    assert form_for(h100, half, slopes) is form_for(tpu, half, slopes) is attend_blocks
    check(attention, drawn(150), rule)


@pytest.mark.parametrize(
    "change, has",
    [
        ({}, True),
        ({"head_width": 256}, False),
        ({"head_width": 12}, False),
        ({"dtype": jnp.float32}, False),
    ],
)
def test_what_cudnn_has(change, has):
    q = drawn(8, **({"dtype": jnp.float16, "head_width": 128} | change))[0]
    assert cudnn_has(q, AttentionRule(1.0, window=4)) == has
    assert not cudnn_has(q, AttentionRule(1.0, softcap=4.0))
