"""Command line: extract activations (`run`), prove them (`verify`, `repair`), measure their accuracy (`parity`).

In: flags, or environment variables of the same names (`EXTRACT_SEQ_LEN`). Out: batch files and commits under OUTPUT,
lines on stderr, an exit code: 0 done, 2 usage, 65 damaged data, 73 fenced, 75 try again, 77 no permission, 78 the run
config differs; of `status` and `verify` 75 is the answer "not finished", and 69 says that storage did not answer.
Guarantee: a worker may be killed at any instant; the same command continues. Cost: that of the command.
"""

import contextlib
import os
import signal
import sys

# SIGTERM to `run` during the imports below ends with "try again", as at any later time. Of others 75 is an answer.
if __name__ == "__main__" and "".join(sys.argv[1:2]).startswith(("run", "-")):
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(75))

import json
import secrets
import time
import traceback
from functools import partial
from pathlib import Path

BEGIN = time.perf_counter()

from typing import TYPE_CHECKING, Any

import click
from click_default_group import DefaultGroup

from extraction.core.command_group import SETTINGS, CommandGroup, version_option
from extraction.core.count_of import count_of
from extraction.core.errors import (
    BucketDenied,
    ConfigurationMismatch,
    DamagedData,
    ExtractionError,
    Fenced,
    InvalidRequest,
    NoCredentials,
    NotRead,
    TryAgain,
    as_not_read,
)
from extraction.core.flags import with_flags
from extraction.core.logs import is_json, say, use_format
from extraction.core.printable import prepare_stdout_and_stderr, printable
from extraction.worker.flags import NumberOr, ParityFlags, PlanFlags, RunFlags, SelectFlags

if TYPE_CHECKING:
    from extraction.worker.recompute import Recomputer

ADVICE = {
    DamagedData: "nothing was deleted; restore what is named above from a copy (`repair OUTPUT` recomputes a batch "
    "file), or use a new --output",
    NotRead: "nothing is said about the run; start the same command again",
    Fenced: "let that worker finish, or stop it and start this one again",
    TryAgain: "start the same command again; committed batches stay",
    BucketDenied: "a worker needs storage.objects.create, get and list on the bucket; of S3 PutObject, GetObject and "
    "ListBucket",
    NoCredentials: "`gcloud auth application-default login` gives them, or a service account of the machine; for s3:// "
    "`aws configure`, or a role of the machine",
    ConfigurationMismatch: "use the run's own flags, or a new --output",
}


ENVIRONMENT = """\b
Environment: every flag of run, plan and parity is also EXTRACT_<FLAG>, such as EXTRACT_SEQ_LEN.
  EXTRACT_RETRY_DEADLINE          seconds for which a failing request to a bucket is tried again, 120
  GOOGLE_APPLICATION_CREDENTIALS  key file for gs://; by default those of gcloud or of the machine
  STORAGE_EMULATOR_HOST           address of another server with the interface of Cloud Storage
  HF_ENDPOINT, HF_TOKEN           server and token of the hub
  GCE_METADATA_HOST               metadata server that tells of a preemption; by default that of Google's machines
  JAX_PLATFORMS, XLA_FLAGS        of jax: cpu, cuda or tpu, and the flags of its compiler
"""


class RunCommands(CommandGroup, DefaultGroup):
    """The commands; flags without a command are those of run."""


@click.group(cls=RunCommands, default="run", default_if_no_args=False, context_settings=SETTINGS, epilog=ENVIRONMENT)
@version_option
def cli() -> None:
    """Extract language model activations over millions of documents, exactly once, on preemptible machines.

    Without the name of a command, flags are those of run.
    """


@cli.command()
@with_flags(RunFlags)
@click.option(
    "--log-format",
    default="text",
    type=click.Choice(["text", "json"]),
    envvar="EXTRACT_LOG_FORMAT",
    show_envvar=True,
    show_default=True,
    help="Format of the log lines; json is for Google Cloud Logging.",
)
def run(flags: RunFlags, log_format: str) -> None:
    """Extract the activations of one stream into this worker's folder; continue where its commits end."""
    from extraction.worker.shutdown import watch_for_shutdown

    use_format(log_format)
    stop = watch_for_shutdown()
    without_torch()
    from extraction.worker.resolve import resolve_run
    from extraction.worker.worker import extract

    extract(resolve_run(flags), stop, BEGIN)


