"""The flags of `run`, `plan` and `parity`, as given: what the three share is defined once.

`resolve` turns them into plans; nothing else parses a flag. Only click is imported, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Any

import click

from ..core.flags import flag
from ..format.dtypes import STORE_DTYPES
from ..models.hooks import DEFAULT_HOOKS

ANY_STREAM = "any"
WORKER_ID_VARIABLES = (  # in the order of launch_worker.sh
    "WORKER_ID",
    "EXTRACT_WORKER_ID",
    "TPU_WORKER_ID",
    "JOB_COMPLETION_INDEX",
    "SLURM_ARRAY_TASK_ID",
    "SKYPILOT_JOB_RANK",
)
AT_LEAST_1, AT_LEAST_0 = click.IntRange(1), click.IntRange(0)
POSITIVE = click.FloatRange(0, min_open=True)


class NumberOr(click.ParamType):
    """A number of at least `least`, or a word."""

    def __init__(self, word: str, least: int):
        self.name, self._word, self._least = f"NUMBER|{word}", word, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number or the word; fail as click does for anything else."""
        return self._word if value == self._word else click.IntRange(self._least).convert(value, param, ctx)


@dataclass(frozen=True, kw_only=True)
class StepFlags:
    """The model, the hook points and the compiled step."""

    model: str = flag(help="Hub id, folder or gs:// folder of a Hugging Face model.")
    revision: str | None = flag(None, help="Branch, tag or commit of a hub model; pinned to a commit in run.json.")
    layers: str | None = flag(None, help="Layers from 0: all, a list 0,6,12 or a range 0:24:2; -1 is the last.")
    hooks: str = flag(DEFAULT_HOOKS, help="Short names such as resid_post, mlp_in; or transcoder, clt, crosscoder.")
    hook_points: str | None = flag(None, help="Full names or globs, besides or instead of --layers.")
    seq_len: int = flag(2048, type=AT_LEAST_1, help="T, tokens in a row.")
    batch_size: int | str = flag(32, type=NumberOr("auto", 1), help="B, rows in a step; auto: by chips and memory.")
    compute_dtype: str = flag(
        "auto",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        help="auto is bfloat16 on TPU and GPU, float32 on CPU.",
    )
    store_dtype: str = flag(
        "bfloat16", type=click.Choice(list(STORE_DTYPES)), help="int8 and float8_e4m3fn have a scale for each token."
    )
    attention: str = flag(
        "auto",
        type=click.Choice(["auto", "plain"]),
        help="auto is the kernel for the device, checked at the start; plain is XLA's and slower.",
    )
    mesh: str | None = flag(
        None,
        help="data=4,model=2: 4 groups of devices split the rows, 2 devices in each group split the weights. By "
        "default chosen by memory.",
    )


@dataclass(frozen=True, kw_only=True)
class RunFlags(StepFlags):
    """The flags of `run`."""

    streams: str = flag(help="Folder or gs:// prefix made by create_dataset_streams.py.")
    output: str = flag(help="Folder or gs:// prefix of the run; the same for all workers.")
    worker_id: int | None = flag(
        None, type=AT_LEAST_0, envvar=WORKER_ID_VARIABLES, help="Number of this worker, from 0."
    )
    stream: int | str | None = flag(
        None, type=NumberOr(ANY_STREAM, 0), help="Stream to work on, by default the worker's number; or any."
    )
    idle_after: float = flag(
        300.0,
        type=click.FloatRange(0),
        help="With --stream any: seconds without a commit after which another worker's stream may be taken.",
    )
    steps_per_batch: int | None = flag(
        None,
        type=AT_LEAST_1,
        help="Steps in one batch file; by default as many as give 128 MiB or take 30 s, whichever is less.",
    )
    bos: str = flag(
        "auto",
        type=click.Choice(["auto", "always", "never"]),
        help="Whether a record begins with the beginning-of-text token; auto: as the model was trained.",
    )
    long_documents: str = flag(
        "split",
        type=click.Choice(["split", "truncate"]),
        help="Records longer than T: split into windows of T, or cut after T.",
    )
    positions: str = flag(
        "all",
        help="Tokens of a record to store: all, last, mean (of each window), every:K, a list 0,1,-1, a slice 1:, or "
        "a span of the record's meta: answer, test-input; of chats assistant, user, system, think, turn-end.",
    )
    drop_special: bool = flag(False, is_flag=True, help="Store no special tokens, and leave them out of means.")
    max_records: int | None = flag(None, type=AT_LEAST_0, help="Use only the first records of each stream.")
    compile_cache: str = flag("~/.cache/activation-extraction/xla", help="Folder or gs:// prefix of compiled steps.")
    queue_mib: int = flag(
        512, type=AT_LEAST_1, help="MiB of batch files that may wait for upload; when they are full, computing waits."
    )
    progress: bool = flag(True, name="--progress/--no-progress", help="Show progress.")
    metrics_port: int | None = flag(None, type=click.IntRange(0, 65535), help="Serve Prometheus metrics on this port.")
    metrics_host: str = flag("127.0.0.1", help="Address to serve metrics on; 0.0.0.0 is all of them.")


