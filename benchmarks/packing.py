"""Tokenising and packing beside an idle device: tokens per second, and the share of padding.

In: a corpus (examples/make_corpus.py) and a model folder for its tokenizer. Out: one line of JSON: real tokens per
second of wall time and per core-second, for tokenising alone, packing alone, and both in the background thread that a
worker uses; padding in whole batches of the corpus and of synthetic documents with FineWeb's lengths (log-normal, mean
about 650 tokens).

    python benchmarks/packing.py --corpus DIR --output benchmarks/results/packing.json
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.outcome import give, gives_results  # noqa: E402
from extraction.packing import BatchShape, PackedBatch, pack_batches  # noqa: E402
from extraction.prefetch import in_background  # noqa: E402
from extraction.records import Cursor, Record, TokenizedRecord  # noqa: E402
from extraction.tokenization import RecordTokenizer  # noqa: E402

TINY = ROOT / "examples/tiny-lm"


def records_of(corpus: Path) -> list[Record]:
    texts = [text for file in sorted(corpus.glob("*.parquet")) for text in pq.read_table(file)["text"].to_pylist()]
    return [Record(index, str(index), text) for index, text in enumerate(texts)]


def rates(work: Callable[[], int]) -> dict[str, float]:
    """Tokens per second of wall time, and per second of one core."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"tokens_per_second": round(tokens / wall), "tokens_per_core_second": round(tokens / cpu)}


def total(batches: Iterable[PackedBatch]) -> int:
    return sum(batch.num_tokens for batch in batches)


def padding(tokenized: Iterable[TokenizedRecord], shape: BatchShape) -> float:
    """The share of slots that hold nothing, the last, short batch left out."""
    batches = list(pack_batches(tokenized, Cursor(0, 0), shape, "split"))[:-1]
    return round(1 - total(batches) / max(len(batches) * shape.num_slots, 1), 4)


def like_fineweb(num_documents: int) -> list[TokenizedRecord]:
    lengths = np.random.default_rng(0).lognormal(6.0, 1.0, num_documents).astype(int) + 1
    return [TokenizedRecord(index, str(index), np.zeros(length, np.int32)) for index, length in enumerate(lengths)]


@click.command()
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=TINY, type=click.Path(exists=True, path_type=Path), help="Folder with a tokenizer.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--seq-len", default=2048, show_default=True)
@gives_results
def main(corpus: Path, model: Path, batch_size: int, seq_len: int, as_json: bool, output: Path | None) -> None:
    """Measure."""
    shape, records, tokenizer = BatchShape(1, batch_size, seq_len), records_of(corpus), RecordTokenizer(model)
    tokenized = list(tokenizer.tokenize(records))  # also warms the tokenizer

    def pack(source: Iterable[TokenizedRecord]) -> Iterable[PackedBatch]:
        return pack_batches(source, Cursor(0, 0), shape, "split")

    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "python": platform.python_version(),
        "command": "python benchmarks/packing.py --corpus DIR",
        "documents": len(records),
        "tokens": sum(len(record.tokens) for record in tokenized),
        "tokenise": rates(lambda: sum(len(record.tokens) for record in tokenizer.tokenize(records))),
        "pack": rates(lambda: total(pack(tokenized))),
        "both_in_background": rates(lambda: total(in_background(pack(tokenizer.tokenize(records)), 2))),
        "padding_of_corpus": padding(tokenized, shape),
        "padding_of_fineweb_lengths": padding(like_fineweb(20_000), shape),
    }
    give(results, "\n".join(f"{name}: {found}" for name, found in results.items()), as_json, output)


if __name__ == "__main__":
    main()
