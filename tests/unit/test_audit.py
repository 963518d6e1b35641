"""What `verify` finds: each kind of damage by the name of its object, on both backends, and nothing where nothing is.

The runs are made without a model, and every damage is put into the store behind the project's back.
"""

import hashlib
import json
from collections import Counter

import pytest

import checkpoint
from extraction.audit.verify import Checks, audit_run
from extraction.batching.packing import pack_batches
from extraction.core.errors import ConfigurationMismatch, DamagedData, InvalidRequest, PermissionDenied
from extraction.format.commit import MAX_COMMIT, parse_commit
from extraction.format.records import Cursor
from extraction.format.run_config import FORMAT, RunConfig
from extraction.storage import open_storage
from extraction.worker.attempts import note_failure
from tests.helpers.batches import SHAPE
from tests.helpers.stream_runs import (
    COMMIT,
    DATA,
    NUM_WORKERS,
    assert_found,
    edited,
    extract,
    flipped,
    join,
    make_streams,
)
from tests.helpers.workers import verify

NUM_RECORDS = 20


@pytest.mark.parametrize("deep", [False, True])
def test_a_finished_run_is_proven(store, deep):
    audit = store.audit(deep=deep)
    assert (audit.verdict, audit.exit_code, audit.problems, audit.uncommitted) == ("proven", 0, [], [])
    assert audit.totals()["num_records"] == audit.totals()["expected_records"] == NUM_RECORDS
    assert audit.to_text().endswith(", each record exactly once")


@pytest.mark.parametrize("damage, message", [
    (lambda s: s.change(DATA, flipped), f"{DATA}: .* were committed"),
    (lambda s: s.change(DATA, lambda data: data[:-7]), f"{DATA}: .* were committed"),
    (lambda s: s.remove(DATA), f"{DATA}: committed by batch 1, but it is not there"),
    (lambda s: s.put(COMMIT, b""), f"{COMMIT}: not a readable commit"),
    (lambda s: s.change(COMMIT, lambda data: data[:-40]), f"{COMMIT}: not a readable commit"),
    (lambda s: s.put(COMMIT, b"not JSON"), f"{COMMIT}: not a readable commit"),
    (lambda s: s.put(COMMIT, b"x" * (MAX_COMMIT + 1)), f"{COMMIT}: not a readable commit .*too many"),
    (lambda s: s.edit(COMMIT, format=2), f"{COMMIT}: commit of format 2, this version reads {FORMAT}"),
    (lambda s: s.remove(COMMIT), f"{COMMIT} is missing, but worker-00000/commits/00000002.json is there"),
    (lambda s: [s.remove(COMMIT), s.remove(COMMIT.replace("01.", "02."))],
     f"{COMMIT} and the 1 after it are missing, but worker-00000/commits/00000003.json is there"),
    (lambda s: s.put(COMMIT + ".bak", b"{}"), f"{COMMIT}.bak: no commit has such a name"),
    (lambda s: s.put(COMMIT, s.storage.read(COMMIT.replace("01.", "00."))), f"{COMMIT}: says stream 0, batch 0"),
    (lambda s: s.put(COMMIT, s.storage.read(COMMIT.replace("r-00000", "r-00001"))),
     f"{COMMIT}: says stream 1, batch 1"),
    (lambda s: s.edit(COMMIT, fingerprint="sha256:other"), f"{COMMIT}: is of another run: .*sha256:other"),
    (lambda s: s.edit(COMMIT, cursor_before={"record": 0, "token_offset": 0}),
     f"{COMMIT}: begins at record 0 token 0, the batch before ended at record 2 token 8: .* stored twice"),
    (lambda s: s.edit(COMMIT, cursor_before={"record": 3, "token_offset": 0}),
     f"{COMMIT}: begins at .* stored not at all"),
    (lambda s: s.edit(COMMIT, cursor_after={"record": 1, "token_offset": 0}), f"{COMMIT}: its cursor does not move"),
    (lambda s: s.edit(COMMIT, cursor_before={"record": 2, "token_offset": 7}), f"{COMMIT}: a cursor is inside"),
    (lambda s: s.edit(COMMIT, num_records=9), f"{COMMIT}: counts 9 records"),
    (lambda s: s.edit(COMMIT, num_rows=17), f"{COMMIT}: counts 17 tokens, and a batch has room for 16"),
    (lambda s: s.edit(COMMIT, num_rows=11), f"{COMMIT}: its totals say"),
    (lambda s: s.edit(COMMIT, num_tokens=13), f"{COMMIT}: stores 12 rows of 13 tokens"),
    (lambda s: s.edit(COMMIT, totals__tokens=29), f"{COMMIT}: its totals say"),
    (lambda s: s.edit(COMMIT, data=None), f"{COMMIT}: 12 rows do not go with data None"),
    (lambda s: s.edit(COMMIT, data__name="batches/00000000.safetensors"),
     f"{COMMIT}: not a readable commit .*not one of this"),
    (lambda s: s.edit(COMMIT, data__name="../../secret"),
     f"{COMMIT}: not a readable commit .*not one of this batch in"),
    (lambda s: s.edit(COMMIT, end_of_stream=True),
     "worker-00000/commits/00000002.json: comes after the commit that ended the stream"),
    (lambda s: s.edit(COMMIT, record_ids_digest="sha256:other"),
     f"{COMMIT}: its record ids are not those of records 2"),
    (lambda s: s.put("worker-00007/commits/00000000.json", b"{}"), "worker-00007: there is no such stream"),
])  # fmt: skip
def test_damage_is_named(store, damage, message):
    damage(store)
    assert_found(store.problems(), message)
    assert store.audit().to_text().startswith("wrong: worker-0000")


