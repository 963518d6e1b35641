"""The families of models: one file for each, and one line of `FAMILIES` for each model type. No jax.

`base` defines a family; `reading` has the functions that the readers of configurations share.
"""

from pkgutil import resolve_name

from .base import Family

__all__ = ["FAMILIES", "Family", "family_of"]

# transformers' `model_type` -> where its `Family` is; imported when a model of this type is read.
FAMILIES = {
    "llama": "extraction.models.families.llama:LLAMA",
    "llama4_text": "extraction.models.families.llama4:LLAMA4_TEXT",
    "llama4": "extraction.models.families.llama4:LLAMA4",
    "smollm3": "extraction.models.families.llama:SMOLLM3",
    "mistral": "extraction.models.families.llama:MISTRAL",
    "ministral": "extraction.models.families.llama:MISTRAL",
    "ministral3": "extraction.models.families.llama:MINISTRAL3",
    "mistral3": "extraction.models.families.llama:MISTRAL3",
    "qwen2": "extraction.models.families.llama:QWEN2",
    "qwen2_vl": "extraction.models.families.llama:QWEN2_VL",
    "qwen2_5_vl": "extraction.models.families.llama:QWEN2_VL",
    "qwen3": "extraction.models.families.llama:QWEN3",
    "qwen3_vl": "extraction.models.families.llama:QWEN3_VL",
    "phi3": "extraction.models.families.phi3:PHI3",
    "glm": "extraction.models.families.glm:GLM",
    "glm4": "extraction.models.families.glm:GLM4",
    "stablelm": "extraction.models.families.stablelm:STABLELM",
    "cohere": "extraction.models.families.cohere:COHERE",
    "cohere2": "extraction.models.families.cohere:COHERE2",
    "granite": "extraction.models.families.granite:GRANITE",
    "gemma": "extraction.models.families.gemma:GEMMA1",
    "gemma2": "extraction.models.families.gemma:GEMMA2",
    "gemma3_text": "extraction.models.families.gemma:GEMMA3",
    "gemma3": "extraction.models.families.gemma:GEMMA3_VISION",
    "gemma4_text": "extraction.models.families.gemma4:GEMMA4",
    "gemma4": "extraction.models.families.gemma4:GEMMA4_INSIDE",
    "gemma4_unified_text": "extraction.models.families.gemma4:GEMMA4",
    "gemma4_unified": "extraction.models.families.gemma4:GEMMA4_INSIDE",
    "gpt2": "extraction.models.families.gpt2:GPT2",
    "gptj": "extraction.models.families.gptj:GPTJ",
    "gpt_neo": "extraction.models.families.gpt_neo:GPT_NEO",
    "opt": "extraction.models.families.opt:OPT",
    "bloom": "extraction.models.families.gpt_neox:BLOOM",
    "gpt_neox": "extraction.models.families.gpt_neox:GPT_NEOX",
    "gpt_oss": "extraction.models.families.gpt_oss:GPT_OSS",
    "olmo2": "extraction.models.families.olmo2:OLMO2",
    "olmo3": "extraction.models.families.olmo2:OLMO3",
    "mixtral": "extraction.models.families.moe:MIXTRAL",
    "deepseek_v2": "extraction.models.families.deepseek:DEEPSEEK_V2",
    "deepseek_v3": "extraction.models.families.deepseek:DEEPSEEK_V3",
    "olmoe": "extraction.models.families.moe:OLMOE",
    "qwen2_moe": "extraction.models.families.moe:QWEN2_MOE",
    "qwen3_moe": "extraction.models.families.moe:QWEN3_MOE",
    "nemotron_h": "extraction.models.families.nemotron_h:NEMOTRON_H",
    "qwen3_next": "extraction.models.families.qwen_hybrid:QWEN3_NEXT",
    "qwen3_5_text": "extraction.models.families.qwen_hybrid:QWEN3_5",
    "qwen3_5": "extraction.models.families.qwen_hybrid:QWEN3_5_VISION",
    "qwen3_5_moe_text": "extraction.models.families.qwen_hybrid:QWEN3_5_MOE",
    "qwen3_5_moe": "extraction.models.families.qwen_hybrid:QWEN3_5_MOE_VISION",
}


def family_of(model_type: str) -> Family:
    """Return the family of a model type in `FAMILIES`."""
    return resolve_name(FAMILIES[model_type])
