"""What the fused attention kernel becomes on a GPU, without one: registers, spills, shared memory, matrix instructions.

In: nothing; jax's CUDA plugin is needed (extra `cuda`), which compiles without a GPU and brings the assembler. Out: a
line for each case and chip, from the PTX that XLA makes of the kernel and from what the assembler says of that. No
time is measured: benchmarks/attention.py does that on a GPU.

    python benchmarks/attention_compile.py --output benchmarks/results/attention_compile.json
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from extraction.models.attention_rule import AttentionRule  # noqa: E402
from extraction.models.fused_attention import KernelForm, default_tiles, fused_attention  # noqa: E402
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

    def __str__(self) -> str:
        how = "causal, segments" if self.causal else "full"
        return (
            f"B={self.batch} S={self.length} H={self.heads} K={self.kv_heads} Dh={self.head_width} {how}, {self.dtype}"
        )


CASES = [Case(batch, length, 8, 8, 64, False, "float16") for length in (128, 256, 512) for batch in (8, 16, 32)]
CASES += [Case(8, 2048, 14, 2, 64, True, "bfloat16"), Case(8, 2048, 28, 4, 128, True, "bfloat16"),
          Case(8, 2048, 16, 8, 256, True, "bfloat16"), Case(1, 1000, 2, 1, 128, False, "float16")]  # fmt: skip


def compile_case(case: Case, chip: str) -> dict:
    """What XLA makes of the kernel for one chip. Raises what jax raises when it cannot be compiled."""
    rule, here = AttentionRule(case.head_width**-0.5), SingleDeviceSharding(describe(chip))
    shapes = [(case.batch, case.length, heads, case.head_width) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    arrays = [jax.ShapeDtypeStruct(shape, case.dtype, sharding=here) for shape in shapes]
    if case.causal:
        arrays.append(jax.ShapeDtypeStruct((case.batch, case.length), jnp.int32, sharding=here))
    call = jax.jit(lambda q, k, v, segments=None: fused_attention(q, k, v, segments, rule, KernelForm(case.causal)))
    with tempfile.TemporaryDirectory() as folder:
        call.lower(*arrays).compile(COMPILER_OPTIONS | {"xla_dump_to": folder})
        (ptx,) = (path for path in Path(folder).glob("*.ptx") if ".entry fused_attention" in path.read_text())
        return {"case": str(case), "chip": chip, "tiles": asdict(default_tiles(*shapes[0]))} | assemble(ptx)


def assemble(ptx: Path) -> dict:
    """What the assembler says of a kernel."""
    text = ptx.read_text()
    target = re.search(r"\.target (\w+)", text)[1]
    command = [assembler(), "-v", f"-arch={target}", str(ptx), "-o", str(ptx.with_suffix(".cubin"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spill_bytes": int(re.search(r"(\d+) bytes spill stores", said)[1]),
        "warpgroup_products": text.count("wgmma.mma_async"),
        "warp_products": text.count("mma.sync"),
        "asynchronous_copies": len(re.findall(r"cp\.async\.c[ag]\.", text)),
        "target": target,
    }


def assembler() -> Path:
    """`ptxas`, where NVIDIA's package has it."""
    import nvidia.cu13

    return Path(next(iter(nvidia.cu13.__path__))) / "bin" / "ptxas"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the results there.")
def main(as_json: bool, output: Path | None) -> None:
    """Compile the kernel for every case and chip."""
    if not can_describe():
        print("jax's CUDA plugin is missing: pip install -e '.[cuda]'", file=sys.stderr)
        sys.exit(2)
    rows = [compile_case(case, chip) for case in CASES for chip in CHIPS]
    versions = {name: version(name) for name in ("jax", "jax-cuda13-plugin", "nvidia-cuda-nvcc")}
    results = {"command": "python benchmarks/attention_compile.py --output FILE", "versions": versions, "cases": rows}
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")
    if as_json:
        print(json.dumps(results))
        return
    for row in rows:
        tiles = row["tiles"]
        print(
            f"{row['case']}, {row['chip']}: tiles {tiles['q']}x{tiles['k']}, {tiles['warps']} warps, "
            f"{row['registers']} registers, {row['spill_bytes']} bytes spilled, products {row['warpgroup_products']} "
            f"of warpgroups, {row['warp_products']} of warps"
        )


if __name__ == "__main__":
    main()
