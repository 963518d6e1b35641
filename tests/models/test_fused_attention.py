"""The fused kernel, interpreted on the CPU, against float64; the ranges of keys that it is given, for many lengths."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extraction.models.attention_rule import AttentionRule
from extraction.models.fused_attention import BLOCK, FusedAttention, key_ranges, tile_ranges
from tests.helpers.attention_reference import exact_attention, relative_error

pytestmark = pytest.mark.slow

try:
    from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
except ImportError:  # jax 0.10 has it without a public name
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

FINDS_RACES = "detect_races" in InterpretGPUParams.__dataclass_fields__ and jax.__version_info__ >= (0, 12)
INTERPRETER = InterpretGPUParams(detect_races=True) if FINDS_RACES else InterpretGPUParams()
LIMIT = {jnp.float16: 2e-3, jnp.bfloat16: 4e-3}  # bfloat16 has 8 bits: rounding the result alone gives 1.6e-3


def drawn(length, heads=1, kv_heads=1, head_width=64, dtype=jnp.float16, batch=1):
    """Independent q, k and v."""
    rng = np.random.default_rng(length)
    shapes = [(batch, length, n, head_width) for n in (heads, kv_heads, kv_heads)]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def segments_of(length, batch=1):
    """Three segments in each row, the first row ending in padding."""
    segment_ids = np.sort(np.random.default_rng(length).integers(1, 4, (batch, length)), axis=1).astype(np.int32)
    segment_ids[0, length - length // 5 :] = 0
    return segment_ids


def visible(segment_ids, length, window, causal):
    """The mask, bool [B, S, S], written out."""
    back = np.arange(length)[:, None] - np.arange(length)[None, :]
    seen = back >= 0 if causal else np.ones_like(back, bool)
    seen = seen & (np.abs(back) < (window or length))
    return seen[None] if segment_ids is None else seen & (segment_ids[:, :, None] == segment_ids[:, None, :])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 100, 300])
@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 640])
@pytest.mark.parametrize("segmented", [False, True])
def test_ranges_of_keys_are_the_mask(length, window, causal, segmented):
    """No tile outside is seen, and each tile of the middle is seen whole, by the queries of a block."""
    segment_ids = segments_of(length, batch=2) if segmented else None
    mask = np.broadcast_to(visible(segment_ids, length, window, causal), (2, length, length))
    ids = None if segment_ids is None else jnp.asarray(segment_ids)
    ranges = np.asarray(key_ranges(ids, (2, length), window, causal))
    keys = np.arange(length)[None, None, :]
    assert ((keys >= ranges[:, 0, :, None]) & (keys < ranges[:, 1, :, None]) == mask).all()

    whole = -(-length // BLOCK) * BLOCK
    padded = np.pad(mask, ((0, 0), (0, whole - length), (0, 0)), mode="edge")
    padded = np.pad(padded, ((0, 0), (0, 0), (0, whole - length)))
    tiles = padded.reshape(2, whole // BLOCK, BLOCK, whole // 64, 64)
    edges = jnp.pad(jnp.asarray(ranges), ((0, 0), (0, 0), (0, whole - length)), mode="edge")
    begin, first, end, stop = np.moveaxis(np.asarray(tile_ranges(edges))[..., None], 2, 0)
    number = np.arange(whole // 64)[None, None]
    assert ((number >= begin) & (number < stop) == tiles.any(axis=(2, 4))).all()
    assert ((number >= first) & (number < end) == tiles.all(axis=(2, 4))).all()


@pytest.mark.parametrize(
    "shape, options, rule, causal",
    [
        ({"length": 1}, "", AttentionRule(0.125), True),
        ({"length": 130, "heads": 2, "batch": 2}, "segments sinks", AttentionRule(0.125), True),
        ({"length": 257, "head_width": 128}, "", AttentionRule(0.1), False),
        ({"length": 300}, "segments", AttentionRule(0.2, window=40, softcap=1.5), True),
        ({"length": 150}, "segments", AttentionRule(0.2, window=40), False),
        ({"length": 140, "head_width": 256, "dtype": jnp.bfloat16}, "", AttentionRule(0.06), True),
        ({"length": 1024}, "segments", AttentionRule(0.125), True),
    ],
)
def test_the_kernel_interpreted(shape, options, rule, causal, request):
    """Copies, barriers and warpgroups included; the interpreter of jax 0.12 also finds races."""
    if jax.__version_info__ < (0, 11) and shape["length"] != 150:
        pytest.skip("the interpreter of jax 0.10 takes half a minute for a case: one is enough")
    qkv = drawn(**shape)
    length, heads = qkv[0].shape[1:3]
    segment_ids = segments_of(length, len(qkv[0])) if "segments" in options else None
    sinks = jnp.linspace(-2, 3, heads) if "sinks" in options else None
    ids = None if segment_ids is None else jnp.asarray(segment_ids)
    ours = np.asarray(FusedAttention(causal, interpret=INTERPRETER)(*qkv, ids, rule, sinks), np.float64)
    theirs = exact_attention(*qkv, segment_ids, rule, causal, sinks)
    real = np.ones(ours.shape[:2], bool) if segment_ids is None else segment_ids > 0
    assert ours.shape == qkv[0].shape and np.isfinite(ours).all()
    assert relative_error(ours[real], theirs[real]) < LIMIT[qkv[0].dtype.type]


@pytest.mark.parametrize("change", [{"dtype": jnp.float32}, {"head_width": 96}, {"heads": 3, "kv_heads": 2}])
def test_what_it_does_not_have_is_refused(change):
    with pytest.raises(ValueError, match="no fused attention"):
        FusedAttention()(*drawn(8, **change), None, AttentionRule(1.0))


def test_the_benchmark_says_that_there_is_no_gpu():
    script = Path(__file__).parents[2] / "benchmarks/attention.py"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "no GPU here" in result.stderr and not result.stdout
