"""The commit chain: a batch exists when its commit does, and a worker continues at the cursor of the last commit.

In: finished batch files with the cursor before and after them. Out: create-only commits
`worker-NNNNN/commits/NNNNNNNN.json`, numbered without gaps. The checkpoint of a stream *is* this chain; there is no
other state that could disagree with it.

The protocol, and why each step has its place. An attempt

1. lists the commits and refuses a gap: create-only commits in sequence leave none, so a gap is damage;
2. reads the first commit, which names the run, and the last. It compares the batch file of the last with the store:
   the one that a fault can have touched last. The attempt continues at its `cursor_after`. Earlier batch files were
   compared before a batch followed them;

and then for each batch, one after the other,

3. creates the batch file `batches/NNNNNNNN`. First, so that no commit names a missing batch file. Without a commit
   nobody reads it: a kill leaves at worst an orphaned file that the next attempt adopts, if its bytes are the same, or
   keeps, and writes under `NNNNNNNN-<attempt>`, a name that no other attempt has;
4. creates the commit. From here on the batch exists. Of two workers that get here with batch n the store lets one
   create it; the other is *fenced* and writes nothing more. The attempt id in a commit, which only its writer knows,
   names its owner: a commit whose answer was lost belongs to its writer, however late it landed;
5. moves the cursor in memory. Last, so that no batch is built on one that may not exist.

Each commit holds the digest of the one before it, the first that of `run.json` or of the extension that added its
stream: who has kept the digest of a last commit can tell that nothing before it was rewritten.

A batch is a pure function of stream, run config and cursor, and begins where the one before ended: a chain without gaps
from (0, 0) to the end of the stream holds each token once. The guarantee needs a store that creates an object whole or
not at all, never over another, and then shows it to every reader; after a lost or odd answer, storage reads back and
compares. It needs no clock, no lock and no deletion. tests/helpers/protocol_model.py is this text as a model, explored
to its last state.

Cost: one listing and three reads to resume; two create requests for each batch.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from extraction.core.errors import ConfigurationMismatch, DamagedData, Fenced, ObjectExists
from extraction.core.fault_points import kill_point
from extraction.format.chain import check_data, check_place, list_commits
from extraction.format.commit import (
    Attempt,
    BatchToCommit,
    Commit,
    DataObject,
    ReadCommit,
    Totals,
    commit_name,
    read_commit,
    worker_folder,
)
from extraction.format.digests import digest_ids, digest_of
from extraction.format.extension_names import extension_name
from extraction.format.not_finite import NotFinite
from extraction.format.records import Cursor
from extraction.format.run_config import FORMAT, RUN, RunDescription, differences, find_run, over_same_streams, read_run
from extraction.format.run_extension import Extent, RunExtension
from extraction.storage import ObjectInfo, Storage


def join_run(storage: Storage, own: RunDescription, digests: Sequence[str] = ()) -> RunDescription:
    """Compare the `run.json` that is there with `own`, or create it. Return what is stored.

    Reading comes first: a service limits the writes of one name, not its reads, and most workers find it there.

    `digests` are those of the parts of extended streams: a run over the first of them is joined.

    Raises ConfigurationMismatch with the old and the new value of each field of the run config that differs,
    DamagedData if `run.json` is unreadable or lost.
    """
    kill_point("before-run")
    run = find_run(storage) or _create_run(storage, own)
    given = over_same_streams(run.config, own.config, digests)
    if run.config != given:
        lines = "; ".join(differences(run.config, given))
        raise ConfigurationMismatch(f"{storage.location}/{RUN} has another run config: {lines}")
    kill_point("after-run")
    return run


def _create_run(storage: Storage, own: RunDescription) -> RunDescription:
    """Create `run.json`; return what is stored, which may be that of another worker."""
    data = own.to_bytes()
    try:
        storage.create(RUN, data)
        return replace(own, digest=digest_of(data))
    except ObjectExists:
        return read_run(storage)


def extend_run(storage: Storage, run: RunDescription, extents: Sequence[Extent]) -> RunDescription:
    """Write down the streams behind those that the run began with, unless they are; `extents` are all parts of these.

    Return the run with its extensions.

    Raises ConfigurationMismatch if the run has other streams there.
    """
    began = [extent.manifest_digest for extent in extents].index(run.config.manifest_digest)
    added: list[RunExtension] = []
    for number, extent in enumerate(extents[began + 1 :], 1):
        extension = RunExtension(FORMAT, added[-1].digest if added else run.digest, *extent)
        data = extension.to_bytes()
        try:
            storage.create(extension_name(number), data)
        except ObjectExists:
            name = f"{storage.location}/{extension_name(number)}"
            raise ConfigurationMismatch(f"{name}: the run was extended by other streams than these") from None
        added.append(replace(extension, digest=digest_of(data)))
    sizes = [size for extension in added for size in extension.records_per_stream]
    return replace(run, records_per_stream=(*run.records_per_stream[: run.began_with], *sizes), extensions=tuple(added))


class CommitChain:
    """The chain of one stream, positioned after its last commit. One thread commits at a time."""

    def __init__(self, storage: Storage, stream: int, fingerprint: str, root: str):
        self.storage, self.stream, self.fingerprint = storage, stream, fingerprint
        self._last_digest = root
        self.attempt = Attempt()
        self.cursor, self.next_batch, self.end_of_stream = Cursor(0, 0), 0, False
        self.totals, self._last_attempt = Totals(), ""

    @classmethod
    def load(cls, storage: Storage, stream: int, fingerprint: str, root: str = "") -> "CommitChain":
        """Return the chain after its last commit. `root` is what the first commit names, `RunDescription.root`.

        Raises DamagedData or ConfigurationMismatch.
        """
        chain = cls(storage, stream, fingerprint, root)
        names = list_commits(storage, stream)
        if names:
            last = read_commit(storage, names[-1])
            chain._check(last.commit, names[-1], len(names) - 1)
            first = read_commit(storage, names[0]) if len(names) > 1 else last
            if first.commit.previous != root:
                raise DamagedData(
                    f"{names[0]}: follows another {RUN} or extension than the one that is there: restore it"
                )
            if last.commit.data is not None:
                check_data(storage, last.commit)
            chain._advance(last)
        return chain

    def _check(self, commit: Commit, name: str, batch: int) -> None:
        check_place(commit, name, self.stream, batch)
        if commit.fingerprint != self.fingerprint:
            raise ConfigurationMismatch(
                f"{name}: committed with fingerprint {commit.fingerprint}, this attempt has {self.fingerprint}"
            )

    def _advance(self, last: ReadCommit) -> None:
        commit, self._last_digest = last
        self.cursor, self.next_batch, self.end_of_stream = commit.cursor_after, commit.batch + 1, commit.end_of_stream
        self.totals, self._last_attempt = commit.totals, commit.attempt

    def commit(
        self,
        batch: BatchToCommit,
        data: memoryview | None,
        seconds: dict[str, float],
        reconstruction_error: dict[str, float] | None = None,
        not_finite: NotFinite | None = None,
    ) -> Commit:
        """Store the batch file, then the commit; move the cursor. Return the commit.

        Args:
            batch: begins at the cursor.
            data: the bytes of the batch file; None for a batch without rows.
            seconds: of each stage.
            reconstruction_error: of each hook point whose rows have a scale.
            not_finite: the counts of NaN and infinite values.

        Raises Fenced if another worker committed this batch. Errors of storage pass through, with nothing committed.
        """
        if self.end_of_stream:
            raise ValueError("the stream has ended: there is nothing to commit after its last batch")
        if batch.cursor_before != self.cursor:
            raise ValueError(f"batch begins at {batch.cursor_before}, the chain ends at {self.cursor}")
        begin = time.perf_counter()
        stored = None if data is None else self._store(data)
        seconds = {key: round(value, 3) for key, value in (seconds | {"upload": time.perf_counter() - begin}).items()}
        commit = Commit(
            stream=self.stream,
            batch=self.next_batch,
            previous=self._last_digest,
            cursor_before=batch.cursor_before,
            cursor_after=batch.cursor_after,
            data=stored,
            num_records=len(batch.record_ids),
            num_rows=batch.num_rows,
            num_tokens=batch.num_tokens,
            end_of_stream=batch.end_of_stream,
            fingerprint=self.fingerprint,
            record_ids_digest=digest_ids(batch.record_ids),
            reconstruction_error=reconstruction_error or {},
            not_finite=not_finite or {},
            seconds=seconds,
            totals=self.totals.plus(
                batch,
                stored.size if stored else 0,
                seconds,
                self._last_attempt != self.attempt.id,
                not_finite or {},
            ),
            attempt=self.attempt.id,
            host=self.attempt.host,
            started=self.attempt.started,
            versions=self.attempt.versions,
        )
        kill_point("before-commit", commit.batch)
        last = self._publish(commit)
        kill_point("after-commit", commit.batch)
        self._advance(last)
        return last.commit

    def _store(self, data: memoryview) -> DataObject:
        kill_point("before-data", self.next_batch)
        folder, name = worker_folder(self.stream), f"batches/{self.next_batch:08d}"
        try:
            info = self.storage.create(f"{folder}/{name}.safetensors", data)
        except ObjectExists:  # of a killed attempt or a rival: keep it and write another name
            name = f"{name}-{self.attempt.id}"
            info = self._store_as_ours(f"{folder}/{name}.safetensors", data)
        kill_point("after-data", self.next_batch)
        return DataObject(f"{name}.safetensors", info.size, info.crc32c, info.generation)

    def _store_as_ours(self, name: str, data: memoryview) -> ObjectInfo:
        try:
            return self.storage.create(name, data)
        except ObjectExists:
            raise DamagedData(f"{name}: only this worker writes it, and it holds other bytes than were sent") from None

    def _publish(self, commit: Commit) -> ReadCommit:
        """Create the commit. Return the stored one: an earlier request of this attempt may have landed late.

        Raises Fenced if another attempt created it.
        """
        name, data = commit_name(self.stream, commit.batch), commit.to_bytes()
        try:
            self.storage.create(name, data)
            return ReadCommit(commit, digest_of(data))
        except ObjectExists:
            stored = read_commit(self.storage, name)
        winner = stored.commit
        if winner.attempt != self.attempt.id:  # an id that no other attempt has
            raise Fenced(
                f"{name} was committed by another worker: attempt {winner.attempt} on host {winner.host}, "
                f"started {winner.started}",
                winner.attempt,
            )
        return stored