@dataclass(frozen=True, kw_only=True)
class PlanFlags(StepFlags):
    """The flags of `plan`. Rates in GB/s of one host, prices in `currency`, the deadline in hours."""

    accelerator: str = flag(
        help="v5litepod-8, v6e-4, ...; a GPU: h100, h200, a100, l4 (h100:8 is eight of them); or cpu."
    )
    streams: str | None = flag(None, help="For the time, size and price of a whole manifest.")
    positions: str = flag("all", help="As for run.")
    drop_special: bool = flag(False, is_flag=True, help="As for run.")
    batch_size: int | str = flag("auto", type=NumberOr("auto", 1), help="B, rows in a step; auto: by chips and memory.")
    efficiency: float | None = flag(
        None,
        type=click.FloatRange(0, 1, min_open=True),
        help="Share of a chip's peak that is reached: by default 0.5, assumed; 0.75 on a CPU, as measured.",
    )
    peak: float | None = flag(None, type=POSITIVE, help="TFLOP/s of a chip, as measured; by default as published.")
    to_host: float | None = flag(
        None,
        type=POSITIVE,
        help="GB/s from devices to host: by default 8, assumed; 54 on Hopper, of an H200.",
    )
    upload: float = flag(1.0, type=POSITIVE, help="GB/s from host to bucket, assumed.")
    spot: bool = flag(True, name="--spot/--on-demand", is_flag=True, help="Use the spot or the on-demand price.")
    price: float | None = flag(
        None, type=click.FloatRange(0), help="Price of one chip for one hour; those of TPUs are known."
    )
    storage_price: float | None = flag(
        None, type=click.FloatRange(0), help="Price of one GiB for one month; by default that of Cloud Storage."
    )
    currency: str = flag("USD", help="Currency of --price and --storage-price; known prices are in USD.")
    workers: int | None = flag(None, type=AT_LEAST_1, help="Machines that run at once; by default one for each stream.")
    deadline: float | None = flag(None, type=POSITIVE, help="Hours that the whole manifest may take.")


@dataclass(frozen=True, kw_only=True)
class ParityFlags(StepFlags):
    """The flags of `parity`. Without --layers and --hook-points every hook point is compared."""

    streams: str | None = flag(
        None, help="Compare on the first records of stream 0 of this folder or gs:// prefix; or give --text."
    )
    text: str | None = flag(None, help="Compare on the paragraphs of this file; or give --streams.")
    records: int = flag(24, type=AT_LEAST_1, help="How many records to compare on.")
    seq_len: int = flag(512, type=AT_LEAST_1, help="T; longer records are cut.")
    batch_size: int | str = flag(2, type=AT_LEAST_1, help="B, rows in a step.")
    bos: str = flag(
        "auto",
        type=click.Choice(["auto", "always", "never"]),
        help="Whether a record begins with the beginning-of-text token; auto: as the model was trained.",
    )


@dataclass(frozen=True, kw_only=True)
class SelectFlags:
    """The flags of commands that read a part of a run."""

    only_stream: tuple[int, ...] = flag((), multiple=True, type=AT_LEAST_0, help="Only this stream; several times.")
    where: str | None = flag(None, envvar=None, help='Only records whose meta fulfils this, such as "label == 1".')
    positions: str = flag(
        "all", envvar=None, help="Only these tokens of each record: every:K, a list 0,1 or a slice 1:."
    )
