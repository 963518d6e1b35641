"""One worker, put together: options in, the stream extracted to its end or a domain error out.

In: the flags of `run`, and an event that tells the worker to stop. Out: commits in the worker's folder. Guarantee: a
worker that is started again with the same options goes on from the cursor of its chain, whatever ended it before.
Cost: the start, which is imports, the weights and one compilation; then what the pipeline costs.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import checkpoint
from checkpoint import Instance

from ..format.attempts import no_rival_to_itself, note_start, noted_ending
from .compile_cache import CompileCache
from ..format.run_config import ExtractionConfig, default_steps_per_batch, resolve_hook_points
from .claims import StreamChooser, work_all
from ..core.errors import InvalidRequest, ObjectNotFound, Stopped
from ..models.step import Forward, ForwardOptions, StepShape, default_compute_dtype, load_forward
from ..core.logs import say
from .metrics import Metrics
from ..models.config import ModelConfig
from ..models.config_file import read_model_config
from ..models.devices import open_devices
from ..models.location import ModelFolder, locate_model
from ..models.sharding import MeshShape, local_memory
from ..format.not_finite import described
from ..batching.packing import BatchShape, Cut, pack_batches
from .loop import Layout, run_pipeline
from ..tools.plan import choose_rows, ideal_flops, stored_bytes
from ..batching.token_selection import Selection, Selector
from .shutdown import Stop
from ..core.threads import in_background
from .progress import Progress
from ..batching.size_estimate import Sample, all_records, check_spans, take_sample
from ..format.safetensors import dtype_named
from ..storage import Storage, open_storage
from ..streams.stream import Manifest, Stream, load_manifest, open_stream
from ..batching.tokenizer import RecordTokenizer
from ..core.versions import software_versions, version_differences
from .uploader import BackgroundWriter

# Of transformers only configurations are used: it need not say that it misses torch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


ANY_STREAM = "any"
_LEAST_SHARE = 1 / 32  # of the tokens that are stored; objects stay within 32 times their size if a sample misleads
BATCHES_AHEAD = 2  # packed and waiting for the pipeline


@dataclass(frozen=True)
class RunOptions:
    """The flags of `run`, as given."""

    model: str
    revision: str | None
    streams: str
    output: str
    worker_id: int | None
    stream: int | str | None
    idle_after: float
    layers: str | None
    hooks: str
    hook_points: str | None
    seq_len: int
    batch_size: int | str
    steps_per_batch: int | None
    bos: str
    long_documents: str
    compute_dtype: str
    store_dtype: str
    positions: str
    drop_special: bool
    max_records: int | None
    mesh: str | None
    compile_cache: str
    queue_mib: int
    progress: bool
    metrics_port: int | None

    @property
    def number(self) -> int | str | None:
        """The stream to work on, or `any`."""
        return self.worker_id if self.stream is None else self.stream


@dataclass(frozen=True)
class Model:
    """What turns records into activations: loaded, compiled, ready."""

    folder: ModelFolder
    tokenizer: RecordTokenizer
    selector: Selector
    forward: Forward


@dataclass(frozen=True)
class Prepared:
    """A run that this start may take part in, with the model loaded: streams can be worked on, one after the other."""

    options: RunOptions
    config: ExtractionConfig
    model: Model
    manifest: Manifest
    output: Storage
    metrics: Metrics | None


@dataclass(frozen=True)
class Asked:
    """What the flags name, found and checked before anything is written to OUTPUT."""

    selection: Selection
    folder: ModelFolder
    model_config: ModelConfig
    hook_points: tuple[str, ...]
    manifest: Manifest


def extract(options: RunOptions, stop: Stop) -> None:
    """Work one stream to its end, or with `--stream any` one after the other. Raises domain errors."""
    number = options.number
    if number is None:
        raise InvalidRequest("--worker-id is missing: give it, or set WORKER_ID")
    begin, asked, output = time.perf_counter(), ask(options), open_storage(options.output)
    if number == ANY_STREAM:
        run = prepare(options, asked, begin)
        chooser = StreamChooser(output, asked.manifest.num_streams, options.idle_after)

        def work_one(number: int, instance: Instance) -> None:
            with noted_ending(output, number, instance):
                extract_stream(run, number, instance, stop)

        work_all(chooser, work_one, say, stop)
        say("all streams are finished")
        return
    instance = Instance()
    open_stream(asked.manifest, options.streams, number)
    with noted_ending(output, number, instance), no_rival_to_itself(instance):
        note_start(output, number, instance)
        extract_stream(prepare(options, asked, begin), number, instance, stop)


def ask(options: RunOptions) -> Asked:
    """Raises InvalidRequest for a flag that cannot be, and what reading configuration and manifest raises."""
    selection = Selection.parse(options.positions, options.drop_special)
    if options.mesh:
        MeshShape.parse(options.mesh)
    folder = locate_model(options.model, options.revision)
    config = read_model_config(folder.path)
    hook_points = resolve_hook_points(
        options.layers, options.hooks, options.hook_points, config.num_layers, config.absent_hooks
    )
    manifest = load_manifest(options.streams)
    check_spans(selection, manifest, options.streams)
    return Asked(selection, folder, config, hook_points, manifest)


def prepare(options: RunOptions, asked: Asked, begin: float) -> Prepared:
    """Load the model and join the run; `begin` is when the start began, by `time.perf_counter`."""
    metrics = None if options.metrics_port is None else Metrics(options.metrics_port)
    folder, model_config, hook_points, manifest = asked.folder, asked.model_config, asked.hook_points, asked.manifest
    output, location = open_storage(options.output), options.streams
    tokenizer = RecordTokenizer(folder.path, options.bos, model_config.vocab_size)
    tokenizer.require_tokens(all_records(manifest, location, options.number if options.number != ANY_STREAM else 0))
    selector = Selector(asked.selection, tokenizer.special_ids)
    cut = Cut(options.seq_len, options.long_documents, selector)
    devices = open_devices()
    sample = partial(take_sample, manifest, location, tokenizer, cut)
    options = with_sizes(options, model_config, hook_points, (output, sample))
    with CompileCache(options.compile_cache) as cache:
        step = forward_options(options, hook_points, cache.folder)
        model = Model(folder, tokenizer, selector, load_forward(folder, model_config, step))
    config = configure(options, model, manifest)
    details = {
        "fingerprint": config.fingerprint,
        "streams": absolute(options.streams),
        "special_tokens": model.tokenizer.special_tokens(),
        "records_per_stream": [config.limit(stream.num_records) for stream in manifest.streams],
    }
    run = checkpoint.join_run(output, config.to_json(), details)
    for line in version_differences(run.get("versions", {}), software_versions()):
        say(f"other software than the run was begun with: {line}", "WARNING")
    origin, seconds = "from the cache" if cache.held_step else "compiled", time.perf_counter() - begin
    say(f"ready on {devices} (mesh {model.forward.mesh}), step {origin}, after {seconds:.1f} s")
    return Prepared(options, config, model, manifest, output, metrics)


def extract_stream(run: Prepared, number: int, instance: Instance, stop: Stop) -> None:
    """Work one stream to its end, from where its chain stands."""
    stream = open_stream(run.manifest, run.options.streams, number)
    chain = checkpoint.CommitChain.load(run.output, number, run.config.fingerprint)
    chain.instance = instance
    total = run.config.limit(stream.num_records)
    say(f"stands at record {chain.cursor.record:,} of {total:,}", worker=number)
    if chain.end_of_stream:
        say("its stream is complete", worker=number)
        return
    work(run, Task(chain, stream, stop))


def absolute(location: str) -> str:
    """The location as other machines and folders would name it."""
    return location if "://" in location else str(Path(location).resolve())


def stored_share(sample: Sample) -> float:
    """Rows for each token, to choose the size of batches by; more than the sample says where it may say too little."""
    return min(1.0, max(sample.share, _LEAST_SHARE)) if sample.tokens else 1.0


def with_sizes(
    options: RunOptions, model_config: ModelConfig, hook_points: tuple[str, ...],
    run: tuple[Storage, Callable[[], Sample]],
) -> RunOptions:
    """The options with the sizes that were left open: those of the run, or chosen by the start that begins it; `run`
    is its output, and what to ask how many rows are stored of each token."""
    (output, take), selection = run, Selection.parse(options.positions, options.drop_special)
    try:
        run = checkpoint.read_run(output)["configuration"]
    except ObjectNotFound:
        run = {}
    dtype = default_compute_dtype() if options.compute_dtype == "auto" else options.compute_dtype
    rows, steps = options.batch_size, options.steps_per_batch
    step = ForwardOptions(
        hook_points, StepShape(1, options.seq_len), dtype, options.store_dtype, mesh=MeshShape(1, 1),
        pool=selection.pools,
    )
    if rows == "auto":
        rows = run.get("batch_size") or choose_rows(model_config, step, *local_memory())
    if steps is None:
        row_bytes, row_flops = options.seq_len * stored_bytes(model_config, step), ideal_flops(model_config, step)
        steps = run.get("steps_per_batch")
        if steps is None:
            stored = 1.0 if selection.is_everything else stored_share(take())
            steps = default_steps_per_batch(stored * rows * row_bytes, rows * row_flops, dtype)
    return replace(options, batch_size=rows, steps_per_batch=steps)


def forward_options(options: RunOptions, hook_points: tuple[str, ...], cache: str | None) -> ForwardOptions:
    """The step that these flags ask for; `cache` is the folder of compiled steps."""
    shape = StepShape(options.batch_size, options.seq_len)
    mesh = MeshShape.parse(options.mesh) if options.mesh else None
    pool = Selection.parse(options.positions).pools
    return ForwardOptions(hook_points, shape, options.compute_dtype, options.store_dtype, cache, mesh, pool)


def configure(options: RunOptions, model: Model, manifest: Manifest) -> ExtractionConfig:
    """Everything that decides the bytes of this run."""
    widths = model.forward.widths
    return ExtractionConfig(
        model=model.folder.name,
        revision=model.folder.revision,
        weights_digest=model.forward.weights_digest,
        tokenizer_digest=model.tokenizer.digest,
        manifest_digest=manifest.digest,
        hook_points=tuple(widths),
        compute_dtype=model.forward.compute_dtype,
        store_dtype=options.store_dtype,
        seq_len=options.seq_len,
        batch_size=options.batch_size,
        steps_per_batch=options.steps_per_batch,
        bos=options.bos,
        long_documents=options.long_documents,
        max_records=options.max_records,
        positions=str(model.selector.selection),
        drop_special=options.drop_special,
    )


@dataclass(frozen=True)
class Task:
    """One stream to be worked on, from where its chain stands."""

    chain: checkpoint.CommitChain
    stream: Stream
    stop: Stop


def work(run: Prepared, task: Task) -> None:
    """From the chain's cursor to the end of the stream. Raises Stopped when told to before it."""
    options, config, model = run.options, run.config, run.model
    chain, worker_id = task.chain, task.chain.worker_id
    total = config.limit(task.stream.num_records)
    shape = BatchShape(config.steps_per_batch, config.batch_size, config.seq_len)
    layout = Layout(worker_id, model.forward.widths, dtype_named(config.store_dtype))
    records = takewhile(lambda record: record.index < total, task.stream.read_records(chain.cursor.record))
    tokenized = model.tokenizer.tokenize(records, offsets=model.selector.selection.span is not None)
    batches = pack_batches(tokenized, chain.cursor, shape, config.long_documents, model.selector)
    batches = in_background(batches, BATCHES_AHEAD)
    task.stop.busy = True
    progress = Progress(chain.storage, worker_id, total, chain.cursor.record, options.progress)

    def on_commit(commit: checkpoint.Commit) -> None:
        progress.on_commit(commit)
        if run.metrics:
            run.metrics.on_commit(commit)

    try:
        with BackgroundWriter(chain.commit, options.queue_mib << 20, on_commit) as writer:
            times = run_pipeline(until(batches, task.stop), layout, model.forward, chain.next_batch, writer.submit)
    finally:
        task.stop.busy = False
        progress.close()
    for line in times.table():
        say(line, worker=worker_id)
    if chain.totals.not_finite:
        say(f"not finite in this stream: {described(chain.totals.not_finite)}", "WARNING", worker_id)
    if not chain.end_of_stream:
        raise Stopped(f"worker {worker_id} was told to stop; {chain.cursor.record:,} records are committed")
    say(f"stream complete, {total:,} records", worker=worker_id)


def until(items: Iterable, stop: Stop) -> Iterator:
    """The items, until `stop` is set."""
    for item in items:
        if stop.is_set():
            return
        yield item
