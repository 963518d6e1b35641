"""The architecture of each model type: a module with Embedding, Block, FinalNorm and the names of its weights."""

from types import ModuleType

from . import gemma, gemma3_vision, gpt2, gpt_neox, llama, moe, olmo2

ARCHITECTURES: dict[str, ModuleType] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "gemma3": gemma3_vision,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "olmo2": olmo2,
    "mixtral": moe,
    "qwen3_moe": moe,
}
