"""What others do with the same documents and model: one peer, in a process of its own, by any interpreter.

In: Parquet files with a `text` column and a model folder. Out: one line of JSON: real tokens, the slots that the model
computed, and the seconds of the loop from the first document to the last stored activation, without start-up and
without a first batch to warm up.

- `hf-padded`: the common loop over transformers: batches padded to their longest document, `output_hidden_states`.
- `hf-packed`: documents end to end in full rows, attention across documents, whole model.
- `saelens`: `CacheActivationsRunner` of sae-lens, which packs likewise and stops behind the hook. It stores float32,
  whatever the model computes in, since it has no way to store bfloat16.

    python benchmarks/peers.py hf-padded --model DIR --corpus DIR --layer 15 --output DIR
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

KINDS = ("hf-padded", "hf-packed", "saelens")


def documents(corpus: Path, count: int) -> list[str]:
    """The first texts, in the order of the files."""
    import pyarrow.parquet as pq

    texts: list[str] = []
    for path in sorted(corpus.glob("**/*.parquet")):
        texts += pq.read_table(path, columns=["text"])["text"].to_pylist()
    return texts[:count]


def load(folder: Path, dtype: str):
    """Tokenizer and model without its head."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def padded_batches(tokenizer: Any, texts: list[str], rows: int, seq_len: int) -> Iterator[dict]:
    """Documents in their order, `rows` at a time, cut at seq_len."""
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    for start in range(0, len(texts), rows):
        yield tokenizer(
            texts[start : start + rows], padding=True, truncation=True, max_length=seq_len, return_tensors="pt"
        )


def packed_batches(tokenizer: Any, texts: list[str], rows: int, seq_len: int) -> Iterator[dict]:
    """All tokens end to end; what does not fill a last batch is left out."""
    import torch

    ids = [token for text in texts for token in tokenizer(text)["input_ids"]]
    size = rows * seq_len
    for start in range(0, len(ids) - size + 1, size):
        block = torch.tensor(ids[start : start + size]).reshape(rows, seq_len)
        yield {"input_ids": block, "attention_mask": torch.ones_like(block)}


def run_transformers(batches: Iterator[dict], model: Any, layer: int, output: Path) -> dict:
    """Each batch through the model; the activations of real tokens as bfloat16 in a file of their own."""
    import torch
    from safetensors.torch import save_file

    tokens, slots, begin = 0, 0, None
    with torch.no_grad():
        for number, batch in enumerate(batches):
            if number == 1:  # the first one warms up
                tokens, slots, begin = 0, 0, time.perf_counter()
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            hidden = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[layer + 1]
            kept = hidden[inputs["attention_mask"].bool()].to(torch.bfloat16)
            save_file({"activations": kept.contiguous()}, output / f"{number:08d}.safetensors")
            tokens, slots = tokens + len(kept), slots + inputs["input_ids"].numel()
    if begin is None or not tokens:
        raise SystemExit("give more --documents: nothing is left after the first batch, which warms up")
    return {"tokens": tokens, "slots": slots, "seconds": time.perf_counter() - begin}


def run_saelens(model: Path, texts: list[str], shape: tuple[int, int, int], dtype: str, output: Path) -> dict:
    """sae-lens from a dataset on disk, at `shape` = (rows, seq_len, layer); its runner is timed as a whole."""
    import torch
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
    from transformers import AutoConfig, AutoTokenizer

    rows, seq_len, layer = shape
    total = sum(len(ids) for ids in AutoTokenizer.from_pretrained(model)(texts)["input_ids"])
    tokens, width = total // (rows * seq_len) * rows * seq_len, AutoConfig.from_pretrained(model).hidden_size
    one_buffer = (tokens + 0.5) * width * torch.float32.itemsize / 1e9  # it always fills whole buffers
    config = CacheActivationsRunnerConfig(
        dataset_path="unused",
        model_name=str(model),
        model_batch_size=rows,
        hook_name=f"model.layers.{layer}",
        d_in=width,
        training_tokens=tokens,
        context_size=seq_len,
        new_cached_activations_path=str(output / "activations"),
        shuffle=False,
        streaming=False,
        dtype="float32",
        model_class_name="AutoModelForCausalLM",
        model_from_pretrained_kwargs={"dtype": getattr(torch, dtype)},
        prepend_bos=False,
        device="cpu",
        buffer_size_gb=one_buffer,
    )
    runner = CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"text": texts}))
    begin = time.perf_counter()
    stored = runner.run()
    seconds = time.perf_counter() - begin
    return {"tokens": len(stored) * seq_len, "slots": len(stored) * seq_len, "seconds": seconds}


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--model", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--documents", "count", default=64)
@click.option("--layer", default=15)
@click.option("--seq-len", default=1024)
@click.option("--batch-size", default=8)
@click.option("--dtype", default="float32")
@click.option("--output", required=True, type=click.Path(path_type=Path))
def main(kind: str, model: Path, corpus: Path, output: Path, count: int, **shape: int | str) -> None:
    """Run one peer."""
    texts, rows, seq_len = documents(corpus, count), shape["batch_size"], shape["seq_len"]
    output.mkdir(parents=True, exist_ok=True)
    if kind == "saelens":
        found = run_saelens(model, texts, (rows, seq_len, shape["layer"]), shape["dtype"], output)
    else:
        tokenizer, network = load(model, shape["dtype"])
        make = padded_batches if kind == "hf-padded" else packed_batches
        found = run_transformers(make(tokenizer, texts, rows, seq_len), network, shape["layer"], output)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
