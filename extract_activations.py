"""Command line: extract activations (`run`, the default), prove what was extracted (`verify`), measure it (`parity`).

In: flags, or environment variables of the same names (`EXTRACT_SEQ_LEN`). Out: data objects and commits under OUTPUT,
lines on stderr, an exit code: 0 done, 2 usage, 65 damaged data, 73 fenced, 75 try again, 77 no permission, 78 the
configuration is not the run's. A worker may be killed at any instant and started again with the same command.
"""

import os
import signal

if __name__ == "__main__":  # told to stop while the imports below are under way: try again, as at any later moment
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(75))

import json
import sys
import traceback
from collections.abc import Callable

import click
from click_default_group import DefaultGroup

from extraction.format.run_config import STORE_DTYPES
from extraction.core.errors import (
    BucketDenied,
    ConfigurationMismatch,
    DamagedData,
    ExtractionError,
    Fenced,
    NoCredentials,
    TryAgain,
)
from extraction.core.logs import is_json, say, use_format

ADVICE = {
    DamagedData: "nothing was deleted; restore the object named above from a copy, or use a new --output",
    Fenced: "let that worker finish, or stop it and start this one again",
    TryAgain: "start the same command again; what is committed stays",
    BucketDenied: "a worker needs storage.objects.create, get and list on the bucket",
    NoCredentials: "`gcloud auth application-default login` gives them, or a service account of the machine",
    ConfigurationMismatch: "use the run's own flags, or a new --output",
}
WORKER_ID_VARIABLES = (
    "EXTRACT_WORKER_ID", "WORKER_ID", "TPU_WORKER_ID", "JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID", "SKYPILOT_JOB_RANK",
)


class NumberOr(click.ParamType):
    """A number of at least `least`, or a word."""

    def __init__(self, word: str, least: int):
        self.name, self._word, self._least = f"NUMBER|{word}", word, least

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return value if value == self._word else click.IntRange(self._least).convert(value, param, ctx)


def option(flag: str, **settings: object) -> Callable:
    """A click option that also reads `EXTRACT_<FLAG>`."""
    variable = "EXTRACT_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(flag, **({"envvar": variable, "show_default": True} | settings))


@click.group(cls=DefaultGroup, default="run", default_if_no_args=False, context_settings={"max_content_width": 110})
def cli() -> None:
    """Language model activations over millions of documents, exactly once, on machines that vanish."""


@cli.command()
@option("--model", required=True, help="Hub id, folder or gs:// folder of a Hugging Face model.")
@option("--revision", default=None, help="Branch, tag or commit of a hub model; pinned to a commit in run.json.")
@option("--streams", required=True, help="Folder or gs:// prefix made by create_dataset_streams.py.")
@option("--output", required=True, help="Folder or gs:// prefix of the run; the same for all workers.")
@option("--worker-id", type=click.IntRange(0), envvar=WORKER_ID_VARIABLES, help="Number of this worker, from 0.")
@option("--stream", type=NumberOr("any", 0), help="Stream to work on, by default the worker's number; or any.")
@option("--idle-after", default=300.0, type=click.FloatRange(0),
        help="With --stream any: seconds without a commit after which another worker's stream may be taken.")
@option("--layers", default=None, help="all, a list, ranges 0:24:2, negatives.")
@option("--hooks", default="resid_post", help="Short names: resid_pre, attn_out, resid_mid, mlp_out, resid_post, z, post.")
@option("--hook-points", default=None, help="Full names or globs, besides or instead of --layers.")
@option("--seq-len", default=2048, type=click.IntRange(1), help="T, tokens in a row.")
@option("--batch-size", default=32, type=NumberOr("auto", 1), help="B, rows in a step; auto: by chips and memory.")
@option("--steps-per-batch", type=click.IntRange(1), help="Steps in one data object; by default 128 MiB of them, or 30 s.")
@option("--bos", default="auto", type=click.Choice(["auto", "always", "never"]), help="Begin records with this token?")
@option("--long-documents", default="split", type=click.Choice(["split", "truncate"]), help="Records longer than T.")
@option("--compute-dtype", default="auto", type=click.Choice(["auto", "float32", "bfloat16"]),
        help="auto is bfloat16 on TPU and GPU, float32 on CPU.")
@option("--store-dtype", default="bfloat16", type=click.Choice(list(STORE_DTYPES)),
        help="int8 and float8_e4m3fn have a scale for each token.")
@option("--positions", default="all",
        help="Tokens of a record to store: all, last, mean (of each window), every:K, a list 0,1,-1, answer, test-input.")