def test_each_damage_has_its_line_and_hides_no_other(store):
    store.remove(COMMIT)
    store.change(DATA.replace("01.", "03."), flipped)
    store.put("worker-00001/commits/00000000.json", b"{")
    problems = store.problems()
    named = [COMMIT, DATA.replace("01.", "03."), "worker-00001/commits/00000000.json"]
    assert [problem[: len(name)] for problem, name in zip(problems, named, strict=True)] == named


def test_a_folder_of_another_run_is_not_taken_for_ours(store, tmp_path):
    other = open_storage(str(tmp_path / "other"))
    extract(other, store.streams, 0, seq_len=8, bos="always")
    for number, name in enumerate(checkpoint.list_commits(other, 0)):
        store.put(name, other.read(name))
        assert f"{name}: is of another run" in store.problems()[number]


def test_a_cut_last_commit_is_damage_and_a_missing_one_is_not(store):
    last = checkpoint.list_commits(store.storage, 0)[-1]
    store.change(last, lambda data: data[:100])
    assert last in store.problems()[0]
    store.remove(last)
    assert (store.audit().verdict, store.audit().unfinished) == ("in progress", [0])


def test_in_progress_is_75_with_what_is_proven_so_far(empty):
    extract(empty.storage, empty.streams, 0, most=2)
    audit = empty.audit(deep=True)
    assert (audit.verdict, audit.exit_code, audit.unfinished) == ("in progress", 75, [0, 1])
    assert (audit.streams[0].num_records, audit.streams[0].num_batches) == (4, 2)
    assert "not finished: stream 0, 4 of 10 records" in audit.to_text()
    assert "each record exactly once so far" in audit.to_text()


def test_what_was_not_committed_is_named_and_ignored(empty):
    extract(empty.storage, empty.streams, 0, most=1)
    torn = ["worker-00000/batches/00000000-0123abcd.safetensors", "worker-00000/batches/00000001.safetensors"]
    for name in torn:
        empty.put(name, b"of an attempt that was killed")
    audit = empty.audit(deep=True)
    assert (audit.verdict, audit.uncommitted) == ("in progress", torn)
    assert f"not committed, ignored: {torn[0]}" in audit.to_text()


def test_the_json_has_stable_keys(store):
    store.put("worker-00000/batches/torn.safetensors", b"")
    value = json.loads(json.dumps(store.audit(deep=True).to_json()))
    counts = ["num_records", "num_rows", "num_tokens", "num_batches", "num_bytes", "expected_records"]
    assert list(value) == [
        "schema",
        "output",
        "deep",
        "verdict",
        "fingerprint",
        "manifest_digest",
        "digest",
        "problems",
        "extensions",
        "num_ahead",
        "unfinished",
        "uncommitted",
        "tokens",
        "recomputed",
        *counts,
        "not_finite",
        "streams",
    ]
    assert list(value["streams"][0]) == [
        "stream",
        "finished",
        "digest",
        "problems",
        "uncommitted",
        *counts,
        "not_finite",
    ]
    assert value["streams"][0]["uncommitted"] == value["uncommitted"] == ["worker-00000/batches/torn.safetensors"]
    assert store.audit().to_json()["not_finite"] is None


