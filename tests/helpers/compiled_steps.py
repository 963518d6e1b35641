"""The real step of a real model, compiled for a TPU slice on a machine without one, and what the compiler says of it.

Needs libtpu (extra `tpu`). Nothing is run. `benchmarks/tpu_compile.py` makes its table of it.
"""

import math
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax

from extraction.models.accelerators import SLICES, Accelerator, describe
from extraction.models.config import LayerKind, ModelConfig
from extraction.models.config_file import read_model_config
from extraction.models.cost import counts_of, ideal_flops, loop_repeats
from extraction.models.mesh import MeshShape
from extraction.models.step import lower_step, weight_shapes
from extraction.models.step_options import StepOptions

CONFIGS = Path(__file__).parents[1] / "model_configs"
LANES = 128  # the last axis of a tensor takes whole lanes
LEAST = 9  # XLA's number for its level O0


@dataclass(frozen=True)
class Case:
    """A model of tests/model_configs, a slice, its mesh (data, model), rows of a step and tokens in a row."""

    model: str
    slice: str
    mesh: tuple[int, int]
    rows: int
    seq_len: int
    store_dtype: str = "bfloat16"

    def __str__(self) -> str:
        return f"{self.model} on {self.slice}"


class Instruction(NamedTuple):
    """Of the optimised program, outside of fusions: the dtype and shape of its result, and whether it is in a loop."""

    in_loop: bool
    operation: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CompiledStep:
    """Three layers captured, the deepest after three quarters of the model, or at layer 18."""

    config: ModelConfig
    options: StepOptions
    slice: Accelerator
    program: jax.stages.Compiled

    @classmethod
    def of(cls, case: Case, fast: bool = False) -> "CompiledStep":
        """`fast`: by the compiler's least effort, in about a sixth of the time; a worker's step has its usual one."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(CONFIGS / f"{case.model}.json", Path(folder) / "config.json")
            config = read_model_config(Path(folder))
        deepest = min(18, config.num_layers * 3 // 4)
        hooks = tuple(f"blocks.{deepest * part // 3}.hook_resid_post" for part in (1, 2, 3))
        mesh = MeshShape(*case.mesh)
        options = StepOptions(hooks, case.rows, case.seq_len, "bfloat16", case.store_dtype, mesh=mesh)
        wanted = SLICES[case.slice]
        lowered = lower_step(config, options, describe(wanted))
        return cls(config, options, wanted, lowered.compile({"optimization_level": LEAST if fast else 0}))

    @cached_property
    def instructions(self) -> list[Instruction]:
        found = []
        for computation in re.split(r"\n(?=%|ENTRY )", self.program.as_text()):
            if computation.startswith("%fused"):
                continue
            for line in computation.splitlines()[1:]:
                match = re.match(r"\s*(?:ROOT )?%\S+ = \(?(\w+)\[([\d,]*)\]\S* ([a-z\-]+)\(", line)
                if match:
                    shape = tuple(int(size) for size in match[2].split(",") if size)
                    found.append(Instruction(not computation.startswith("ENTRY"), match[3], match[1], shape))
        return found

    @property
    def tokens(self) -> int:
        return self.options.num_slots

    @property
    def devices(self) -> int:
        return self.options.mesh.data * self.options.mesh.model

    def arithmetic(self) -> float:
        """Operations of the program, the attention kernel's own with them, over the model's."""
        return counts_of(self.program, self.config, self.options).flops / ideal_flops(self.config, self.options)

    def products(self) -> float:
        """The same without attention: what the compiler counts over two for each weight and token."""
        # A token that sees itself only is as good as no attention.
        alone = replace(self.options, batch_size=self.tokens, seq_len=1)
        counted = self.program.cost_analysis()["flops"] * loop_repeats(self.config, self.options)
        return counted / ideal_flops(self.config, alone)

    def memory(self) -> float:
        """Peak over weights, results (in the scan, and on their way out) and the tensors of the largest block."""
        config, found = self.config, self.program.memory_analysis()
        block = 2 * self.tokens * (3 * config.width + max(map(self._inside, set(config.layers)))) / self.devices
        needed = found.argument_size_in_bytes + 2 * found.output_size_in_bytes + block
        return found.peak_memory_in_bytes / needed

    def _inside(self, kind: LayerKind) -> int:
        """Elements of one token inside attention or the mlp of a layer, the larger of them."""
        heads = (2 * kind.num_heads + 2 * kind.num_kv_heads) * max(kind.head_width, LANES)
        inner = 2 * kind.inner_width
        if kind.experts:  # each expert of a token has a copy of its own, on the way in and out
            inner += kind.experts.per_token * 2 * self.config.width
        return max(heads, inner)

    def widened(self) -> set[tuple[int, ...]]:
        """Shapes, sorted, that a weight matrix has and a float32 tensor."""
        paths = weight_shapes(self.config, self.options)
        matrices = {tuple(sorted(leaf.shape[1:])) for path, leaf in paths if path[-1] == "kernel"}
        wide = {
            tuple(sorted(size for size in found.shape if size > 1))
            for found in self.instructions
            if found.dtype == "f32"
        }
        return matrices & wide

    def moved(self) -> list[tuple[int, ...]]:
        """Shapes of the activations, the keys of one layer the smallest, that are copied or transposed in the loop."""
        smallest = self.tokens * self.config.layers[0].kv_width / self.devices
        return [
            found.shape
            for found in self.instructions
            if found.in_loop and found.operation in ("copy", "transpose") and math.prod(found.shape) >= smallest
        ]
