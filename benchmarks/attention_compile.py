"""What the fused attention kernel becomes on a GPU, without one: registers, spills, shared memory, matrix instructions.

In: `--triton`, the Python of an environment with `triton` from PyPI, whose compiler and disassembler need no GPU. Out:
a line for each case and chip. The kernel is the one that jax lowers for CUDA; the compiler is Triton's own release,
while a worker's is the one inside XLA, so that the machine code may differ. No time is measured.

    python benchmarks/attention_compile.py --triton ENV/bin/python --output benchmarks/results/attention_compile.json
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import jax
import jax.numpy as jnp
from jaxlib.mlir import ir
from jaxlib.triton import dialect

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from extraction.models.attention_rule import AttentionRule  # noqa: E402
from extraction.models.fused_attention import KernelForm, default_tiles, fused_attention  # noqa: E402

CHIPS = {"H100, H200": 90, "A100": 80}  # and their compute capability
COMPILER = """
import json, pathlib, re, subprocess, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import compile
tool = str(pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
def dump(flag, path):
    return subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
for line in sys.stdin:
    job = json.loads(line)
    options = {"num_warps": job["warps"], "num_stages": job["stages"]}
    kernel = compile(job["path"], target=GPUTarget("cuda", job["capability"], 32), options=options)
    binary = job["path"] + ".cubin"
    pathlib.Path(binary).write_bytes(kernel.asm["cubin"])
    usage, code = dump("-res-usage", binary), dump("-sass", binary)
    print(json.dumps({
        "registers": int(re.search(r"REG:(\\d+)", usage)[1]), "spill_bytes": int(re.search(r"STACK:(\\d+)", usage)[1]),
        "shared_bytes": kernel.metadata.shared, "triton": triton.__version__,
        "warpgroup_products": len(re.findall(r"\\bHGMMA", code)), "warp_products": len(re.findall(r"\\bHMMA", code)),
    }))
"""


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
        return (f"B={self.batch} S={self.length} H={self.heads} K={self.kv_heads} Dh={self.head_width} {how}, "
                f"{self.dtype}")


CASES = [Case(batch, length, 8, 8, 64, False, "float16") for length in (128, 256, 512) for batch in (8, 16, 32)]
CASES += [Case(8, 2048, 14, 2, 64, True, "bfloat16"), Case(8, 2048, 28, 4, 128, True, "bfloat16"),
          Case(8, 2048, 16, 8, 256, True, "bfloat16")]  # fmt: skip


def triton_module(case: Case) -> str:
    """The kernel as Triton's compiler takes it."""
    rule = AttentionRule(case.head_width**-0.5)
    q = jax.ShapeDtypeStruct((case.batch, case.length, case.heads, case.head_width), case.dtype)
    k = jax.ShapeDtypeStruct((case.batch, case.length, case.kv_heads, case.head_width), case.dtype)
    segments = jax.ShapeDtypeStruct((case.batch, case.length), jnp.int32) if case.causal else None
    call = jax.jit(lambda *arrays: fused_attention(*arrays, rule, KernelForm(case.causal)))
    module = call.trace(q, k, k, segments).lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    calls = []

    def visit(operation: ir.Operation) -> ir.WalkResult:
        if "mhlo.backend_config" in operation.attributes:
            calls.append(operation.attributes["mhlo.backend_config"])
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    (config,) = calls
    context = ir.Context()
    dialect.register_dialect(context)
    with context:
        return ir.Module.parse(config["ir"].value_bytes).operation.get_asm()


def compile_all(cases: list[Case], triton_python: str) -> list[dict]:
    """For each case and chip what the compiler made of the kernel. Raises CalledProcessError if it made nothing."""
    jobs, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            tiles = default_tiles(case.batch, case.length, case.heads, case.head_width)
            path = Path(folder) / f"{number}.ttir"
            path.write_text(triton_module(case))
            for chip, capability in CHIPS.items():
                jobs.append({"path": str(path), "capability": capability, "warps": tiles.warps, "stages": tiles.stages})
                rows.append({"case": str(case), "chip": chip, "tiles": asdict(tiles)})
        lines = "".join(json.dumps(job) + "\n" for job in jobs)
        environment = os.environ | {"TRITON_CACHE_DIR": folder, "PYTHONWARNINGS": "ignore"}
        result = subprocess.run(
            [triton_python, "-c", COMPILER], input=lines, text=True, stdout=subprocess.PIPE, check=True, env=environment
        )
    return [row | json.loads(line) for row, line in zip(rows, result.stdout.splitlines(), strict=True)]


@click.command()
@click.option("--triton", "triton_python", required=True, help="Python of an environment with triton.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the results there.")
def main(triton_python: str, as_json: bool, output: Path | None) -> None:
    """Compile the kernel for every case and chip."""
    rows = compile_all(CASES, triton_python)
    command = "python benchmarks/attention_compile.py --triton ENV/bin/python --output FILE"
    results = {"command": command, "jax": jax.__version__, "triton": rows[0]["triton"], "cases": rows}
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")
    if as_json:
        print(json.dumps(results))
        return
    for row in rows:
        tiles = row["tiles"]
        print(f"{row['case']}, {row['chip']}: tiles {tiles['q']}x{tiles['k']}, {tiles['warps']} warps, "
              f"{row['registers']} registers, {row['spill_bytes']} bytes spilled, "
              f"{row['shared_bytes'] / 1024:.0f} KiB shared, products {row['warpgroup_products']} of warpgroups, "
              f"{row['warp_products']} of warps")


if __name__ == "__main__":
    main()