def without_torch() -> None:
    """Keep transformers from importing torch, which takes a second and which neither worker nor plan uses."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # transformers advises to install torch


@cli.command()
@click.argument("output")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in a line instead of a table.")
@click.option("--watch", is_flag=True, help="Refresh the table until the run is finished.")
@click.option("--every", default=10.0, show_default=True, help="Seconds between two refreshes of --watch.")
@click.option("--rows", default=40, show_default=True, help="Streams in the table, streams with problems first.")
@click.option(
    "--stuck-after",
    default=900.0,
    show_default=True,
    help="Seconds without a commit after which a stream is stuck. A stream that commits regularly is stuck earlier, "
    "after five times its usual interval.",
)
@click.option(
    "--price", type=click.FloatRange(0), help="Price of one chip for one hour, for the cost so far and to come."
)
@as_not_read()
def status(
    output: str, as_json: bool, watch: bool, every: float, rows: int, stuck_after: float, price: float | None
) -> None:
    """Show the state, the rate and the problems of each stream.

    Exit 0: every stream is finished. 75: not yet. 3: a stream needs a person: it failed, crashes again and again, is
    fenced, or has been stuck for --stuck-after seconds. 69: storage did not answer.
    """
    from rich.console import Console

    from extraction.tools import status as library
    from extraction.tools.status_table import WIDTH, table, watch_table

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    read = partial(library.read_status, output, stuck_after, price)
    if watch and as_json:
        found = library.watch(read, every, lambda found: click.echo(json.dumps(found.to_json())))
    elif watch:
        found = watch_table(read, every, rows, console)
    else:
        found = read()
        if as_json:
            click.echo(json.dumps(found.to_json()))
        else:
            console.print(table(found, rows, console.width))
    sys.exit(found.exit_code)


@cli.command()
@with_flags(PlanFlags)
@click.option("--json", "as_json", is_flag=True, help="One JSON object; keys as in extraction/tools/plan.py.")
def plan(flags: PlanFlags, as_json: bool) -> None:
    """Estimate a run before machines are rented: memory, rate, size, hours, price and the limiting resource."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the step is compiled for the slice, not run
    without_torch()
    from extraction.tools.plan import make_plan

    made = make_plan(flags)
    click.echo(json.dumps(made.to_json()) if as_json else made.to_text())


MODEL_OF_RUN = click.option("--model", default=None, help="Location of the model; by default the one in run.json.")
STREAMS_OF_RUN = click.option("--streams", default=None, help="Location of the streams; by default that in run.json.")


@cli.command()
@click.argument("output")
@STREAMS_OF_RUN
@MODEL_OF_RUN
@click.option("--deep", is_flag=True, help="Also read every batch file and check its content.")
@click.option("--tokens/--no-tokens", default=None, help="Tokenize the streams again and compare; on with --deep.")
@click.option("--recompute", type=NumberOr("all", 1), help="Number of batches, or all, to compute again and compare.")
@click.option("--stream", type=click.IntRange(0), help="Recompute only batches of this stream.")
@click.option("--seed", type=int, default=None, help="Seed of the draw of --recompute; by default a new one.")
@click.option("--expect", default=None, help="Digest of the run, or of one of its streams, that you kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; keys as in extraction/audit/findings.py.")
@as_not_read()
def verify(output: str, streams: str | None, as_json: bool, deep: bool, **given: Any) -> None:
    """Prove that every token of every record is in OUTPUT exactly once, or name the missing or damaged objects.

    Exit 0: proven. 65: damaged, one line for each problem. 75: no problem, but not all streams are finished.
    69: storage did not answer, so nothing is said about the run.
    """
    without_torch()
    from extraction.audit.compare_recomputed import Draw
    from extraction.audit.verify import Checks, audit_run

    draw = None
    if given["recompute"] is not None or given["stream"] is not None:
        count = None if given["recompute"] in (None, "all") else given["recompute"]
        draw = Draw(count, secrets.randbits(32) if given["seed"] is None else given["seed"], given["stream"])

    def computer(run: Any) -> "Recomputer":
        from extraction.worker.recompute import Recomputer

        return Recomputer.of(run, output, given["model"], streams)

    tokens = deep if given["tokens"] is None else given["tokens"]
    checks = Checks(tokens, given["model"], draw, computer, given["expect"], sys.stderr.isatty())
    audit = audit_run(output, streams, deep, checks)
    click.echo(json.dumps(audit.to_json()) if as_json else audit.to_text())
    sys.exit(audit.exit_code)


