"""Attention over packed documents on a GPU: the fused kernel, jax's cuDNN with a mask, blocks, torch's SDPA and Flex.

In: nothing. Out: for T of 2,048 and 8,192 and head widths of 64 and 128, causal, bfloat16, 16,384 tokens in rows of
documents with FineWeb's lengths: microseconds of one call, medians of `--repeats` rounds in which the implementations
take turns, and TFLOP/s of the pairs that are seen. `CALLS` calls, each on the result of the one before, are dispatched
at once. An implementation that is not there is left out, with the reason.

    python benchmarks/packed_attention.py --output benchmarks/results/packed_attention.json
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import about, give, gives_results  # noqa: E402
from benchmarks.packing import like_fineweb  # noqa: E402

CALLS = 10


@dataclass(frozen=True)
class Case:
    """Rows of `length` tokens, H heads of a width, K of them for keys."""

    rows: int
    length: int
    heads: int
    kv_heads: int
    head_width: int


CASES = [
    Case(16384 // length, length, heads, kv_heads, head_width)
    for heads, kv_heads, head_width in ((28, 4, 128), (32, 8, 64))
    for length in (2048, 8192)
]
TINY = [Case(2, 128, 2, 1, 64)]


def fineweb_rows(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids from 1 and positions of full rows, int32 [rows, length]; a document is cut where its row ends."""
    lengths = iter(len(record.tokens) for record in like_fineweb(rows * length // 100 + 100))
    segment_ids, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        start, segment = 0, 0
        while start < length:
            segment, end = segment + 1, min(start + next(lengths), length)
            segment_ids[row, start:end], positions[row, start:end] = segment, np.arange(end - start)
            start = end
    return segment_ids, positions


def with_jax(attend: Callable, arrays: list[np.ndarray], segment_ids: np.ndarray) -> Callable[[], object]:
    """`attend`, compiled."""
    import jax
    import jax.numpy as jnp

    attend = jax.jit(attend)
    q, k, v = (jnp.asarray(array, jnp.bfloat16) for array in arrays)
    ids = jax.device_put(segment_ids)

    def run() -> None:
        out = q
        for _ in range(CALLS):
            out = attend(out, k, v, ids)
        out.block_until_ready()

    return run


def with_torch(kind: str, arrays: list[np.ndarray], segment_ids: np.ndarray) -> Callable[[], object]:
    """Torch's SDPA with a mask, or FlexAttention with blocks of documents, compiled on a GPU.

    Raises ImportError without torch. A block mask is made once, outside of what is timed.
    """
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (torch.from_numpy(a).to(device, torch.bfloat16).transpose(1, 2).contiguous() for a in arrays)
    ids = torch.from_numpy(segment_ids).to(device)
    rows, length = segment_ids.shape
    if kind == "sdpa":
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        mask = (ids[:, None, :, None] == ids[:, None, None, :]) & causal
        attend = partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=mask, enable_gqa=True)
    else:

        def seen(row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return (query >= key) & (ids[row, query] == ids[row, key])

        blocks = create_block_mask(seen, rows, None, length, length, device=device)
        flex = torch.compile(flex_attention) if device == "cuda" else flex_attention
        attend = partial(flex, block_mask=blocks, enable_gqa=True)

    def run() -> None:
        out = q
        with torch.no_grad():
            for _ in range(CALLS):
                out = attend(out, k, v)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def implementations(case: Case) -> dict[str, Callable]:
    """For each name, a function of arrays and segment ids that returns what is timed."""
    from extraction.models.attention import attend_blocks, attend_library
    from extraction.models.attention_rule import AttentionRule
    from extraction.models.fused_attention import FusedAttention

    rule = AttentionRule(case.head_width**-0.5)
    ours = {
        "fused": FusedAttention(),
        "jax cudnn, mask": partial(attend_library, implementation="cudnn"),
        "blocks": attend_blocks,
    }
    made: dict[str, Callable] = {name: partial(with_jax, partial(form, rule=rule)) for name, form in ours.items()}
    return made | {f"torch {kind}": partial(with_torch, kind) for kind in ("sdpa", "flex")}


def measure(case: Case, repeats: int, tell: Callable[[dict], None] = lambda known: None) -> dict:
    """Medians of one case, and why an implementation was left out. `tell` gets what is known after each is built."""
    rng = np.random.default_rng(0)
    shapes = [(case.rows, case.length, heads, case.head_width) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    segment_ids, positions = fineweb_rows(case.rows, case.length)
    flops = 4 * case.heads * case.head_width * float((positions + 1).sum())
    runs, absent = {}, {}
    seconds: dict[str, list[float]] = {}

    def time_once(name: str) -> None:
        begin = time.perf_counter()
        runs[name]()
        seconds.setdefault(name, []).append((time.perf_counter() - begin) / CALLS)

    def known() -> dict:
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        return {
            "case": vars(case),
            "documents": int(segment_ids[:, -1].sum()),
            "microseconds": {name: round(median * 1e6, 1) for name, median in medians.items()},
            "tflops": {name: round(flops / median / 1e12, 2) for name, median in medians.items()},
            "left_out": absent,
        }

    for name, make in implementations(case).items():
        try:
            runs[name] = make(arrays, segment_ids)
            runs[name]()
            time_once(name)
        except Exception as error:  # one that fails must not cost the others their numbers
            runs.pop(name, None)
            absent[name] = f"{type(error).__name__}: {error}"[:300]
        tell(known())
    for _ in range(repeats):
        for name in runs:
            time_once(name)
    return known()


@click.command()
@click.option("--repeats", default=10, show_default=True, help="Rounds in which each implementation is timed once.")
@gives_results
def main(repeats: int, as_json: bool, output: Path | None) -> None:
    """Measure."""
    cases = [measure(case, repeats) for case in CASES]
    text = "\n".join(f"{found['case']}: {found['microseconds']}, left out: {found['left_out']}" for found in cases)
    give(about("jax", "jaxlib") | {"cases": cases}, text, as_json, output)


if __name__ == "__main__":
    main()
