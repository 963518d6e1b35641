"""Hook points as the scan over the layers sees them.

In: hook point names and the configuration. Out: which layers run, which kinds of tensor each captures, and where each
hook point's values are found afterwards. Guarantee: no more layers run than the deepest hook point needs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .config import ModelConfig

EMBEDDING = -1  # the "layer" whose output is the embedding


class Capture(NamedTuple):
    """A hook point as the scan sees it: the output of this kind at this layer."""

    kind: str
    layer: int


def capture_of(hook_point: str) -> Capture:
    """`resid_pre` of a block is `resid_post` of the one before it, so it needs no more layers than that."""
    _, layer, kind = hook_point.split(".", 2)
    return Capture("hook_resid_post", int(layer) - 1) if kind == "hook_resid_pre" else Capture(kind, int(layer))


@dataclass(frozen=True)
class CapturePlan:
    """Which layers run, and where each hook point's tensor is found after the scan."""

    num_layers: int
    captures: dict[str, Capture]
    layers_of: dict[str, list[int]]
    final_norm: bool
    windowed: tuple[bool, ...]

    @classmethod
    def of(cls, hook_points: tuple[str, ...], config: ModelConfig) -> "CapturePlan":
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
        """What tells one layer from another, by name, bool [layers]; nothing where no layer has a window."""
        return {"windowed": np.array(self.windowed)} if self.windowed else {}

    def places(self) -> dict[str, np.ndarray]:
        """For each kind, int32 [layers]: the place in its buffer that each layer writes to."""
        layers = np.arange(self.num_layers)
        return {kind: np.searchsorted(chosen, layers).astype(np.int32) for kind, chosen in self.layers_of.items()}
