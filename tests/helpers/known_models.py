"""Configurations as they are found in public, and the verdict that each must get: what `model_configs/index.toml` says.

An entry has either `parameters` (and `inner`, without embedding and head), as published, or what the error says.
"""

import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "model_configs"
KNOWN = tomllib.loads((FOLDER / "index.toml").read_text())
ACCEPTED = {name: entry for name, entry in KNOWN.items() if "refused" not in entry}
# Model types of which no file is public, as of text models that are inside others there.
WITHOUT_A_FILE = {
    "ministral",
    "ministral3",
    "qwen2_vl",
    "llama4_text",
    "gemma4_unified",
    "gemma4_unified_text",
    "qwen3_5_text",
    "qwen3_5_moe_text",
}
REFUSED = {name: entry["refused"] for name, entry in KNOWN.items() if "refused" in entry}


def field_of(config, name):
    """A field of a configuration; one of its layers as a tuple, or as one value where all layers have the same."""
    if hasattr(config, name):
        return getattr(config, name)
    of_layers = tuple(getattr(kind, name) for kind in config.layers)
    return of_layers[0] if len(set(of_layers)) == 1 else of_layers