@option("--drop-special", is_flag=True, help="Store no special tokens, and leave them out of means.")
@option("--max-records", type=click.IntRange(0), help="Use only the first records of each stream.")
@option("--mesh", default=None, help="data=4,model=2: devices that share the rows, and the weights; chosen by memory.")
@option("--compile-cache", default="~/.cache/activation-extraction/xla", help="Folder or gs:// prefix of compiled steps.")
@option("--queue-mib", default=512, type=click.IntRange(1), help="Data that may wait for upload; then compute waits.")
@option("--progress/--no-progress", default=True, help="Show progress.")
@option("--log-format", default="text", type=click.Choice(["text", "json"]), help="json is for Google Cloud Logging.")
@option("--metrics-port", type=click.IntRange(0, 65535), help="Serve Prometheus metrics on this port.")
def run(log_format: str, **flags: object) -> None:
    """Extract the activations of one stream into this worker's folder; go on where it was."""
    from extraction.worker.shutdown import stop_when_told

    use_format(log_format)
    stop = stop_when_told()
    # Where torch is installed transformers imports it, which takes a second that no worker has a use for.
    sys.modules.setdefault("torch", None)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    from extraction.worker.worker import RunOptions, extract

    extract(RunOptions(**flags), stop)


@cli.command()
@click.argument("output")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in a line instead of a table.")
@click.option("--watch", is_flag=True, help="Show it anew until the run is finished.")
@click.option("--every", default=10.0, show_default=True, help="With --watch: seconds between two looks.")
@click.option("--rows", default=40, show_default=True, help="Streams in the table, those in trouble first.")
@click.option("--stuck-after", default=900.0, show_default=True, help="Seconds without a commit that are too long.")
def status(output: str, as_json: bool, watch: bool, every: float, rows: int, stuck_after: float) -> None:
    """Shows who is where, at which pace, and who is in trouble.

    Exit 0: every stream is finished. 75: not yet.
    """
    from rich.console import Console

    from extraction.tools import status as library

    console = Console(width=None if sys.stdout.isatty() else library.WIDTH)
    if watch and as_json:
        found = library.watch(output, stuck_after, every, lambda found: click.echo(json.dumps(found.to_json())))
    elif watch:
        found = library.watch_table(output, stuck_after, every, rows, console)
    else:
        found = library.read_status(output, stuck_after)
        if as_json:
            click.echo(json.dumps(found.to_json()))
        else:
            console.print(library.table(found, rows, console.width))
    sys.exit(found.exit_code)


@cli.command()
@option("--tpu", required=True, help="Slice of one host, such as v5litepod-8.")
@option("--model", required=True, help="As for run; of a hub model only the small files are fetched.")
@option("--revision", default=None, help="Branch, tag or commit of a hub model.")
@option("--streams", default=None, help="For the time, size and price of a whole manifest.")
@option("--layers", default=None, help="As for run, like the next flags.")
@option("--hooks", default="resid_post")
@option("--hook-points", default=None)
@option("--positions", default="all")
@option("--drop-special", is_flag=True)
@option("--seq-len", default=2048, type=click.IntRange(1))
@option("--batch-size", type=click.IntRange(1), show_default="chosen", help="B, rows in a step.")
@option("--compute-dtype", default="bfloat16", type=click.Choice(["float32", "bfloat16"]))
@option("--store-dtype", default="bfloat16", type=click.Choice(list(STORE_DTYPES)))
@option("--mesh", default=None, help="data=4,model=2; chosen by memory.")
@option("--efficiency", default=0.5, type=click.FloatRange(0, 1, min_open=True),
        help="Share of the chip's published peak that is reached.")
