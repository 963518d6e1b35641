"""What simulated workers work on: streams in memory, and a stand-in for the device.

In: the number of a workload. Out: `Workload`, with the manifest, the streams and a worker's `RunPlan`. The stand-ins are
at the boundary of the process: a stream yields its rows from memory instead of Parquet files, a tokenizer reads numbers
out of a text, and a step computes values from tokens and positions after some simulated seconds. All else of the plan
is the product's own.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes  # noqa: F401  # registers bfloat16
import numpy as np
import pyarrow

from extraction.batching.token_selection import Selection, Selector
from extraction.core.threads import Budget
from extraction.format.digests import digest_of
from extraction.format.dtypes import dtype_named
from extraction.format.records import Record, TokenizedRecord
from extraction.format.run_config import SpecialTokenIds
from extraction.format.statistics import Facts
from extraction.models.devices import Hardware
from extraction.models.location import ModelFolder
from extraction.models.step_options import StepOptions
from extraction.models.step_output import ValuesPart
from extraction.storage import Storage
from extraction.streams.manifest import Manifest, StreamEntry
from extraction.streams.stream import Stream, _Rows
from extraction.worker.resolve import ModelPlan, RunPlan
from tests.simulation.scheduler import Scheduler

NUM_WORKLOADS = 12
STREAMS = "memory"
CONFIG = SimpleNamespace(vocab_size=1000)  # of the model
ROW_GROUP = 4  # records that are read at once
_SCHEMA = pyarrow.schema([("id", pyarrow.string()), ("text", pyarrow.string())])
_SELECTIONS = ("all", "all", "all", "last", "0,-1", "every:3", "mean")


class MemoryStream(Stream):
    """A stream whose row groups are in memory."""

    def __init__(self, manifest: Manifest, index: int, table: pyarrow.Table):
        super().__init__(manifest, None, index)  # type: ignore[arg-type]  # no file is opened
        self._table = table

    def _groups(self, columns: tuple[str, ...], span: tuple[int, int], budget: Budget) -> Iterator[tuple[_Rows, int]]:
        for first in range(span[0], span[1], ROW_GROUP):
            if not budget.reserve(100):
                return
            table = self._table.slice(first, min(ROW_GROUP, span[1] - first))
            yield _Rows("memory: row group 0", first, table, np.arange(table.num_rows)), 100


class Tokenizer:
    """Reads the token ids that a text is made of."""

    digest = "sha256:tokenizer"

    def tokenize(
        self, records: Iterable[Record], offsets: bool = False, most: int | None = None
    ) -> Iterator[TokenizedRecord]:
        """Yield the token ids of each record, up to `most`."""
        for record in records:
            yield TokenizedRecord(record.index, record.id, np.array(record.text.split()[:most], np.int32), record.meta)

    def special_tokens(self) -> SpecialTokenIds:
        """Return no special tokens."""
        return SpecialTokenIds()


class Output:
    """The results of a step of n rows."""

    def __init__(self, scheduler: Scheduler, values: dict[str, np.ndarray], seconds: float):
        self._scheduler, self._values = scheduler, values
        self._ready = scheduler.now + seconds

    def parts(self) -> list[ValuesPart]:
        """Wait for the step and return the values."""
        if self._scheduler.now < self._ready:
            self._scheduler.park(self._ready - self._scheduler.now)
        return [ValuesPart(name, np.arange(len(rows)), slice(None), rows) for name, rows in self._values.items()]

    def facts(self) -> dict[str, Facts]:
        """Return the statistics."""
        return {name: _facts(rows.astype(np.float64)) for name, rows in self._values.items()}


def _facts(rows: np.ndarray) -> Facts:
    norms = np.sqrt((rows**2).sum(axis=1)).astype(np.float32)
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    return Facts(rows.sum(axis=0), (rows**2).sum(axis=0), norms, largest)


class StandInStep:
    """A device: bytes from tokens. Devices of another `flavour` round differently."""

    weights_digest = "sha256:weights"

    def __init__(self, scheduler: Scheduler, options: StepOptions, flavour: int, seconds: float):
        self.widths = dict.fromkeys(options.hook_points, 3)
        self._scheduler, self._dtype, self._flavour = scheduler, dtype_named(options.store_dtype), flavour
        self._seconds = seconds

    def __call__(self, tokens, segment_ids, positions, slots, pooled=None, targets=None) -> Output:
        """Dispatch a step; arguments as those of `models.step.Step`."""
        base = (tokens.reshape(-1)[slots] % 97 + 1.0) * (1 + positions.reshape(-1)[slots])
        values = {
            name: (base[:, None] / np.arange(1, width + 1) + self._flavour / 8).astype(self._dtype)
            for name, width in self.widths.items()
        }
        return Output(self._scheduler, values, self._seconds * self._scheduler.random.uniform(0.2, 1.8))


class Workload:
    """The streams of workload `number`, and how they are extracted."""

    def __init__(self, number: int):
        draw = random.Random(number)
        self.number, self.num_streams = number, 1 + number % 3
        self.seconds_of_a_step = draw.choice((0.05, 1.0, 20.0))
        rows = [self._rows(draw, stream) for stream in range(self.num_streams)]
        self._tables = [pyarrow.Table.from_pydict({"id": ids, "text": texts}, _SCHEMA) for ids, texts in rows]
        entries = tuple(StreamEntry(len(ids), digest_of(repr(ids).encode()), ()) for ids, _ in rows)
        total, digest = sum(entry.num_records for entry in entries), digest_of(repr(rows).encode())
        self.manifest = Manifest("text", "memory", None, {}, self.num_streams, total, (), entries, digest)
        selection = Selection.parse(draw.choice(_SELECTIONS))
        self.selector = Selector(selection)
        hook_points = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(draw.choice((1, 1, 2))))
        dtype = draw.choice(("float32", "bfloat16"))
        self.step = StepOptions(hook_points, 2, 8, "float32", dtype, pool=selection.pools)
        self.steps_per_batch, self.long_documents = draw.choice((1, 1, 2)), draw.choice(("split", "split", "truncate"))

    def _rows(self, draw: random.Random, stream: int) -> tuple[list[str], list[str]]:
        count = draw.choice((0, 3, 6, 9, 12)) if stream else draw.randint(4, 12)
        texts = [
            " ".join(str(draw.randrange(1000)) for _ in range(draw.choice((0, 1, 5, 7, 8, 20)))) for _ in range(count)
        ]
        return [f"{stream}-{index}" for index in range(count)], texts

    def open_stream(self, manifest: Manifest, location: Storage | str, index: int) -> MemoryStream:
        """Return a stream, in the place of `streams.stream.open_stream`."""
        return MemoryStream(manifest, index, self._tables[index])

    def plan(self, output: Storage, stream: int | None, idle_after: float) -> RunPlan:
        """Return the plan of a worker."""
        config: Any = CONFIG
        model = ModelPlan(ModelFolder(Path("model"), "model", "revision"), config, self.step.hook_points)
        return RunPlan(
            model=model, step=self.step, tokenizer=Tokenizer(), selector=self.selector, manifest=self.manifest,  # type: ignore[arg-type]
            streams=STREAMS, output=output, hardware=Hardware("simulated", 1, None, "float32"),
            steps_per_batch=self.steps_per_batch, bos="never", long_documents=self.long_documents, max_records=None,
            stream=stream, idle_after=idle_after, compile_cache="", agreed=None, queue_bytes=60_000, progress=False,
            metrics_port=None, metrics_host="127.0.0.1",
        )  # fmt: skip
