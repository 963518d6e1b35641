"""The options of a compiled step, and their check against a model and devices. No jax.

In: hook points, shape, dtypes and mesh. Out: `StepOptions`. Guarantee: `check_step` raises InvalidRequest for options
that do not fit. Cost: none.
"""

from dataclasses import dataclass

import numpy as np

from ..core.errors import InvalidRequest
from ..format.dtypes import FIXED_DTYPES, LARGEST_CODE
from .config import ModelConfig
from .hooks import why_absent
from .mesh import MeshShape, misfit


@dataclass(frozen=True)
class StepOptions:
    """Hook points, shape [B, T], dtypes and mesh of a step.

    `pool`: rows are means over windows. `attention`: `auto` for the form that the device chooses, or `plain`.
    """

    hook_points: tuple[str, ...]
    batch_size: int
    seq_len: int
    compute_dtype: str
    store_dtype: str = "bfloat16"
    mesh: MeshShape = MeshShape(1, 1)
    pool: bool = False
    attention: str = "auto"

    @property
    def num_slots(self) -> int:
        """Places for tokens in one step."""
        return self.batch_size * self.seq_len

    @property
    def capture_dtype(self) -> str:
        """The dtype that the scan keeps captured values in.

        It is the stored dtype, or the compute dtype where values are processed before the cast or may overflow in it.
        """
        is_processed = self.pool or self.store_dtype in LARGEST_CODE or self.store_dtype == "float16"
        return self.compute_dtype if is_processed else self.store_dtype


def check_step(config: ModelConfig, options: StepOptions, num_devices: int) -> None:
    """Raise InvalidRequest if the options do not fit the model or the devices."""
    unknown = set(options.hook_points) - set(config.hook_points)
    if unknown:
        raise InvalidRequest(f"{min(unknown)}: {why_absent(min(unknown), config)}")
    without_mean = [name for name in options.hook_points if name.rpartition(".")[2] in FIXED_DTYPES]
    if options.pool and without_mean:
        raise InvalidRequest(f"--positions mean: {without_mean[0]} has no mean over a window; store it in another run")
    if config.max_positions is not None and options.seq_len > config.max_positions:
        raise InvalidRequest(f"--seq-len {options.seq_len}: this model has {config.max_positions} positions")
    if options.num_slots > np.iinfo(np.int32).max:
        raise InvalidRequest(f"--batch-size {options.batch_size} times --seq-len {options.seq_len}: over 2**31 slots")
    problem = misfit(options.mesh, config, options.batch_size, num_devices)
    if problem:
        raise InvalidRequest(f"--mesh {options.mesh}: {problem}")
