"""What the fused attention kernel becomes on an H100, without one: registers, spills, shared memory, occupancy.

In: nothing; jax's CUDA plugin is needed (extra `cuda`), which compiles without a GPU and brings the assembler. Out: a
line for each case, from the PTX of the kernel and from the assembler's report, both of which jax's compiler writes. No
time is measured: benchmarks/attention.py does that on a GPU.

    python benchmarks/attention_compile.py --output benchmarks/results/attention_compile.json
"""

import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import click
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import about, give, gives_results  # noqa: E402
from extraction.models.attention_rule import AttentionRule  # noqa: E402
from extraction.models.fused_attention import BLOCK, FusedAttention, keys_of_tile  # noqa: E402
from tests.helpers.gpu_topology import CHIPS, COMPILER_OPTIONS, can_describe, describe  # noqa: E402


@dataclass(frozen=True)
class Case:
    """B rows of S positions with H heads of width Dh, K of them for keys; segments go with causality."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_width: int
    causal: bool
    dtype: str
    rule: AttentionRule = field(default_factory=lambda: AttentionRule(0.1))
    sinks: bool = False

    def __str__(self) -> str:
        words = ["causal, segments" if self.causal else "full", self.dtype]
        words += [f"window {self.rule.window}"] * bool(self.rule.window) + ["softcap"] * bool(self.rule.softcap)
        shape = f"B={self.batch} S={self.length} H={self.heads} K={self.kv_heads} Dh={self.head_width}"
        return f"{shape} {', '.join(words + ['sinks'] * self.sinks)}"


CASES = [
    Case(32, 512, 8, 8, 64, False, "float16"),
    Case(8, 2048, 14, 2, 64, True, "bfloat16"),
    Case(8, 2048, 28, 4, 128, True, "bfloat16"),
    Case(8, 2048, 16, 8, 256, True, "bfloat16"),
    Case(1, 1000, 2, 1, 128, False, "float16"),
    Case(8, 2048, 64, 8, 64, True, "bfloat16", AttentionRule(0.1, window=128), sinks=True),
    Case(8, 2048, 32, 16, 128, True, "bfloat16", AttentionRule(0.1, window=1024, softcap=50.0)),
    Case(8, 2048, 16, 8, 256, True, "bfloat16", AttentionRule(0.1, window=1024, softcap=50.0)),
]


def compile_case(case: Case) -> dict:
    """What becomes of the kernel on an H100. Raises what jax raises when it cannot be compiled."""
    here = SingleDeviceSharding(describe("H100"))
    shapes = [(case.batch, case.length, heads, case.head_width) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    arrays = [jax.ShapeDtypeStruct(shape, case.dtype, sharding=here) for shape in shapes]
    ids = jax.ShapeDtypeStruct((case.batch, case.length), jnp.int32, sharding=here) if case.causal else None
    sinks = jax.ShapeDtypeStruct((case.heads,), case.dtype, sharding=here) if case.sinks else None
    call = jax.jit(lambda q, k, v, ids, sinks: FusedAttention(case.causal)(q, k, v, ids, case.rule, sinks))
    with tempfile.TemporaryDirectory() as folder:
        wanted = {f"MOSAIC_GPU_DUMP_{what}": "1" for what in ("PTX", "PTXAS")} | {"MOSAIC_GPU_DUMP_TO": folder}
        os.environ.update(wanted)
        try:
            call.lower(*arrays, ids, sinks).compile(COMPILER_OPTIONS)
        finally:
            for name in wanted:
                del os.environ[name]
        (ptx,), (report,) = Path(folder).glob("*.ptx"), Path(folder).glob("*.ptxas")
        tile = keys_of_tile(case.head_width, sees_all=not case.causal)
        shared = 2 * case.head_width * (BLOCK + 2 * tile)
        found = read(ptx.read_text(), report.read_text(errors="replace"), shared)
        return {"case": str(case), "keys_of_tile": tile} | found


def read(ptx: str, report: str, shared: int) -> dict:
    """What the assembler says of a kernel, and how many programs a processor of an H100 runs at a time."""
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    threads, chip = 128, CHIPS["H100"]  # one warpgroup
    fits = (chip["shared"] // (shared + 1024), 65536 // (-(-registers // 8) * 8 * threads), 2048 // threads)
    return {
        "registers": registers,
        "spill_bytes": int(re.search(r"(\d+) bytes spill stores", report)[1]),
        "shared_bytes": shared,
        "programs_of_a_processor": min(fits),
        "warpgroup_products": ptx.count("wgmma.mma_async"),
        "bulk_copies": ptx.count("cp.async.bulk.tensor"),
        "target": re.search(r"\.target (\w+)", ptx)[1],
    }


@click.command()
@gives_results
def main(as_json: bool, output: Path | None) -> None:
    """Compile the kernel for every case."""
    if not can_describe():
        print("jax's CUDA plugin is missing: pip install -e '.[cuda]'", file=sys.stderr)
        sys.exit(2)
    rows = [compile_case(case) for case in CASES]
    lines = [
        f"{row['case']}: {row['registers']} registers, {row['spill_bytes']} bytes spilled, {row['shared_bytes']} "
        f"of shared memory, {row['programs_of_a_processor']} programs, {row['warpgroup_products']} products of "
        f"warpgroups, {row['bulk_copies']} bulk copies"
        for row in rows
    ]
    give(about("jax", "jax-cuda13-plugin", "nvidia-cuda-nvcc") | {"cases": rows}, "\n".join(lines), as_json, output)


if __name__ == "__main__":
    main()