def test_the_figures_are_those_of_the_commits(store):
    commits = [
        parse_commit(store.storage.read(name), name)
        for worker in range(NUM_WORKERS)
        for name in checkpoint.list_commits(store.storage, worker)
    ]
    totals = store.audit().totals()
    assert totals["num_batches"] == len(commits)
    assert totals["num_rows"] == sum(commit.num_rows for commit in commits) == 2 * 69
    assert totals["num_bytes"] == sum(commit.data.size for commit in commits)


def test_a_bucket_is_audited_with_one_request_for_each_batch(gcs, run_streams):
    """Sizes and checksums of data objects come with their listing."""
    for worker in range(NUM_WORKERS):
        extract(open_storage("gs://bucket/run"), run_streams, worker)
    gcs.history.clear()
    audit = audit_run("gs://bucket/run")
    kinds = Counter(what.split("/")[0].split()[0] for _, _, what, status in gcs.history if status in (200, 206))
    assert kinds == {"read": audit.totals()["num_batches"] + 1, "list": 2 * NUM_WORKERS + 2}


def test_long_lists_are_cut_for_people_only(store):
    for number in range(50):
        store.put(f"worker-00000/batches/{number:08d}-00.safetensors", b"")
    text = store.audit().to_text()
    assert text.count("\n") == 25 and "and 30 more such lines" in text
    assert len(store.audit().to_json()["uncommitted"]) == 50


# ---------------------------------------------------------------------------------------- where there is no run


def test_an_empty_output_holds_no_run(empty):
    with pytest.raises(InvalidRequest, match="holds no run: there is no run.json"):
        empty.audit()


def test_an_output_of_something_else_holds_no_run(empty):
    empty.put("photos/summer.jpg", b"sea")
    with pytest.raises(InvalidRequest, match="holds no run"):
        empty.audit()


def test_the_note_of_a_start_that_failed_before_it_joined_is_no_run(empty):
    with pytest.raises(InvalidRequest), note_failure(empty.storage, 0, checkpoint.Attempt()):
        raise InvalidRequest("--layers 99")
    assert empty.storage.folders() == ["worker-00000"]
    with pytest.raises(InvalidRequest, match="holds no run"):
        empty.audit()


def test_a_lost_run_description_is_damage(store):
    store.remove("run.json")
    with pytest.raises(DamagedData, match="run.json is missing, but worker-00000/commits/00000000.json is there"):
        store.audit()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: b"", "not a readable run description"),
        (lambda data: edited(data, fingerprint="sha256:0"), "its fingerprint is not that of its config"),
        (lambda data: edited(data, config__seq_len=9), "its fingerprint is not that of its config"),
        (lambda data: edited(data, config={}), "run description"),
        (lambda data: edited(data, streams=3), "streams or versions have the wrong type"),
    ],
)
def test_a_damaged_run_description_is_named(store, change, message):
    store.change("run.json", change)
    with pytest.raises(DamagedData, match=f"run.json: .*{message}"):
        store.audit()


@pytest.mark.parametrize("change", [{"format": FORMAT + 1}, {"format": 2}])
def test_a_run_of_another_format_is_refused(store, change):
    store.edit("run.json", **change)
    with pytest.raises(ConfigurationMismatch, match=f"run.json: format {change['format']}, this version reads and"):
        store.audit()


def test_other_streams_are_refused(store, tmp_path):
    with pytest.raises(ConfigurationMismatch, match="is not the manifest"):
        store.audit(streams=make_streams(tmp_path, 1))


def test_streams_that_are_not_there_are_named(store):
    with pytest.raises(InvalidRequest, match="/nowhere holds no manifest.json"):
        store.audit(streams="/nowhere")


def test_a_source_file_that_is_lost_is_one_line_for_its_worker(empty, tmp_path):
    streams = make_streams(tmp_path / "lost", NUM_WORKERS)
    for worker in range(NUM_WORKERS):
        extract(empty.storage, streams, worker)
    next((tmp_path / "lost/corpus").glob("000.parquet")).unlink()
    (problem,) = empty.problems()
    assert_found([problem], "worker-00000/commits/00000000.json: its record ids.*000.parquet: the file is missing")


