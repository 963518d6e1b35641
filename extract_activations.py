"""Command line: extract activations (`run`, the default) and prove what was extracted (`verify`).

In: flags, or environment variables of the same names (`EXTRACT_SEQ_LEN`). Out: data objects and commits under OUTPUT,
lines on stderr, an exit code: 0 done, 2 usage, 65 damaged data, 73 fenced, 75 try again, 77 no permission, 78 the
configuration is not the run's. A worker may be killed at any instant and started again with the same command.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from click_default_group import DefaultGroup

from extraction.errors import ConfigurationMismatch, DamagedData, ExtractionError, Fenced, PermissionDenied, TryAgain
from extraction.records import Record

GRACE_SECONDS = 8
ADVICE = {
    DamagedData: "nothing was deleted; restore the object named above from a copy, or use a new --output",
    Fenced: "let that worker finish, or stop it and start this one again",
    TryAgain: "start the same command again; what is committed stays",
    PermissionDenied: "a worker needs storage.objects.create, get and list on the bucket",
    ConfigurationMismatch: "use the run's own flags, or a new --output",
}
WORKER_ID_VARIABLES = (
    "EXTRACT_WORKER_ID", "WORKER_ID", "TPU_WORKER_ID", "JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID", "SKYPILOT_JOB_RANK",
)


@dataclass(frozen=True)
class RunOptions:
    """The flags of `run`, as given."""

    model: str
    revision: str | None
    streams: str
    output: str
    worker_id: int | None
    stream: int | None
    layers: str | None
    hooks: str
    hook_points: str | None
    seq_len: int
    batch_size: int
    steps_per_batch: int | None
    bos: str
    long_documents: str
    compute_dtype: str
    store_dtype: str
    max_records: int | None
    compile_cache: str
    queue_mib: int
    progress: bool


def option(flag: str, **settings: object):
    """A click option that also reads `EXTRACT_<FLAG>`."""
    variable = "EXTRACT_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(flag, **({"envvar": variable, "show_default": True} | settings))


@click.group(cls=DefaultGroup, default="run", default_if_no_args=False, context_settings={"max_content_width": 110})
def cli() -> None:
    """Language model activations over millions of documents, exactly once, on machines that vanish."""


@cli.command()
@option("--model", required=True, help="Hub id or folder with config.json, *.safetensors and tokenizer.json.")
@option("--revision", default=None, help="Branch, tag or commit of a hub model; pinned to a commit in run.json.")
@option("--streams", required=True, help="Folder or gs:// prefix made by create_dataset_streams.py.")
@option("--output", required=True, help="Folder or gs:// prefix of the run; the same for all workers.")
@option("--worker-id", type=click.IntRange(0), envvar=WORKER_ID_VARIABLES, help="Number of this worker, from 0.")
@option("--stream", type=click.IntRange(0), help="Stream and folder to work on; by default the worker's number.")
@option("--layers", default=None, help="all, a list, ranges 0:24:2, negatives.")
@option("--hooks", default="resid_post", help="Short names: resid_pre, attn_out, resid_mid, mlp_out, resid_post, z, post.")
@option("--hook-points", default=None, help="Full names or globs, besides or instead of --layers.")
@option("--seq-len", default=2048, type=click.IntRange(1), help="T, tokens in a row.")
@option("--batch-size", default=32, type=click.IntRange(1), help="B, rows in a step.")
@option("--steps-per-batch", type=click.IntRange(1), help="Steps in one data object; by default about 128 MiB of them.")
@option("--bos", default="auto", type=click.Choice(["auto", "always", "never"]), help="Begin records with this token?")
@option("--long-documents", default="split", type=click.Choice(["split", "truncate"]), help="Records longer than T.")
@option("--compute-dtype", default="auto", type=click.Choice(["auto", "float32", "bfloat16"]),
        help="auto is bfloat16 on TPU and GPU, float32 on CPU.")
@option("--store-dtype", default="bfloat16", type=click.Choice(["bfloat16", "float16", "float32"]))
@option("--max-records", type=click.IntRange(0), help="Use only the first records of each stream.")
@option("--compile-cache", default="~/.cache/activation-extraction/xla", help="Folder of compiled steps; '' for none.")
@option("--queue-mib", default=512, type=click.IntRange(1), help="Data that may wait for upload; then compute waits.")
@option("--progress/--no-progress", default=True, help="Show progress.")
def run(**flags: object) -> None:
    """Extract the activations of one stream into this worker's folder; go on where it was."""
    stop = stop_on_sigterm()
    extract(RunOptions(**flags), stop)


