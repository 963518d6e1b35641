"""What it costs to compare the bytes of a source with its manifest: reading a stream, making streams, checking them.

In: nothing; a Parquet file with zstd of about `--mib`, of words by a Zipf law in documents of FineWeb's mean length.
Out: one line of JSON. The file is in the page cache, and seconds are those of all threads on the processor, which
other work on the machine changes little; rates are MB of the file for each of them. A stream is read in turns with and
without the comparison, medians of `ROUNDS`.

    python benchmarks/pins.py --output benchmarks/results/pins.json
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.outcome import about, give, gives_results  # noqa: E402
from extraction.datasets import fineweb  # noqa: E402
from extraction.storage import open_storage  # noqa: E402
from extraction.streams.build.check import check_streams  # noqa: E402
from extraction.streams.build.footers import Wanted, read_groups  # noqa: E402
from extraction.streams.build.sources import find_source  # noqa: E402
from extraction.streams.manifest import Manifest  # noqa: E402
from extraction.streams.stream import open_stream  # noqa: E402

ROUNDS, GROUP, POOL, WORDS = 5, 1000, 5000, 50_000


def write_source(path: Path, size: int) -> None:
    """Row groups of documents from a pool, in a new order in each, until the file has `size` bytes."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 12, WORDS)
    letters = "".join(map(chr, random.integers(97, 123, lengths.sum())))
    ends = np.cumsum(lengths)
    words = [letters[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    pool = [" ".join(words[i] for i in random.zipf(1.2, 500) % WORDS) for _ in range(POOL)]
    schema = pa.schema({"text": pa.string(), "id": pa.string(), "token_count": pa.int64()})
    with path.open("wb") as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while sink.tell() < size:
            texts = [pool[i] for i in random.permutation(POOL)[:GROUP]]
            ids = [f"<urn:uuid:{number:032x}>" for number in random.integers(0, 1 << 62, GROUP).tolist()]
            writer.write_table(pa.table([texts, ids, [500] * GROUP], schema=schema))


def seconds(work: Callable[[], object]) -> float:
    """What some work takes of the processor."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def read(manifest: Manifest, location: str) -> None:
    """Read all records of the one stream."""
    for _ in open_stream(manifest, location, 0).read_records():
        pass


@click.command()
@click.option("--mib", default=300, show_default=True)
@gives_results
def main(mib: int, as_json: bool, output: Path | None) -> None:
    """Make the file, and measure."""
    with tempfile.TemporaryDirectory() as folder:
        source, streams = f"{folder}/x.parquet", f"{folder}/streams"
        write_source(Path(source), mib << 20)
        files = find_source(source).files
        footers = seconds(lambda: read_groups(files, Wanted(), None))
        made = seconds(lambda: fineweb.create(open_storage(streams), source, 1))
        checked = [seconds(lambda c=content: check_streams(streams, False, c)) for content in (False, True)]
        manifest = check_streams(streams, False, False).manifest
        facts = [dataclasses.replace(file, content=None) for file in manifest.files]
        trusting = dataclasses.replace(manifest, files=tuple(facts))
        turns = [manifest, trusting] * ROUNDS
        times = [seconds(lambda one=one: read(one, streams)) for one in turns]
        held, trusted = (statistics.median(times[first::2]) for first in (0, 1))
        size = Path(source).stat().st_size / 1e6
        results = {
            "file_MB": round(size, 1),
            "row_groups": len(manifest.files[0].content["text"]),
            "read_MB_s": {"held": round(size / held, 1), "trusted": round(size / trusted, 1)},
            "held_over_trusted": round(trusted / held, 3),
            "create_s": {"footers": round(footers, 2), "with_content": round(made, 2)},
            "create_MB_s": round(size / made, 1),
            "check_s": {"without_content": round(checked[False], 2), "with_content": round(checked[True], 2)},
            "check_MB_s": round(size / checked[True], 1),
            "manifest_bytes": Path(streams, "manifest.json").stat().st_size,
        } | about("pyarrow", "google-crc32c")
        give(results, str(results), as_json, output)


if __name__ == "__main__":
    main()
