"""Shuffle the rows of an Arrow file that need not fit into memory.

In: an Arrow file, a seed. Out: a file beside it with the same rows in another order. Guarantee: the order is a function
of the seed and the number of rows, every order is equally likely, and it is the same with every version of NumPy (bit
streams are; shuffles are not). Cost: the rows are written twice; in memory is a bucket of about `BUCKET_BYTES`.

Each row goes to a bucket by chance; the rows of a bucket are then put into an order by chance.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

BUCKET_BYTES = 64 << 20
BATCH_ROWS = 1000  # of the new file
MOST_BUCKETS = 512  # open files


def shuffled(path: Path, seed: int) -> tuple[Path, list[int]]:
    """Return the new file, and the number of the first row of each of its batches and their end."""
    import pyarrow

    target, starts = path.with_suffix(".shuffled"), [0]
    bits = np.random.PCG64(seed)
    with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_file(source) as reader:
        size = sum(reader.get_batch(number).nbytes for number in range(reader.num_record_batches))
        buckets = _distribute(reader, path, min(size // BUCKET_BYTES + 1, MOST_BUCKETS), bits)
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with (
            pyarrow.OSFile(str(target), "wb") as sink,
            pyarrow.ipc.new_file(sink, reader.schema, options=options) as writer,
        ):
            for bucket in buckets:
                table = _read(bucket)
                table = table.take(np.argsort(bits.random_raw(table.num_rows), kind="stable")).combine_chunks()
                for batch in table.to_batches(BATCH_ROWS):
                    writer.write_batch(batch)
                    starts.append(starts[-1] + batch.num_rows)
                bucket.unlink()
    path.unlink()
    return target, starts


def _distribute(reader: Any, path: Path, count: int, bits: np.random.PCG64) -> list[Path]:
    """Write each row of a file to one of `count` buckets, and return these."""
    import pyarrow

    buckets = [path.with_suffix(f".bucket-{number}") for number in range(count)]
    with contextlib.ExitStack() as opened:
        sinks = [opened.enter_context(pyarrow.OSFile(str(bucket), "wb")) for bucket in buckets]
        writers = [opened.enter_context(pyarrow.ipc.new_stream(sink, reader.schema)) for sink in sinks]
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            chosen = bits.random_raw(batch.num_rows) % count
            for bucket in np.unique(chosen).tolist():
                writers[bucket].write_batch(batch.take(pyarrow.array(np.flatnonzero(chosen == bucket))))
    return buckets


def _read(path: Path) -> Any:
    import pyarrow

    with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
        return reader.read_all()