@pytest.mark.slow
def test_what_storage_refuses_is_raised_and_ends_the_audit(gcs, run_streams):
    storage = open_storage("gs://bucket/run")
    extract(storage, run_streams, 0)
    gcs.instruct("read", "*/commits/00000001.json", "fail", count=99, status=403)
    with pytest.raises(PermissionDenied, match="storage.objects.get"):
        audit_run(storage.location)


def test_a_run_of_the_first_records_is_proven(empty):
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker, most=0, max_records=0)
        run = join(empty.storage, empty.streams, max_records=0)
        chain = checkpoint.CommitChain.load(empty.storage, worker, run.fingerprint, run.digest)
        (batch,) = pack_batches([], Cursor(0, 0), SHAPE, "split")
        chain.commit(batch, None, {})
    assert (empty.audit(deep=True).verdict, empty.audit().totals()["num_records"]) == ("proven", 0)


@pytest.mark.slow
def test_the_command_says_json_on_stdout_and_nothing_else_on_a_pipe(store):
    result = verify(store.storage.location, "--deep", "--no-tokens", "--json")
    assert (result.returncode, result.stderr, json.loads(result.stdout)["verdict"]) == (0, "", "proven")
    store.change(DATA, flipped)
    result = verify(store.storage.location)
    assert (result.returncode, result.stderr) == (65, "")
    assert result.stdout.startswith(f"wrong: {DATA}: ")


@pytest.mark.slow
def test_the_command_says_that_there_is_no_run(empty):
    result = verify(empty.storage.location)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {empty.storage.location} holds no run")


# ---------------------------------------------------------------------------------------------- the chain of digests


def test_a_rewritten_commit_is_found_though_all_else_fits(store):
    """Its host says nothing that anything else says; the commit after it holds its digest."""
    store.put(COMMIT, edited(store.storage.read(COMMIT), host="elsewhere"))
    last = COMMIT.replace("01.", "02.")
    assert store.problems() == [
        f"{last}: follows another {COMMIT} than the one that is there: one of the two was rewritten"
    ]
    store.relink()
    assert store.problems() == []


def test_the_first_commit_names_run_json(store):
    store.put("run.json", edited(store.storage.read("run.json"), versions={"jax": "another"}))
    said = "follows another run.json than the one that is there: one of the two was rewritten"
    assert store.problems() == [f"worker-{worker:05d}/commits/00000000.json: {said}" for worker in range(NUM_WORKERS)]


def test_who_kept_a_digest_sees_what_was_rewritten_consistently(store):
    kept = store.audit()
    last = checkpoint.list_commits(store.storage, 0)[-1]
    assert kept.streams[0].digest == f"sha256:{hashlib.sha256(store.storage.read(last)).hexdigest()}"
    assert f"digest of the run: {kept.digest}" in kept.to_text() and kept.run.fingerprint in kept.to_text()
    store.edit(COMMIT, host="elsewhere")
    now = store.audit()
    assert now.verdict == "proven" and now.digest != kept.digest
    assert now.streams[0].digest != kept.streams[0].digest and now.streams[1].digest == kept.streams[1].digest
    for expected in (kept.digest, kept.streams[0].digest, "sha256:0"):
        assert_found(
            store.problems(checks=Checks(expected=expected)),
            f".*: its digest is {now.digest}, and {expected} was expected",
        )
    assert store.problems(checks=Checks(expected=now.digest)) == []
    assert store.problems(checks=Checks(expected=kept.streams[1].digest)) == []


def test_tokens_beyond_the_vocabulary_never_pass(store):
    store.edit("run.json", config__vocab_size=50)
    config = RunConfig.from_json(json.loads(store.storage.read("run.json"))["config"])
    store.edit("run.json", fingerprint=config.fingerprint)
    for name in [info.name for info in store.storage.list() if "/commits/" in info.name]:
        store.edit(name, fingerprint=config.fingerprint)
    assert store.problems() == []
    assert_found(store.problems(deep=True), f"{DATA}: it holds the token id .*, but those of the model are below 50")
