"""Configurations of OLMo 2."""

from pathlib import Path
from typing import Any

from .base import ModelConfig
from .common import DECODER, decoder

OLMO2 = DECODER


def olmo2(config: Any, path: Path) -> ModelConfig:
    """The norms of q and k are over all heads at once."""
    return decoder(config, path, qk_norm="width")
