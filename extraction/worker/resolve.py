"""Flags -> plans: every flag is parsed here, once, and checked before anything is written to OUTPUT.

In: the flags of `run`, `plan` or `parity`, the devices, and the run that is in OUTPUT, if there is one. Out: frozen,
typed plans in which nothing is left open. Cost: the small files of the model and of the streams; where the size of
batches is not given, the first row group of one stream.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..batching.packing import Cut
from ..batching.record_sample import Sample, all_records, check_spans, count_first_records
from ..batching.token_selection import Selection, Selector
from ..batching.tokenizer import RecordTokenizer
from ..core.errors import InvalidRequest
from ..core.logs import say
from ..core.printable import printable
from ..core.versions import DEVICE, cpu_features, software_versions
from ..format.run_config import RunConfig, find_run
from ..models.config import ModelConfig
from ..models.config_file import read_model_config
from ..models.cost import choose_rows, demand_of, ideal_flops, stored_bytes
from ..models.devices import Hardware, open_devices
from ..models.hooks import resolve_hook_points
from ..models.location import ModelFolder, locate_model
from ..models.mesh import MeshShape, choose_mesh
from ..models.step_options import StepOptions, check_step
from ..storage import Storage, backend_of, open_storage
from ..streams.extensions import load_manifest
from ..streams.manifest import Manifest
from ..streams.stream import open_stream
from .flags import ANY_STREAM, RunFlags, StepFlags

_LEAST_SHARE = 1 / 32  # of the tokens that are stored; batches stay within 32 times their size if a sample misleads
_BATCH_BYTES, _BATCH_SECONDS = 128 << 20, 30
_PACKED_SLOTS, _STRETCH = 1 << 16, 4  # a batch of fewer slots may be that much larger, for less padding
_SLOW_FLOPS = {"float32": 5e10, "bfloat16": 5e13}  # per second: half of two CPU cores, a quarter of a v5e chip


@dataclass(frozen=True)
class ModelPlan:
    """The model that is run, and the hook points that are captured."""

    folder: ModelFolder
    config: ModelConfig
    hook_points: tuple[str, ...]

    @property
    def location(self) -> str:
        """The location of the model, as other folders of this machine would name it."""
        return self.folder.model if self.folder.revision or self.folder.bucket else absolute(self.folder.model)


@dataclass(frozen=True)
class RunPlan:
    """The plan of a worker. `stream` is None where it takes any free one; `streams` is absolute.

    `agreed` has the digests of the compiled steps that the run in OUTPUT names, None where there is no run yet.
    """

    model: ModelPlan
    step: StepOptions
    tokenizer: RecordTokenizer
    selector: Selector
    manifest: Manifest
    streams: str
    output: Storage
    hardware: Hardware
    steps_per_batch: int
    bos: str
    long_documents: str
    max_records: int | None
    stream: int | None
    idle_after: float
    compile_cache: str
    agreed: dict[str, str] | None
    queue_bytes: int
    progress: bool
    metrics_port: int | None
    metrics_host: str

    @property
    def versions(self) -> dict[str, str]:
        """The software of this worker and the kind of its chips, as commits name them."""
        kind = self.hardware.name.partition(" x ")[2]
        kind += f" {cpu_features()}" if kind == "cpu" else ""
        flags = os.environ.get("XLA_FLAGS", "")
        kind += f", mesh {self.step.mesh}" + (", plain attention" if self.step.attention == "plain" else "")
        return software_versions() | {DEVICE: f"{kind}{' ' + flags if flags else ''}"[:500]}

    def run_config(self, weights_digest: str) -> RunConfig:
        """Return what determines the bytes of this run."""
        return RunConfig(
            model=self.model.folder.name,
            revision=self.model.folder.revision,
            weights_digest=weights_digest,
            tokenizer_digest=self.tokenizer.digest,
            manifest_digest=self.manifest.digest,
            hook_points=self.model.hook_points,
            compute_dtype=self.step.compute_dtype,
            store_dtype=self.step.store_dtype,
            seq_len=self.step.seq_len,
            batch_size=self.step.batch_size,
            steps_per_batch=self.steps_per_batch,
            bos=self.bos,
            long_documents=self.long_documents,
            max_records=self.max_records,
            positions=str(self.selector.selection),
            drop_special=self.selector.selection.drop_special,
            vocab_size=self.model.config.vocab_size,
        )


def resolve_run(flags: RunFlags, model: ModelPlan | None = None) -> RunPlan:
    """Return what these flags ask for; `model` is theirs, if it is resolved already.

    Raises InvalidRequest for a flag or combination that is wrong, and what reading the model's small files, the
    manifest and `run.json` raises.
    """
    stream = _stream_of(flags)
    selection = check_flags(flags)
    model = model or resolve_model(flags)
    manifest, output = load_manifest(flags.streams), open_storage(flags.output)
    check_spans(selection, manifest, flags.streams)
    if stream is not None:
        open_stream(manifest, flags.streams, stream)
    tokenizer = RecordTokenizer(model.folder.path, flags.bos, model.config.vocab_size)
    tokenizer.require_tokens(all_records(manifest, flags.streams, stream or 0))
    if manifest.options.get("tokenizer_digest", tokenizer.digest) != tokenizer.digest:
        say(f"the streams {flags.streams} were made with another tokenizer than the one of --model", "WARNING")
    selector = Selector(selection, tokenizer.special_ids)
    hardware, there = open_devices(), find_run(output)
    run = there.config if there else None
    step = resolve_step(flags, model, selection, hardware, run.batch_size if run else None)
    steps_per_batch = flags.steps_per_batch or (run.steps_per_batch if run else None)
    if steps_per_batch is None:
        share = 1.0
        if not selection.is_everything:
            cut = Cut(flags.seq_len, flags.long_documents, selector)
            share = stored_share(count_first_records(manifest, flags.streams, tokenizer, cut))
        steps_per_batch = default_steps_per_batch(model.config, step, share)
    return RunPlan(
        model=model, step=step, tokenizer=tokenizer, selector=selector, manifest=manifest,
        streams=absolute(flags.streams), output=output, hardware=hardware, steps_per_batch=steps_per_batch,
        bos=flags.bos, long_documents=flags.long_documents, max_records=flags.max_records, stream=stream,
        idle_after=flags.idle_after, compile_cache=flags.compile_cache, agreed=there.compiled if there else None,
        queue_bytes=flags.queue_mib << 20,
        progress=flags.progress, metrics_port=flags.metrics_port, metrics_host=flags.metrics_host,
    )  # fmt: skip


def check_flags(flags: RunFlags) -> Selection:
    """Return the token selection. Raises InvalidRequest for a flag that is wrong without a look at any file."""
    if flags.compile_cache:
        backend_of(flags.compile_cache)
    return Selection.parse(flags.positions, flags.drop_special)


def resolve_model(flags: StepFlags, default_hooks: str | None = None, weights: bool = True) -> ModelPlan:
    """Return the model and its hook points; `default_hooks` are those where the flags name none.

    Without `weights`, those of a hub model are not downloaded, and `--model` may be the file of a configuration.
    """
    if flags.mesh:
        MeshShape.parse(flags.mesh)
    file = Path(os.path.expanduser(flags.model))
    is_file = not weights and flags.revision is None and os.path.isfile(file)
    folder = ModelFolder(file, flags.model, None) if is_file else locate_model(flags.model, flags.revision, weights)
    config = read_model_config(folder.path)
    patterns = flags.hook_points or (None if flags.layers else default_hooks)
    hook_points = resolve_hook_points(flags.layers, flags.hooks, patterns, config)
    return ModelPlan(folder, config, hook_points)


def resolve_step(
    flags: StepFlags, model: ModelPlan, selection: Selection, hardware: Hardware, run_batch_size: int | None = None
) -> StepOptions:
    """Return the step on this hardware, with dtype, rows and mesh chosen where the flags leave them open.

    `--batch-size auto` takes `run_batch_size`, that of the run in OUTPUT, where there is one. Raises InvalidRequest.
    """
    dtype = hardware.compute_dtype if flags.compute_dtype == "auto" else flags.compute_dtype
    step = StepOptions(
        model.hook_points, 1, flags.seq_len, dtype, flags.store_dtype, pool=selection.pools, attention=flags.attention
    )
    mesh = MeshShape.parse(flags.mesh) if flags.mesh else None
    rows = flags.batch_size
    if isinstance(rows, str):
        rows = run_batch_size or choose_rows(model.config, step, hardware, mesh)
    step = replace(step, batch_size=rows)
    check_step(model.config, step, hardware.num_devices)
    if mesh is None:
        demand = demand_of(model.config, step, hardware.device)
        mesh = choose_mesh(model.config, demand, hardware.num_devices, hardware.memory_bytes)
    step = replace(step, mesh=mesh)
    check_step(model.config, step, hardware.num_devices)
    return step


def _stream_of(flags: RunFlags) -> int | None:
    """Return the number of the stream, None for any."""
    number = flags.worker_id if flags.stream is None else flags.stream
    if number is None:
        raise InvalidRequest("--worker-id is missing: give it, or set WORKER_ID")
    return None if number == ANY_STREAM else int(number)


def absolute(location: str) -> str:
    """Return the location as other machines and folders would name it. Raises InvalidRequest unless it is Unicode."""
    found = location if "://" in location else os.path.realpath(os.path.expanduser(location))
    try:
        found.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{printable(found)}: the name is not UTF-8, and run.json has to name it") from None
    return found


def stored_share(sample: Sample) -> float:
    """Return rows per token to choose the size of batches by; never less than a 32nd, as a sample may mislead."""
    return min(1.0, max(sample.share, _LEAST_SHARE)) if sample.tokens else 1.0


def default_steps_per_batch(config: ModelConfig, step: StepOptions, share: float) -> int:
    """Return how many steps make a batch where `share` of the tokens are stored.

    They hold about 128 MiB of activations and take at most 30 s on slow hardware, since a killed worker loses what it
    has not committed. Where that is less than 65,536 slots, into which sequences pack badly, up to four times as many
    steps do. The number follows from the run config alone, so that every attempt agrees.
    """
    one_device = replace(step, mesh=MeshShape(1, 1))
    by_bytes = _BATCH_BYTES / (share * step.num_slots * stored_bytes(config, step))
    by_time = _BATCH_SECONDS * _SLOW_FLOPS[step.compute_dtype] / max(ideal_flops(config, one_device), 1.0)
    limit = min(by_bytes, by_time)
    return max(1, int(limit), min(_PACKED_SLOTS // step.num_slots, int(_STRETCH * limit)))