@option("--to-host", default=8.0, type=click.FloatRange(0, min_open=True), help="GB/s from devices to host, assumed.")
@option("--upload", default=1.0, type=click.FloatRange(0, min_open=True), help="GB/s from host to bucket, assumed.")
@option("--price", type=click.FloatRange(0), help="Of one chip for one hour.")
@option("--deadline", type=click.FloatRange(0, min_open=True), help="Hours that the whole manifest may take.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; keys as in extraction/tools/plan.py.")
def plan(as_json: bool, **flags: object) -> None:
    """Say what a run will take, before anything is rented: memory, rate, size, hours, price, and what limits it."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the step is compiled for the slice, not run
    sys.modules.setdefault("torch", None)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from extraction.tools.plan import PlanOptions, make_plan

    made = make_plan(PlanOptions(**flags))
    click.echo(json.dumps(made.to_json()) if as_json else made.to_text())


@cli.command()
@click.argument("output")
@option("--streams", default=None, help="Where the streams are, if not where run.json says.")
@click.option("--deep", is_flag=True, help="Read every data object too, and check what it holds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; keys as in extraction/audit/findings.py.")
def verify(output: str, streams: str | None, deep: bool, as_json: bool) -> None:
    """Prove that every token of every record is in OUTPUT exactly once, or say what is missing.

    Exit 0: proven. 65: damaged, a line for each thing. 75: nothing wrong, but not all streams are finished.
    """
    from extraction.audit.verify import audit_run

    audit = audit_run(output, streams, deep, visible=sys.stderr.isatty())
    click.echo(json.dumps(audit.to_json()) if as_json else audit.to_text())
    sys.exit(audit.exit_code)


@cli.command()
@click.argument("output")
@click.option("--html", required=True, help="File to write, one page that needs nothing else.")
@option("--streams", default=None, help="Where the streams are, if not where run.json says.")
@option("--tokenizer", default=None, help="Folder or tokenizer.json, to show what outstanding tokens say.")
def report(output: str, html: str, streams: str | None, tokenizer: str | None) -> None:
    """Draw what was extracted: progress, norms, tokens that stand out, lengths, times, and the proof."""
    from extraction.tools.report import write_report

    facts = write_report(output, html, streams, tokenizer)
    click.echo(f"{html}: {facts.num_tokens:,} tokens of {output}, {facts.verdict}")


@cli.command()
@click.argument("output")
@click.option("--to", "layout", required=True, type=click.Choice(["npy", "openmoss", "saelens"]))
@click.option("--folder", required=True, help="A new local folder.")
@click.option("--hook-point", multiple=True, help="May be given more than once; by default all.")
@click.option("--context-size", type=click.IntRange(1),
              help="Tokens in a row: SAELens, 128 by default; OpenMOSS, rows of one record each, without it no rows.")
def export(output: str, layout: str, folder: str, hook_point: tuple[str, ...], context_size: int | None) -> None:
    """Write what is committed in the layout of another tool."""
    from extraction.read.exports import ExportOptions
    from extraction.read.exports import export as write

    tokens = write(output, layout, folder, ExportOptions(hook_point or None, context_size))
    click.echo(f"{folder}: {tokens:,} tokens of {output}")


@cli.command()
@option("--model", required=True, help="Hub id or folder of a Hugging Face model.")
@option("--revision", default=None, help="Branch, tag or commit of a hub model.")
@option("--streams", default=None, help="Compare on the first records of stream 0 of this folder or gs:// prefix,")
@option("--text", default=None, help="or on the paragraphs of this file.")
@option("--records", default=24, type=click.IntRange(1), help="How many.")
@option("--layers", default=None, help="As for run; every hook point if neither it nor --hook-points is given.")
@option("--hooks", default="resid_post", help="As for run.")
@option("--hook-points", default=None, help="As for run.")
@option("--seq-len", default=512, type=click.IntRange(1), help="T; longer records are cut.")
@option("--batch-size", default=2, type=click.IntRange(1), help="B, rows in a step.")
@option("--bos", default="auto", type=click.Choice(["auto", "always", "never"]), help="Begin records with this token?")
@option("--compute-dtype", default="auto", type=click.Choice(["auto", "float32", "bfloat16"]), help="As for run.")
@option("--store-dtype", default="bfloat16", type=click.Choice(list(STORE_DTYPES)), help="As for run.")
@option("--mesh", default=None, help="As for run.")
@click.option("--max-error", type=click.FloatRange(0), help="Exit 1 if a hook point's relative error is above it.")
@click.option("--output", default=None, help="Also store the result in this run, as parity-<digest>.json.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def parity(max_error: float | None, output: str | None, as_json: bool, **flags: object) -> None:
    """Measure how far activations are from those of the Hugging Face model in float32, per hook point; needs torch.

    Token ids are checked against tokenizer.json alone, and AutoTokenizer's are counted where they differ.

    Exit 0: measured. 1: above --max-error.
    """
    from extraction.tools.parity import ParityOptions, measure

    found = measure(ParityOptions(**flags))
    click.echo(json.dumps(found.to_json()) if as_json else found.to_text())
    if output:
        click.echo(f"stored as {found.store(output)}", err=True)
    if max_error is not None and found.worst > max_error:
        click.echo(f"a relative error of {found.worst:.2e} is above --max-error {max_error:g}", err=True)
        sys.exit(1)


def main() -> None:
    """Run the command line; a domain error is one line with advice, and its exit code."""
    try:
        cli()
    except SystemExit as ended:
        code = ended.code or 0
    except ExtractionError as error:
        advice = next((f"\n  {text}" for kind, text in ADVICE.items() if isinstance(error, kind)), "")
        say(f"{error}{advice}", "ERROR")
        code = error.exit_code
    except Exception:
        if not is_json():
            raise
        say(traceback.format_exc().rstrip(), "ERROR")  # as one entry of the log
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything durable is durable by now; threads of ours or of a library must not hold or break the exit.
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
