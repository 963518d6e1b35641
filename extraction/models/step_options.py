"""What a compiled step is made for: `StepOptions`, and whether a model and devices can do it. No jax.

In: hook points, shape, dtypes and mesh, all decided. Out: InvalidRequest for what does not fit.
"""

from dataclasses import dataclass

import numpy as np

from ..core.errors import InvalidRequest
from ..format.dtypes import LARGEST_CODE
from .config import ModelConfig
from .hooks import suffix_of
from .mesh import MeshShape, misfit


@dataclass(frozen=True)
class StepOptions:
    """What is captured, in which shape [B, T] and dtypes, on which mesh. `pool`: rows are means over windows."""

    hook_points: tuple[str, ...]
    batch_size: int
    seq_len: int
    compute_dtype: str
    store_dtype: str = "bfloat16"
    mesh: MeshShape = MeshShape(1, 1)
    pool: bool = False

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
    """Raise InvalidRequest if the model or the devices cannot do what the options ask."""
    unknown = set(options.hook_points) - set(config.hook_points)
    if unknown:
        reason = config.absent_hooks.get(suffix_of(min(unknown)), f"the model has {config.num_layers} layers")
        raise InvalidRequest(f"{min(unknown)}: no such hook point: {reason}")
    if config.max_positions is not None and options.seq_len > config.max_positions:
        raise InvalidRequest(f"--seq-len {options.seq_len}: this model has {config.max_positions} positions")
    if options.num_slots > np.iinfo(np.int32).max:
        raise InvalidRequest(f"--batch-size {options.batch_size} times --seq-len {options.seq_len}: over 2**31 slots")
    problem = misfit(options.mesh, config, options.batch_size, num_devices)
    if problem:
        raise InvalidRequest(f"--mesh {options.mesh}: {problem}")
