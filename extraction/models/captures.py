"""The capture plan: the layers that run, and the tensors that the scans over them keep.

In: hook point names and the configuration. Out: the number of layers, the captured layers of each buffer, and the place
of each hook point's values. Guarantee: no more layers run than the deepest hook point needs. Cost: none.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .config import ModelConfig
from .hooks import EMBED_HOOK, FINAL_HOOK, layer_of, suffix_of

EMBEDDING = -1  # the "layer" whose output is the embedding


class Capture(NamedTuple):
    """A tensor that the step keeps: the suffix of its hook point, and its layer."""

    suffix: str
    layer: int


class Buffer(NamedTuple):
    """The tensors of one suffix and width, which are kept in one array."""

    suffix: str
    width: int


def capture_of(hook_point: str) -> Capture:
    """Return the capture of a hook point; `resid_pre` of a block is `resid_post` of the block before."""
    if hook_point == EMBED_HOOK:
        return Capture("hook_resid_post", EMBEDDING)
    suffix, layer = suffix_of(hook_point), layer_of(hook_point)
    return Capture("hook_resid_post", layer - 1) if suffix == "hook_resid_pre" else Capture(suffix, layer)


@dataclass(frozen=True)
class CapturePlan:
    """The layers that run, and the place of each hook point's tensor.

    Attributes:
        num_layers: the layers that run.
        captures: the capture of each hook point outside the model's end.
        layers_of: the sorted layers of each buffer.
        final_norm: whether the final norm runs.
    """

    num_layers: int
    captures: dict[str, Capture]
    layers_of: dict[Buffer, list[int]]
    final_norm: bool

    @classmethod
    def of(cls, hook_points: tuple[str, ...], config: ModelConfig) -> "CapturePlan":
        """Return the plan for these hook points."""
        captures = {name: capture_of(name) for name in hook_points if name != FINAL_HOOK}
        deepest = max((capture.layer for capture in captures.values()), default=EMBEDDING)
        layers_of: dict[Buffer, set[int]] = {}
        for name, (suffix, layer) in captures.items():
            if layer != EMBEDDING:
                layers_of.setdefault(Buffer(suffix, config.hook_width(name)), set()).add(layer)
        final_norm = FINAL_HOOK in hook_points
        return cls(
            num_layers=config.num_layers if final_norm else deepest + 1,
            captures=captures,
            layers_of={buffer: sorted(layers) for buffer, layers in layers_of.items()},
            final_norm=final_norm,
        )

    def places(self, buffer: Buffer, layers: range) -> np.ndarray:
        """Return int32 [layers], the place in its buffer that each layer writes; the last is one beyond the buffer."""
        return np.searchsorted(self.layers_of[buffer], layers).astype(np.int32)
