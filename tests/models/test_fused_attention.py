"""The fused kernel, interpreted on the CPU: against float64 for ragged lengths and every option; lowered for a GPU."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extraction.models.attention import attend
from extraction.models.attention_rule import AttentionRule
from extraction.models.fused_attention import KernelForm, Tiles, default_tiles, fused_attention
from tests.helpers.attention_reference import exact_attention, relative_error

pytestmark = pytest.mark.slow

LIMIT = {jnp.float16: 2e-3, jnp.bfloat16: 1e-2}


def drawn(length, heads=2, kv_heads=2, head_width=64, dtype=jnp.float16, batch=2):
    """Independent q, k and v."""
    rng = np.random.default_rng(length)
    shapes = [(batch, length, n, head_width) for n in (heads, kv_heads, kv_heads)]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def segments_of(length, batch=2):
    """Three segments in each row, the first row ending in padding."""
    segment_ids = np.sort(np.random.default_rng(length).integers(1, 4, (batch, length)), axis=1).astype(np.int32)
    segment_ids[0, length - length // 5 :] = 0
    return segment_ids


def check(qkv, segment_ids, rule, form):
    ours = np.asarray(fused_attention(*qkv, segment_ids, rule, form), np.float64)
    theirs = exact_attention(*qkv, segment_ids, rule, form.causal)
    real = np.ones(ours.shape[:2], bool) if segment_ids is None else segment_ids > 0
    assert ours.shape == qkv[0].shape and np.isfinite(ours).all()
    assert relative_error(ours[real], theirs[real]) < LIMIT[qkv[0].dtype.type]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 65, 128, 200, 257])
def test_any_length(length, causal):
    check(drawn(length), None, AttentionRule(0.125), KernelForm(causal, interpret=True))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("head_width, heads, kv_heads", [(64, 4, 1), (128, 4, 2), (256, 1, 1)])
def test_head_widths_grouped_heads_and_dtypes(head_width, heads, kv_heads, dtype):
    qkv = drawn(70, heads, kv_heads, head_width, dtype)
    check(qkv, segments_of(70), AttentionRule(head_width**-0.5), KernelForm(interpret=True))


@pytest.mark.parametrize("rule", [AttentionRule(0.2, 1), AttentionRule(0.2, 40), AttentionRule(0.2, softcap=1.5)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segmented", [False, True])
def test_segments_windows_and_softcaps(rule, causal, segmented):
    """With tiles much shorter than the row, so that whole tiles are left out and some queries see nothing of others."""
    form = KernelForm(causal, Tiles(q=32, k=16, warps=4, stages=2), interpret=True)
    check(drawn(150), segments_of(150) if segmented else None, rule, form)


def test_it_is_the_attention_of_the_other_forms():
    qkv, segment_ids, rule = drawn(90, 4, 2), segments_of(90), AttentionRule(0.125, window=20, softcap=5.0)
    ours = fused_attention(*qkv, segment_ids, rule, KernelForm(interpret=True))
    theirs = attend(*qkv, segment_ids, rule)
    real = segment_ids > 0
    assert relative_error(np.asarray(ours)[real], np.asarray(theirs)[real]) < LIMIT[jnp.float16]


@pytest.mark.parametrize("length, head_width, segmented", [(512, 64, False), (2047, 128, True), (1, 256, True)])
def test_it_lowers_for_a_gpu_without_one(length, head_width, segmented):
    """To Triton's language; what an actual GPU makes of it is measured by benchmarks/attention.py."""
    shapes = [jax.ShapeDtypeStruct((4, length, heads, head_width), jnp.bfloat16) for heads in (8, 2, 2)]
    segment_ids = jax.ShapeDtypeStruct((4, length), jnp.int32) if segmented else None
    step = jax.jit(partial(fused_attention, rule=AttentionRule(0.1), form=KernelForm(causal=segmented)))
    lowered = step.trace(*shapes, segment_ids).lower(lowering_platforms=("cuda",))
    assert "xla.gpu.triton" in lowered.as_text()


def test_default_tiles_fit_the_hardware():
    """Powers of two from 16 on, k and v of all stages and q within the 227 KiB of shared memory of an H100."""
    for head_width in (64, 128, 256):
        for batch, length in ((1, 1), (1, 100), (8, 128), (64, 4096)):
            tiles = default_tiles(batch, length, 8, head_width)
            assert all(n >= 16 and n & (n - 1) == 0 for n in (tiles.q, tiles.k))
            assert 2 * head_width * (tiles.q + 2 * tiles.stages * tiles.k) < 227 << 10


@pytest.mark.parametrize("change", [{"dtype": jnp.float32}, {"head_width": 96}, {"heads": 3}])
def test_what_it_does_not_have_is_refused(change):
    with pytest.raises(ValueError, match="no fused attention"):
        fused_attention(*drawn(8, **change), None, AttentionRule(1.0), KernelForm(interpret=True))


def test_the_benchmark_says_that_there_is_no_gpu():
    script = Path(__file__).parents[2] / "benchmarks/attention.py"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "no GPU here" in result.stderr and not result.stdout
