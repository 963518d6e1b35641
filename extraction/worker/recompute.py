"""Batches of a run, computed again from `run.json`: for `verify --recompute` and `repair`.

In: the description of a run, and where its model and its streams are. Out: the bytes of any of its batch files.
Guarantee: the code is the worker's own; a model, a tokenizer or streams other than those of the run are refused. Cost:
the start of a worker, then what the batch cost in the run.
"""

from dataclasses import dataclass, replace

from ..batching.stream_batches import stream_batches
from ..core.errors import ConfigurationMismatch, DamagedData
from ..format.commit import Commit
from ..format.dtypes import dtype_named
from ..format.run_config import RunDescription, differences, over_same_streams
from ..models.step import Step, load_step
from ..streams.stream import open_stream
from .flags import ANY_STREAM, RunFlags
from .loop import BatchLayout, run_pipeline
from .resolve import RunPlan, resolve_run


@dataclass(frozen=True)
class Recomputer:
    """Computes batch files of a run. `versions` are the software and the chips that it uses."""

    plan: RunPlan
    run: RunDescription
    step: Step

    @classmethod
    def of(cls, run: RunDescription, output: str, model: str | None = None, streams: str | None = None) -> "Recomputer":
        """Load the model of a run, from where `run.json` says unless given.

        Raises ConfigurationMismatch if it is another model, tokenizer or manifest, and as `resolve_run`.
        """
        plan = resolve_run(_flags_of(run, output, model, streams))
        step = load_step(plan.model.folder, plan.model.config, plan.step)
        own = replace(plan.run_config(step.weights_digest), model=run.config.model, revision=run.config.revision)
        own = over_same_streams(run.config, own, plan.manifest.digests)
        if own != run.config:
            lines = "; ".join(differences(run.config, own))
            raise ConfigurationMismatch(f"{plan.model.location} makes another run than {output}/run.json: {lines}")
        return cls(plan, run, step)

    @property
    def versions(self) -> dict[str, str]:
        """The software and the chips of this process, as commits name them."""
        return self.plan.versions

    def compute(self, commit: Commit) -> memoryview:
        """Return the batch file of a commit. Raises DamagedData if the stream has no such batch."""
        config, made = self.run.config, []
        stream = open_stream(self.plan.manifest, self.plan.streams, commit.stream)
        batch = next(stream_batches(stream, config, self.plan.tokenizer, self.plan.selector, commit.cursor_before))
        layout = BatchLayout(commit.stream, self.step.widths, dtype_named(config.store_dtype))
        run_pipeline([batch], layout, self.step, commit.batch, lambda batch, data, *facts: made.append(data))
        if made[0] is None:
            raise DamagedData(f"batch {commit.batch} of stream {commit.stream} has no rows, its commit has some")
        return made[0]


def _flags_of(run: RunDescription, output: str, model: str | None, streams: str | None) -> RunFlags:
    """Return the flags with which a worker would take part in the run."""
    config = run.config
    return RunFlags(
        model=model or run.model_location, revision=None if model else config.revision,
        hook_points=",".join(config.hook_points), seq_len=config.seq_len, batch_size=config.batch_size,
        compute_dtype=config.compute_dtype, store_dtype=config.store_dtype, streams=streams or run.streams,
        output=output, stream=ANY_STREAM, steps_per_batch=config.steps_per_batch, bos=config.bos,
        long_documents=config.long_documents, positions=config.positions, drop_special=config.drop_special,
        max_records=config.max_records, compile_cache="", progress=False,
    )  # fmt: skip
