"""Everything in a batch file but the activations, held against the streams: token ids, lengths, spans, meta.

In: the pinned streams, the model's tokenizer, and the commits of a stream. Out: a sentence for each batch that holds
something else. Guarantee: the streams are tokenized and packed again from record 0 on, so a stream without a sentence
has in each batch exactly the records, tokens, positions and metas that a worker stores. Cost: tokenization, packing,
one request for each commit and one for the first arrays of each batch file.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..batching.packing import PackedBatch
from ..batching.stream_batches import stream_batches
from ..batching.token_selection import Selector
from ..batching.tokenizer import RecordTokenizer
from ..core.errors import ConfigurationMismatch, DamagedData, InvalidRequest, ObjectNotFound
from ..core.threads import prefetch
from ..format.batch_file import BatchRef, StoredBatch
from ..format.chain import list_folder
from ..format.commit import Commit, commit_name, data_name, read_commit
from ..format.records import Cursor
from ..format.run_config import RunDescription
from ..models.location import locate_model
from ..storage import ObjectInfo, Storage
from ..streams.stream import Stream
from .audited_run import AuditedRun

AHEAD = 8
_ARRAYS = ("record_index", "record_offsets", "record_lengths", "tokens", "positions", "mean_over")


def tokenizer_of(run: RunDescription, model: str | None = None) -> RecordTokenizer:
    """Return the tokenizer of a run, from `model` or where `run.json` says.

    Raises ConfigurationMismatch for another tokenizer, and as `locate_model`.
    """
    place, config = model or run.model_location, run.config
    try:
        folder = locate_model(place, None if model else config.revision, weights=False)
    except InvalidRequest as error:
        raise InvalidRequest(f"{error}; verify needs the run's tokenizer: give --model, or --no-tokens") from error
    tokenizer = RecordTokenizer(folder.path, config.bos, config.vocab_size)
    if tokenizer.digest != config.tokenizer_digest:
        raise ConfigurationMismatch(
            f"{place}: its tokenizer is {tokenizer.digest}, that of the run {config.tokenizer_digest}: give the run's "
            "own by --model, or leave the tokens unchecked by --no-tokens"
        )
    return tokenizer


@dataclass(frozen=True)
class TokenCheck:
    """Compares the batches of streams with what tokenizing them again gives."""

    storage: Storage
    run: AuditedRun
    tokenizer: RecordTokenizer
    pool: ThreadPoolExecutor

    def problems(self, stream: Stream) -> Iterator[str]:
        """Yield a sentence for each batch of a stream that holds something else. Raises DamagedData for the stream."""
        commits = list_folder(self.storage, stream.index).commits
        found = prefetch(range(max(commits, default=-1) + 1), lambda n: self._read(commits.get(n)), AHEAD, self.pool)
        selector = Selector(self.run.selection, self.tokenizer.special_ids)
        batches = stream_batches(stream, self.run.config, self.tokenizer, selector, Cursor(0, 0))
        for (number, stored), batch in zip(enumerate(found), batches, strict=False):
            if stored is None:  # named by the audit of the chain
                continue
            if isinstance(stored, DamagedData):
                yield str(stored)
                continue
            wrong = next(_differences(stored, batch), None)
            if wrong is not None:
                yield f"{data_name(stored.commit) if stored.file else commit_name(stream.index, number)}: {wrong}"
                if (batch.cursor_before, batch.cursor_after) != _span(stored.commit):
                    return  # what follows begins elsewhere

    def _read(self, info: ObjectInfo | None) -> "_Stored | DamagedData | None":
        """Return a commit with the first arrays of its batch file, or why that is unreadable.

        None is for what the audit of the chain names: a commit that is unreadable, and an object that is missing.
        """
        try:
            commit = read_commit(self.storage, info.name).commit if info else None
        except (DamagedData, ObjectNotFound):
            return None
        if commit is None or commit.data is None:
            return commit and _Stored(commit, None)
        try:
            place = (data_name(commit), commit.data.size, commit.num_rows)
            file = StoredBatch(self.storage, BatchRef(commit.stream, commit.batch, *place, *_span(commit)))
            file.fetch(name for name in _ARRAYS if file.has(name))
            return _Stored(commit, file)
        except DamagedData as error:
            return error
        except ObjectNotFound:
            return None


@dataclass(frozen=True)
class _Stored:
    commit: Commit
    file: StoredBatch | None


def _span(commit: Commit) -> tuple[Cursor, Cursor]:
    return commit.cursor_before, commit.cursor_after


def _differences(stored: _Stored, batch: PackedBatch) -> Iterator[str]:
    """Yield what a commit or its batch file has that the batch does not."""
    commit, file = stored.commit, stored.file
    if _span(commit) != (batch.cursor_before, batch.cursor_after):
        yield (
            f"it covers {commit.cursor_before} to {commit.cursor_after}; packing the stream again gives "
            f"{batch.cursor_before} to {batch.cursor_after}"
        )
    for name in ("num_records", "num_rows", "num_tokens", "end_of_stream"):
        if getattr(commit, name) != getattr(batch, name):
            yield f"its {name} is {getattr(commit, name)}, the stream gives {getattr(batch, name)}"
    if file is None:
        return
    for name, ours in _arrays_of(batch).items():
        if not file.has(name):
            yield f"it has no array {name}"
            continue
        theirs = file.array(name)
        if not np.array_equal(theirs, ours):
            yield _first_difference(name, theirs, ours, batch)
    if list(batch.record_ids) != file.record_ids:
        yield "its record ids are not those of the stream"
    metas = [None if meta is None else json.loads(meta) for meta in batch.record_meta]
    for record, (ours, theirs) in enumerate(zip(metas, file.record_meta, strict=False)):
        if ours != theirs:
            yield f"the meta of record {batch.record_ids[record]!r} is not that of the stream"
            return


def _arrays_of(batch: PackedBatch) -> dict[str, np.ndarray]:
    arrays = {
        "record_lengths": batch.record_lengths,
        "record_index": batch.record_index,
        "record_offsets": batch.record_offsets,
        "tokens": batch.tokens.reshape(-1)[batch.slots],
        "positions": batch.record_positions,
    }
    return arrays if batch.mean_over is None else arrays | {"mean_over": batch.mean_over}


def _first_difference(name: str, theirs: np.ndarray, ours: np.ndarray, batch: PackedBatch) -> str:
    if len(theirs) != len(ours):
        return f"it has {len(theirs):,} {name}, the stream gives {len(ours):,}"
    place = int(np.argmax(theirs != ours))
    record = place
    if len(ours) == batch.num_rows and not name.startswith("record"):
        record = int(np.searchsorted(batch.record_offsets, place, side="right")) - 1
    whose = f" of record {batch.record_ids[record]!r}" if record < batch.num_records else ""
    return f"{name}[{place}] is {theirs[place]}, the stream gives {ours[place]}{whose}"
