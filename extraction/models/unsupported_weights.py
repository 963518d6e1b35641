"""Instructions to convert a model whose weights are not in safetensors. No jax.

In: the file names of a folder. Out: a sentence with a command. Guarantee: no file is read. Cost: none.
"""

from collections.abc import Collection

_SAVE = '.save_pretrained("converted")\'; copy the tokenizer files there, and give --model converted'
_LOAD = "python -c 'from transformers import AutoModelForCausalLM as M; M.from_pretrained("


def how_to_convert(model: str, names: Collection[str], base: str | None) -> str | None:
    """Return how to make safetensors of the files of these names; None if no known form of weights is among them.

    Args:
        model: the location of the model.
        names: the names of the files in its folder.
        base: the base model of an adapter, None if it is unknown.
    """
    place = "FOLDER" if "://" in model else model
    first = f"copy the folder here as {place}, then run " if "://" in model else "run "
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if any(name.startswith("adapter_model.") for name in names) or "adapter_config.json" in names:
        load = _LOAD.replace("transformers import AutoModel", "peft import AutoPeftModel")
        return (
            f"only a LoRA adapter{f' of {base}' if base else ''} is here; merge it: {first}"
            f'{load}"{place}").merge_and_unload(){_SAVE}'
        )
    if ggufs:
        load = _LOAD.replace(" as M;", " as M, GgufConfig as G;")
        return (
            f'only GGUF is here; convert it: pip install gguf accelerate, {first}{load}"{place}", '
            f'gguf_file="{ggufs[0]}", quantization_config=G(dequantize=True)){_SAVE}'
        )
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        return f'only pytorch_model.bin is here; convert it: {first}{_LOAD}"{place}"){_SAVE}'
    for file, kind in (("tf_model.h5", "tf"), ("flax_model.msgpack", "flax")):
        if file in names:
            return f'only {file} is here; with transformers 4 {first}{_LOAD}"{place}", from_{kind}=True){_SAVE}'
    others = sorted(
        name for name in names if name.endswith((".pth", ".pt", ".ckpt")) or name.startswith("consolidated")
    )
    if others:
        return (
            f"{others[0]} is not in the form that transformers reads; give the form of this model that is, from the hub"
        )
    return None
