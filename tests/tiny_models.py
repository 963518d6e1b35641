"""Tiny random models of each family, saved as Hugging Face does, and the reference's value at each hook point."""

from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama-tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-biases": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "linear-rope": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=256, vocab_size=97),
}
# Where each hook point is in the reference: (module path, whether its input or its output).
_LLAMA_HOOKS = {
    "hook_resid_pre": ("model.layers.{l}", "in"), "attn.hook_z": ("model.layers.{l}.self_attn.o_proj", "in"),
    "hook_attn_out": ("model.layers.{l}.self_attn.o_proj", "out"),
    "hook_resid_mid": ("model.layers.{l}.post_attention_layernorm", "in"),
    "mlp.hook_post": ("model.layers.{l}.mlp.down_proj", "in"), "hook_mlp_out": ("model.layers.{l}.mlp", "out"),
    "hook_resid_post": ("model.layers.{l}", "out"), "ln_final.hook_normalized": ("model.norm", "out"),
}
_GPT2_HOOKS = {
    "hook_resid_pre": ("transformer.h.{l}", "in"), "attn.hook_z": ("transformer.h.{l}.attn.c_proj", "in"),
    "hook_attn_out": ("transformer.h.{l}.attn.c_proj", "out"), "hook_resid_mid": ("transformer.h.{l}.ln_2", "in"),
    "mlp.hook_post": ("transformer.h.{l}.mlp.c_proj", "in"), "hook_mlp_out": ("transformer.h.{l}.mlp", "out"),
    "hook_resid_post": ("transformer.h.{l}", "out"), "ln_final.hook_normalized": ("transformer.ln_f", "out"),
}


def make_model(name: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **saving: object):
    """A random model, saved to `folder`. Its weights are large enough for biases and norms to matter."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
    model.to(dtype).save_pretrained(folder, **saving)
    # Read back, since converting the model would also have rounded its rotary frequencies.
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def reference(model: torch.nn.Module, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """{hook point: [t, width]} of one document of t tokens."""
    table = _GPT2_HOOKS if model.config.model_type == "gpt2" else _LLAMA_HOOKS
    found, handles = {}, []
    for suffix, (path, side) in table.items():
        for layer in range(model.config.num_hidden_layers):
            name = suffix if suffix.startswith("ln_final") else f"blocks.{layer}.{suffix}"
            module = model.get_submodule(path.format(l=layer))

            def hook(module, inputs, keywords, output, name=name, side=side):
                value = (inputs[0] if inputs else keywords["hidden_states"]) if side == "in" else output
                value = value[0] if isinstance(value, tuple) else value
                found[name] = value.detach().numpy().reshape(len(tokens), -1)

            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    with torch.no_grad():
        model(torch.tensor(np.asarray(tokens, np.int64))[None])
    for handle in handles:
        handle.remove()
    return found