@cli.command()
@click.argument("output")
@option("--streams", default=None, help="Where the streams are, if not where run.json says.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def verify(output: str, streams: str | None, as_json: bool) -> None:
    """Prove that every token of every record is in OUTPUT exactly once, or say what is missing.

    Exit 0: proven. 65: damaged, a line for each thing. 75: nothing wrong, but not all streams are finished.
    """
    import checkpoint
    from extraction.audit import Expected, audit_worker
    from extraction.storage import open_storage
    from extraction.streams import load_manifest, open_stream

    storage = open_storage(output)
    run_description = checkpoint.read_run(storage)
    location = streams or run_description["streams"]
    manifest = load_manifest(location)
    if manifest.digest != run_description["configuration"]["manifest_digest"]:
        raise ConfigurationMismatch(f"{location}/manifest.json is not the manifest that {output} was made from")
    limit = run_description["configuration"]["max_records"]
    audits = []
    for index in range(manifest.num_streams):
        source = open_stream(manifest, location, index)
        total = source.num_records if limit is None else min(limit, source.num_records)
        audits.append(audit_worker(storage, index, run_description["fingerprint"], Expected(total, source.read_ids)))
    sys.exit(report_audits(audits, output, as_json))


def report_audits(audits: list, output: str, as_json: bool) -> int:
    """Print what an audit found; returns the exit code."""
    problems = [problem for audit in audits for problem in audit.problems]
    waiting = [audit.worker_id for audit in audits if not audit.finished and not audit.problems]
    verdict = "damaged" if problems else "in progress" if waiting else "proven"
    totals = {key: sum(getattr(audit, key) for audit in audits)
              for key in ("num_records", "num_tokens", "num_batches", "num_bytes")}
    if as_json:
        workers = [vars(audit) for audit in audits]
        print(json.dumps({"verdict": verdict, "problems": problems, "unfinished": waiting, "workers": workers} | totals))
    else:
        for problem in problems:
            print(f"wrong: {problem}")
        for worker in waiting:
            print(f"not finished: worker {worker}, {audits[worker].num_records:,} records so far")
        print(
            f"{output}: {verdict}. {len(audits)} streams, {totals['num_batches']:,} batches, {totals['num_records']:,} "
            f"records, {totals['num_tokens']:,} tokens, {totals['num_bytes']:,} bytes"
            + (", each record exactly once" if verdict == "proven" else "")
        )
    return DamagedData.exit_code if problems else TryAgain.exit_code if waiting else 0


def stop_on_sigterm() -> threading.Event:
    """An event that SIGTERM and SIGINT set; GRACE_SECONDS later the process is gone whatever it does.

    A thread waits for the signals, since a handler would not run while the main thread is inside a compilation.
    """
    stop = threading.Event()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait() -> None:
        number = signal.sigwait(signals)
        print(f"{signal.Signals(number).name}: finishing what is in flight", file=sys.stderr, flush=True)
        stop.set()
        time.sleep(GRACE_SECONDS)
        os._exit(TryAgain.exit_code)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def extract(options: RunOptions, stop: threading.Event) -> None:
    """Work one stream to its end. Raises the domain errors of the library."""
    import checkpoint
    from extraction.config import ExtractionConfig, default_steps_per_batch, resolve_hook_points
    from extraction.errors import InvalidRequest
    from extraction.models.config import read_model_config
    from extraction.models.location import locate_model
    from extraction.packing import BatchShape
    from extraction.storage import open_storage
    from extraction.streams import load_manifest, open_stream
    from extraction.tokenization import RecordTokenizer

    worker_id = options.stream if options.stream is not None else options.worker_id
    if worker_id is None:
        raise InvalidRequest("--worker-id is missing: give it, or set WORKER_ID")
    begin = time.perf_counter()
    folder = locate_model(options.model, options.revision)
    model_config = read_model_config(folder.path)
    hook_points = resolve_hook_points(options.layers, options.hooks, options.hook_points, model_config.num_layers)
    output = open_storage(options.output)
    manifest = load_manifest(options.streams)
    stream = open_stream(manifest, options.streams, worker_id)
    tokenizer = RecordTokenizer(folder.path, options.bos)
    if tokenizer.vocabulary_size > model_config.vocab_size:
        raise InvalidRequest(
            f"{options.model}: the tokenizer has ids up to {tokenizer.vocabulary_size - 1}, the embedding has "
            f"{model_config.vocab_size} rows; they do not belong together"
        )
    forward = load_model(options, folder, model_config, hook_points)
    widths = {name: model_config.hook_width(name) for name in hook_points}
    steps = options.steps_per_batch or default_steps_per_batch(
        options.batch_size, options.seq_len, list(widths.values()), options.store_dtype
    )
    config = ExtractionConfig(
        model=folder.model if folder.revision else Path(folder.path).resolve().name,
        revision=folder.revision,
        weights_digest=forward.weights_digest,
        tokenizer_digest=tokenizer.digest,
        manifest_digest=manifest.digest,
        hook_points=hook_points,
        compute_dtype=forward.compute_dtype,
        store_dtype=options.store_dtype,
        seq_len=options.seq_len,
        batch_size=options.batch_size,
        steps_per_batch=steps,
        bos=options.bos,
        long_documents=options.long_documents,
        max_records=options.max_records,
    )
    details = {"fingerprint": config.fingerprint, "streams": resolve_location(options.streams)}
    checkpoint.join_run(output, config.to_json(), details)
    chain = checkpoint.CommitChain.load(output, worker_id, config.fingerprint)
    print(f"worker {worker_id}: stands at record {chain.cursor.record:,} of {stream.num_records:,}, "
          f"ready after {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    if chain.end_of_stream:
        print(f"worker {worker_id}: its stream is complete", file=sys.stderr, flush=True)
        return
    shape = BatchShape(steps, options.batch_size, options.seq_len)
    Worker(options, chain, stream, tokenizer, forward).work(shape, widths, stop)


def resolve_location(location: str) -> str:
    return location if "://" in location else str(Path(location).resolve())


def load_model(options: RunOptions, folder: object, model_config: object, hook_points: tuple[str, ...]):
    """The compiled step for these flags."""
    from extraction.forward import ForwardOptions, StepShape, load_forward

    cache = os.path.expanduser(options.compile_cache) or None
    shape = StepShape(options.batch_size, options.seq_len)
    return load_forward(
        folder, model_config, ForwardOptions(hook_points, shape, options.compute_dtype, options.store_dtype, cache)
    )


@dataclass
class Worker:
    """The parts of one worker, put together."""

    options: RunOptions
    chain: object
    stream: object
    tokenizer: object
    forward: object

    def work(self, shape: object, widths: dict[str, int], stop: threading.Event) -> None:
        """From the chain's cursor to the end of the stream. Raises TryAgain when told to stop before it."""
        from extraction.packing import pack_batches
        from extraction.pipeline import BatchInFlight, run_pipeline
        from extraction.progress import Progress
        from extraction.shards import dtype_named
        from extraction.writer import BackgroundWriter

        worker_id, dtype = self.chain.worker_id, dtype_named(self.options.store_dtype)
        total, limit = self.stream.num_records, self.options.max_records
        total = total if limit is None else min(limit, total)
        progress = Progress(self.chain.storage, worker_id, total, self.chain.cursor.record, self.options.progress)
        records = self.tokenizer.tokenize(self._records(total))
        batches = pack_batches(records, self.chain.cursor, shape, self.options.long_documents)
        try:
            with BackgroundWriter(self.chain.commit, self.options.queue_mib << 20, progress.on_commit) as writer:
                times = run_pipeline(
                    until(batches, stop),
                    lambda batch, number: BatchInFlight(batch, worker_id, number, widths, dtype),
                    self.forward,
                    self.chain.next_batch,
                    writer.submit,
                )
        finally:
            progress.close()
        print(f"worker {worker_id}: {times.summary()}", file=sys.stderr, flush=True)
        if not self.chain.end_of_stream:
            raise TryAgain(f"worker {worker_id} was told to stop; {self.chain.cursor.record:,} records are committed")
        print(f"worker {worker_id}: stream complete, {total:,} records", file=sys.stderr, flush=True)

    def _records(self, total: int) -> Iterator[Record]:
        for record in self.stream.read_records(self.chain.cursor.record):
            if record.index >= total:
                return
            yield record


def until(items: Iterable, stop: threading.Event) -> Iterator:
    """The items, until `stop` is set."""
    for item in items:
        if stop.is_set():
            return
        yield item


def main() -> None:
    """Run the command line; a domain error is one line with advice, and its exit code."""
    try:
        cli()
    except SystemExit as ended:
        code = ended.code or 0
    except ExtractionError as error:
        print(f"error: {error}", file=sys.stderr)
        advice = next((text for kind, text in ADVICE.items() if isinstance(error, kind)), None)
        if advice:
            print(f"  {advice}", file=sys.stderr)
        code = error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything durable is durable by now; threads of ours or of a library must not hold or break the exit.
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
