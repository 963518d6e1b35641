"""Gemma 3 models that also see (4B and larger): their text model. What belongs to images is not needed.

The weight names are those of `Gemma3ForConditionalGeneration`.
"""

from dataclasses import replace

from . import gemma
from .config import ModelConfig
from .gemma import Block, Embedding, FinalNorm
from .tables import Table

__all__ = ["NOT_NEEDED", "PREFIX", "Block", "Embedding", "FinalNorm", "weight_table"]

PREFIX = "language_model.model."
# Names that do not have the prefix get it on their way.
NOT_NEEDED = (r"language_model\.model\.((vision_tower|multi_modal_projector)\..*|language_model\.lm_head\.weight)",)


def weight_table(config: ModelConfig) -> dict[str, Table]:
    return {
        part: {ours: replace(entry, name=f"language_model.{entry.name}") for ours, entry in table.items()}
        for part, table in gemma.weight_table(config).items()
    }