@cli.command()
@click.argument("output")
@STREAMS_OF_RUN
@MODEL_OF_RUN
def repair(output: str, streams: str | None, model: str | None) -> None:
    """Compute missing and damaged batch files again, and store each one whose bytes match its commit.

    Nothing is overwritten or deleted. Exit 0: every batch file is as committed. 65: not all of them are.
    """
    without_torch()
    from extraction.audit.repair import repair_run
    from extraction.worker.recompute import Recomputer

    whole = True
    for repaired in repair_run(output, lambda run: Recomputer.of(run, output, model, streams)):
        click.echo(printable(repaired.text))
        whole = whole and repaired.whole
    click.echo(f"{output}: {'every batch file is as committed' if whole else 'not every batch file is as committed'}")
    sys.exit(0 if whole else DamagedData.exit_code)


@cli.command()
@click.argument("output")
@click.option("--html", required=True, help="File to write: one self-contained page.")
@click.option("--streams", default=None, help="Location of the streams; by default the one in run.json.")
@click.option("--tokenizer", default=None, help="Folder or tokenizer.json, to show outstanding tokens as text.")
def report(output: str, html: str, streams: str | None, tokenizer: str | None) -> None:
    """Draw a run: progress, norms, outstanding tokens, lengths, times and the proof."""
    from extraction.tools.report import write_report

    facts = write_report(output, html, streams, tokenizer)
    click.echo(f"{html}: {count_of(facts.num_tokens, 'token')} of {output}, {facts.verdict}")


@cli.command()
@click.argument("output")
@click.option("--to", "layout", required=True, type=click.Choice(["npy", "openmoss", "saelens"]), help="Layout.")
@click.option("--folder", required=True, help="New local folder for the files.")
@click.option("--hook-point", multiple=True, help="Hook point to export, may be given several times; by default all.")
@click.option(
    "--context-size",
    type=click.IntRange(1),
    help="Tokens in a row: 128 by default for saelens; for openmoss a row holds tokens of one record; without the "
    "flag tokens are not arranged in rows.",
)
@with_flags(SelectFlags)
def export(
    output: str, layout: str, folder: str, hook_point: tuple[str, ...], context_size: int | None, flags: SelectFlags
) -> None:
    """Write the committed activations in the layout of another tool."""
    from extraction.read.exports import ExportOptions
    from extraction.read.exports import export as write
    from extraction.read.select import Select

    select = Select(flags.only_stream or None, flags.where, flags.positions)
    tokens = write(output, layout, folder, ExportOptions(hook_point or None, context_size, select))
    click.echo(f"{folder}: {count_of(tokens, 'token')} of {output}")


