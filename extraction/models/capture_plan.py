"""The capture plan: the layers that run, and the tensors that the scans over them keep.

In: hook point names and the configuration. Out: the number of layers, the captured layers of each buffer, and the place
of each hook point's values. Guarantee: no more layers run than the deepest hook point needs. Cost: none.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .config import ModelConfig
from .hooks import EMBED_HOOK, FINAL_HOOK, LOSS_HOOK, layer_of, suffix_of

_EMBEDDING = -1  # the "layer" whose output is the embedding


class Buffer(NamedTuple):
    """The tensors of one suffix and width, which are kept in one array."""

    suffix: str
    width: int


class Capture(NamedTuple):
    """The place of a hook point's tensor: its buffer, and the place there."""

    buffer: Buffer
    place: int


@dataclass(frozen=True)
class CapturePlan:
    """The layers that run, and the tensors to keep.

    Attributes:
        num_layers: the layers that run.
        captures: the place of each hook point.
        layers_of: the sorted layers of each buffer that layers write.
        final_norm: whether the final norm runs, and all layers.
        loss: whether the head runs.
    """

    num_layers: int
    captures: dict[str, Capture]
    layers_of: dict[Buffer, list[int]]
    final_norm: bool
    loss: bool

    @classmethod
    def of(cls, hook_points: tuple[str, ...], config: ModelConfig) -> "CapturePlan":
        """Return the plan for these hook points."""
        wanted = {name: _buffer_and_layer(name, config) for name in hook_points}
        layers_of: dict[Buffer, list[int]] = {}
        for buffer, layer in sorted((buffer, layer) for buffer, layer in set(wanted.values()) if layer is not None):
            layers_of.setdefault(buffer, []).append(layer)
        captures = {
            name: Capture(buffer, 0 if layer is None else layers_of[buffer].index(layer))
            for name, (buffer, layer) in wanted.items()
        }
        loss = LOSS_HOOK in hook_points
        final_norm = loss or FINAL_HOOK in hook_points
        deepest = max((layers[-1] for layers in layers_of.values()), default=_EMBEDDING)
        return cls(config.num_layers if final_norm else deepest + 1, captures, layers_of, final_norm, loss)

    @property
    def ends(self) -> dict[str, Buffer]:
        """The buffers outside the layers by their suffix: the embedding, the final norm, the loss."""
        buffers = (capture.buffer for capture in self.captures.values())
        return {buffer.suffix: buffer for buffer in buffers if buffer not in self.layers_of}

    def places(self, buffer: Buffer, layers: range) -> np.ndarray:
        """Return int32 [layers], the place in its buffer that each layer writes; the last is one beyond the buffer."""
        return np.searchsorted(self.layers_of[buffer], layers).astype(np.int32)


def _buffer_and_layer(hook_point: str, config: ModelConfig) -> tuple[Buffer, int | None]:
    """Return the buffer of a hook point, and its layer if a layer writes it.

    `resid_pre` of a block is `resid_post` of the block before, or the embedding.
    """
    suffix, width = suffix_of(hook_point), config.hook_width(hook_point)
    if suffix in (EMBED_HOOK, FINAL_HOOK, LOSS_HOOK):
        return Buffer(suffix, width), None
    layer = layer_of(hook_point)
    if suffix != "hook_resid_pre":
        return Buffer(suffix, width), layer
    return (Buffer("hook_resid_post", width), layer - 1) if layer else (Buffer(EMBED_HOOK, width), None)
