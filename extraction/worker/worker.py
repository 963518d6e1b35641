"""One worker: a plan in, its stream extracted to the end or a domain error out.

In: a `RunPlan`, and an event that asks the worker to stop. Out: commits in the worker's folder. Guarantee: a worker
that is started again with the same flags continues at the cursor of its chain, whatever ended it before. Cost: the
start, which is imports, the weights and one compilation; then what the loop costs.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import checkpoint

from ..batching.packing import PackedBatch
from ..batching.stream_batches import stream_batches
from ..core.count_of import count_of
from ..core.errors import InvalidRequest, Stopped
from ..core.logs import say
from ..core.threads import in_background
from ..core.versions import version_differences
from ..format.commit import Attempt, Commit
from ..format.dtypes import dtype_named
from ..format.not_finite import described
from ..format.run_config import RunConfig, RunDescription
from ..format.run_extension import Extent
from ..models.accelerators import KINDS
from ..models.cost import ideal_flops
from ..models.step import Step, load_step
from ..streams.extensions import parts_of
from ..streams.manifest import Manifest
from ..streams.stream import open_stream
from .attempts import new_attempt, note_begin, note_failure, note_first_commit, retry_if_fenced_by_own_launcher
from .claims import StreamChooser, work_all
from .compile_cache import CompileCache
from .known_answer import answer_of, check_answer
from .loop import BatchLayout, run_pipeline
from .metrics import Metrics, serve_metrics
from .progress_writer import ProgressWriter
from .resolve import RunPlan
from .shutdown import Stop
from .uploader import Uploader

if not hasattr(checkpoint, "join_run"):
    raise InvalidRequest(
        f"{checkpoint.__file__} hides this project's module of the same name: rename it and start again"
    )

BATCHES_AHEAD = 2  # packed and waiting for the loop


@dataclass(frozen=True)
class JoinedRun:
    """A run that this attempt takes part in, with the model loaded; it serves one stream after the other."""

    plan: RunPlan
    description: RunDescription
    step: Step
    metrics: Metrics | None

    @property
    def config(self) -> RunConfig:
        """The run config that is stored."""
        return self.description.config


def extract(plan: RunPlan, stop: Stop, begin: float) -> None:
    """Extract one stream to its end, or with `--stream any` one after the other.

    `begin` is when the process began, by `time.perf_counter`. Raises domain errors.
    """
    plan.output.check_writable()
    if plan.stream is None:
        with serve_metrics(plan.metrics_port, plan.metrics_host) as metrics:
            _extract_any(join(plan, begin, metrics), stop)
        return
    attempt = new_attempt()
    with note_failure(plan.output, plan.stream, attempt), retry_if_fenced_by_own_launcher(attempt):
        note_begin(plan.output, plan.stream, attempt)
        with serve_metrics(plan.metrics_port, plan.metrics_host) as metrics:
            extract_stream(join(plan, begin, metrics), plan.stream, attempt, stop)


def _extract_any(run: JoinedRun, stop: Stop) -> None:
    output = run.plan.output
    chooser = StreamChooser(output, run.plan.manifest.num_streams, run.plan.idle_after)

    def work_one(number: int, attempt: Attempt) -> None:
        with note_failure(output, number, attempt):
            extract_stream(run, number, attempt, stop)

    work_all(chooser, work_one, say, stop)
    say("all streams are finished")


def join(plan: RunPlan, begin: float, metrics: Metrics | None) -> JoinedRun:
    """Load the model, and create `run.json` or compare with the one that is there."""
    say(f"loading {plan.model.location}, then compiling its step on {plan.hardware.name}")
    with CompileCache(plan.compile_cache, plan.agreed) as cache:
        step = load_step(plan.model.folder, plan.model.config, plan.step, cache.folder)
    config, vocab_size = plan.run_config(step.weights_digest), plan.model.config.vocab_size
    sizes = tuple(config.limit(stream.num_records) for stream in plan.manifest.streams)
    own = RunDescription(
        config, plan.streams, plan.tokenizer.special_tokens(), sizes, plan.versions, plan.model.location,
        cache.entries, answer_of(step, vocab_size),
    )  # fmt: skip
    run = checkpoint.join_run(plan.output, own, plan.manifest.digests)
    if plan.stream is None or plan.stream >= len(run.records_per_stream):
        run = checkpoint.extend_run(plan.output, run, _extents(plan.manifest, run.config))
    for line in version_differences(run.versions, own.versions):
        say(f"this worker differs from the one that began the run: {line}", "WARNING")
    origin, answer = "from the cache" if cache.held_step else "compiled", own.known_answer
    if cache.held_step and answer.digest != run.known_answer.digest:
        step = load_step(plan.model.folder, plan.model.config, plan.step, "")
        origin, answer = (
            "compiled again, because the cached step gives other values than the run",
            answer_of(step, vocab_size),
        )
    check_answer(run.known_answer, answer, plan.step.compute_dtype)
    seconds = time.perf_counter() - begin
    say(f"ready on {plan.hardware.name} (mesh {plan.step.mesh}), step {origin}, after {seconds:.1f} s")
    return JoinedRun(plan, run, step, metrics)


def _extents(manifest: Manifest, config: RunConfig) -> list[Extent]:
    """Return the digest of each part of the streams, and how many records of each of its streams are extracted."""
    return [
        Extent(part.digest, tuple(config.limit(stream.num_records) for stream in part.manifest.streams))
        for part in parts_of(manifest)
    ]


def extract_stream(run: JoinedRun, number: int, attempt: Attempt, stop: Stop) -> None:
    """Extract one stream from the cursor of its chain to its end. Raises Stopped if asked to stop before it."""
    stream = open_stream(run.plan.manifest, run.plan.streams, number)
    chain = checkpoint.CommitChain.load(run.plan.output, number, run.config.fingerprint, run.description.root(number))
    chain.attempt = replace(attempt, versions=run.plan.versions)
    total = run.config.limit(stream.num_records)
    say(f"at record {chain.cursor.record:,} of {total:,}", worker=number)
    if chain.end_of_stream:
        say("the stream is complete", worker=number)
        return
    packed = stream_batches(stream, run.config, run.plan.tokenizer, run.plan.selector, chain.cursor)
    batches = until(in_background(packed, BATCHES_AHEAD), stop)
    done, visible = chain.cursor.record, run.plan.progress
    progress = ProgressWriter(chain.storage, number, total, done, visible, peak_rate(run.plan))
    first_batch = chain.next_batch
    layout = BatchLayout(number, run.step.widths, dtype_named(run.config.store_dtype))

    def on_commit(commit: Commit) -> None:
        if commit.batch == first_batch:
            note_first_commit(commit)
        progress.on_commit(commit)
        if run.metrics:
            run.metrics.on_commit(commit)

    stop.busy = True
    try:
        with Uploader(chain.commit, run.plan.queue_bytes, on_commit) as writer:
            times = run_pipeline(batches, layout, run.step, chain.next_batch, writer.submit, progress.on_step)
    finally:
        stop.busy = False
        progress.close()
    for line in times.table():
        say(line, worker=number)
    if chain.totals.not_finite:
        say(f"not finite in this stream: {described(chain.totals.not_finite)}", "WARNING", number)
    if not chain.end_of_stream:
        raise Stopped(
            f"worker {number} was asked to stop; {count_of(chain.cursor.record, 'record is', 'records are')} committed"
        )
    say(f"stream complete, {count_of(total, 'record')}", worker=number)


def peak_rate(plan: RunPlan) -> float | None:
    """Return the tokens per second at the published peak of the chips, None for chips without one."""
    chip, step = KINDS.get(plan.hardware.name.partition(" x ")[2]), plan.step
    return chip and step.num_slots * chip.flops_in(step.compute_dtype) / ideal_flops(plan.model.config, step)


def until(items: Iterable[PackedBatch], stop: Stop) -> Iterator[PackedBatch]:
    """Yield the items until `stop` is set."""
    for item in items:
        if stop.is_set():
            return
        yield item