@cli.command()
@click.argument("output")
@click.option("--record", default=None, help="Id of a record to show.")
@click.option("--top-k", default=None, help="A .npy file with a direction [width]: show the rows it responds to most.")
@click.option("--direction", default=None, help="With --record: mark tokens by this direction, not by their norm.")
@click.option("--count", default=20, show_default=True, type=click.IntRange(1), help="How many rows --top-k shows.")
@click.option("--hook-point", default=None, help="Hook point; needed if the run has several.")
@click.option("--html", default=None, help="Also write a self-contained page to this file.")
@click.option("--streams", default=None, help="Location of the streams; by default the one in run.json.")
@click.option("--tokenizer", default=None, help="Folder of the model's tokenizer; by default the model in run.json.")
def show(output: str, record: str | None, top_k: str | None, direction: str | None, count: int,
         hook_point: str | None, html: str | None, streams: str | None, tokenizer: str | None) -> None:  # fmt: skip
    """Show the text that activations came from: --record ID, or --top-k DIRECTION.npy."""
    from extraction.read.reader import ActivationReader
    from extraction.read.texts import Texts
    from extraction.tools import show as library

    without_torch()
    if (record is None) == (top_k is None) or (direction is not None and record is None):
        raise InvalidRequest("give --record ID, with --direction FILE.npy if wanted, or --top-k FILE.npy")
    reader = ActivationReader(output)
    texts, hook = Texts(reader.run, streams, tokenizer), library.one_hook_point(reader, hook_point)
    found = None if direction is None else library.load_direction(direction)
    if record is not None:
        shown = [library.show_record(texts, reader.record(record, [hook]), hook, found)]
    else:
        shown = list(library.show_top(reader, texts, hook, library.load_direction(str(top_k)), count))
    for one in shown:
        click.echo(library.to_text(one))
    if html is not None:
        what = f"record {record}" if record is not None else f"the {count_of(len(shown), 'row')} of {hook} for {top_k}"
        Path(html).write_text(library.to_html(f"{what}, {output}", shown), "utf-8")
        click.echo(f"{html}: {len(shown)} shown", err=True)


@cli.command()
@click.argument("output")
@click.argument("target")
@click.option(
    "--to",
    "form",
    default="safetensors",
    show_default=True,
    type=click.Choice(["safetensors", "parquet"]),
    help="The run's files as they are, or rows in Parquet.",
)
@click.option("--licence", default="other", show_default=True, help="Licence in the head of the card.")
def publish(output: str, target: str, form: str, licence: str) -> None:  # fmt: skip
    """Publish a finished run with a card to TARGET: a folder, a bucket, or hf://datasets/ORG/NAME."""
    from extraction.tools.publish import publish as put

    click.echo(f"{target}: {count_of(put(output, target, form, licence), 'file')} of {output}")


@cli.command()
@with_flags(ParityFlags)
@click.option("--max-error", type=click.FloatRange(0), help="Exit 1 if the relative error of a hook point is larger.")
@click.option("--output", default=None, help="Run in which the result is also stored, as parity-<digest>.json.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def parity(flags: ParityFlags, max_error: float | None, output: str | None, as_json: bool) -> None:
    """Measure the error of the activations against the Hugging Face model in float32, per hook point; needs torch.

    Token ids are compared with those of tokenizer.json; records with other ids from AutoTokenizer are counted.

    Exit 0: measured. 1: above --max-error.
    """
    from extraction.tools.parity import measure

    found = measure(flags)
    click.echo(json.dumps(found.to_json()) if as_json else found.to_text())
    if output:
        click.echo(f"stored as {found.store(output)}", err=True)
    if max_error is not None and found.worst > max_error:
        click.echo(f"a relative error of {found.worst:.2e} is above --max-error {max_error:g}", err=True)
        sys.exit(1)


def main() -> None:
    """Run the command line; a domain error is one line with advice, and its exit code."""
    code: object = 0
    prepare_stdout_and_stderr()
    try:
        cli()
    except SystemExit as ended:
        code = ended.code or 0
    except ExtractionError as error:
        advice = next((f"\n  {text}" for kind, text in ADVICE.items() if isinstance(error, kind)), "")
        say(f"{error}{advice}", "ERROR")
        code = error.exit_code
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("extraction", "checkpoint"):
            raise
        extra = "datasets" if str(error.name).partition(".")[0] == "datasets" else "worker"
        say(f"the package {error.name} is missing: this command needs pip install '.[{extra}]'", "ERROR")
        code = InvalidRequest.exit_code
    except Exception:
        if not is_json():
            raise
        say(traceback.format_exc().rstrip(), "ERROR")  # as one log entry
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe
            stream.flush()
    # All writes are durable by now; background threads must not delay or break the exit.
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
