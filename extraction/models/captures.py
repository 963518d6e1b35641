"""The capture plan: the layers that run, and the tensors that the scan over them keeps.

In: hook point names and the configuration. Out: the number of layers, the captured layers of each kind of tensor, and
the place of each hook point's values. Guarantee: no more layers run than the deepest hook point needs. Cost: none.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .config import ModelConfig

EMBEDDING = -1  # the "layer" whose output is the embedding


class Capture(NamedTuple):
    """A tensor that the scan keeps: its kind and its layer."""

    kind: str
    layer: int


def capture_of(hook_point: str) -> Capture:
    """Return the capture of a hook point; `resid_pre` of a block is `resid_post` of the block before."""
    _, layer, kind = hook_point.split(".", 2)
    return Capture("hook_resid_post", int(layer) - 1) if kind == "hook_resid_pre" else Capture(kind, int(layer))


@dataclass(frozen=True)
class CapturePlan:
    """The layers that run, and the place of each hook point's tensor after the scan."""

    num_layers: int
    captures: dict[str, Capture]
    layers_of: dict[str, list[int]]
    final_norm: bool
    windowed: tuple[bool, ...]

    @classmethod
    def of(cls, hook_points: tuple[str, ...], config: ModelConfig) -> "CapturePlan":
        """Return the plan for these hook points."""
        captures = {name: capture_of(name) for name in hook_points if name.startswith("blocks.")}
        final_norm = len(captures) < len(hook_points)
        deepest = max((capture.layer for capture in captures.values()), default=EMBEDDING)
        layers_of: dict[str, set[int]] = {}
        for capture in captures.values():
            if capture.layer != EMBEDDING:
                layers_of.setdefault(capture.kind, set()).add(capture.layer)
        sorted_layers = {kind: sorted(layers) for kind, layers in layers_of.items()}
        num_layers = config.num_layers if final_norm else deepest + 1
        return cls(num_layers, captures, sorted_layers, final_norm, config.windowed[:num_layers])

    def flags(self) -> dict[str, np.ndarray]:
        """Return the flags of layers by name, bool [layers]; none if no layer has a window."""
        return {"windowed": np.array(self.windowed)} if self.windowed else {}

    def places(self) -> dict[str, np.ndarray]:
        """Return for each kind int32 [layers], the place in its buffer that each layer writes."""
        layers = np.arange(self.num_layers)
        return {kind: np.searchsorted(chosen, layers).astype(np.int32) for kind, chosen in self.layers_of.items()}
