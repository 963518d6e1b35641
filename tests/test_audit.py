"""What `verify` finds: each kind of damage by the name of its object, on both backends, and nothing where nothing is.

The runs are made without a model, and every damage is put into the store behind the project's back.
"""

import json
import re
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import checkpoint
from extraction.audit import audit_run
from extraction.audit.contents import _check_values
from extraction.audit.facts import RunFacts
from extraction.errors import ConfigurationMismatch, DamagedData, InvalidRequest, PermissionDenied
from extraction.packing import pack_batches
from extraction.records import Cursor
from extraction.shards import decode
from extraction.storage import crc32c_base64, open_storage
from tests.batches import SHAPE
from tests.stream_runs import batches_of, edited, extract, join, make_streams, shard_of
from tests.workers import verify

NUM_WORKERS, NUM_RECORDS = 2, 20
COMMIT, DATA = "worker-00000/commits/00000001.json", "worker-00000/batches/00000001.safetensors"
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    return make_streams(tmp_path_factory.mktemp("streams"), NUM_WORKERS)


class Store:
    """A finished run, and the means to change what lies in it."""

    def __init__(self, storage, gcs, streams):
        self.storage, self.gcs, self.streams = storage, gcs, streams

    def audit(self, **options):
        return audit_run(self.storage.location, **options)

    def problems(self, **options):
        audit = self.audit(**options)
        assert audit.exit_code == (65 if audit.problems else 0)
        return audit.problems

    def _key(self, name):
        return f"{self.storage.location.removeprefix('gs://bucket/')}/{name}"

    def put(self, name, data):
        if self.gcs:
            self.gcs.objects.pop(self._key(name), None)
            self.gcs.land(self._key(name), bytes(data), None)
        else:
            path = Path(self.storage.location, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def remove(self, name):
        if self.gcs:
            del self.gcs.objects[self._key(name)]
        else:
            Path(self.storage.location, name).unlink()

    def change(self, name, change):
        """Replace an object by `change` of its bytes."""
        self.put(name, change(self.storage.read(name)))

    def edit(self, name, **changes):
        self.change(name, lambda data: edited(data, **changes))

    def change_data(self, change):
        """Change the arrays of the data object, and commit what comes out as if it had been so from the beginning."""
        data = bytearray(self.storage.read(DATA))
        change(decode(data).arrays)
        self.put(DATA, data)
        self.edit(COMMIT, data__crc32c=crc32c_base64(data))


@pytest.fixture
def empty(request, storage, streams):
    gcs = request.getfixturevalue("gcs") if storage.location.startswith("gs://") else None
    return Store(storage, gcs, streams)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, streams):
    """What lies in a finished run, {name: bytes}."""
    storage = open_storage(str(tmp_path_factory.mktemp("finished")))
    for worker in range(NUM_WORKERS):
        extract(storage, streams, worker)
    return {info.name: storage.read(info.name) for info in storage.list()}


@pytest.fixture
def store(empty, finished):
    for name, data in finished.items():
        empty.put(name, data)
    return empty


def assert_found(problems, pattern):
    assert any(re.match(pattern, problem) for problem in problems), problems


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


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
    (lambda s: s.put(COMMIT, b"x" * (checkpoint.MAX_COMMIT + 1)), f"{COMMIT}: not a readable commit .*too many"),
    (lambda s: s.edit(COMMIT, schema=2), f"{COMMIT}: commit of schema 2, this version reads 1"),
    (lambda s: s.remove(COMMIT), f"{COMMIT} is missing, but worker-00000/commits/00000002.json is there"),
    (lambda s: [s.remove(COMMIT), s.remove(COMMIT.replace("01.", "02."))],
     f"{COMMIT} and the 1 after it are missing, but worker-00000/commits/00000003.json is there"),
    (lambda s: s.put(COMMIT + ".bak", b"{}"), f"{COMMIT}.bak: no commit has such a name"),
    (lambda s: s.put(COMMIT, s.storage.read(COMMIT.replace("01.", "00."))), f"{COMMIT}: says worker 0, batch 0"),
    (lambda s: s.put(COMMIT, s.storage.read(COMMIT.replace("r-00000", "r-00001"))),
     f"{COMMIT}: says worker 1, batch 1"),
    (lambda s: s.edit(COMMIT, fingerprint="sha256:other"), f"{COMMIT}: is of another run: .*sha256:other"),
    (lambda s: s.edit(COMMIT, cursor_before={"record": 0, "token_offset": 0}),
     f"{COMMIT}: begins at record 0 token 0, the batch before it ended at record 2 token 8: .* there twice"),
    (lambda s: s.edit(COMMIT, cursor_before={"record": 3, "token_offset": 0}),
     f"{COMMIT}: begins at .* there not at all"),
    (lambda s: s.edit(COMMIT, cursor_after={"record": 1, "token_offset": 0}), f"{COMMIT}: its cursor does not move"),
    (lambda s: s.edit(COMMIT, cursor_before={"record": 2, "token_offset": 7}), f"{COMMIT}: a cursor stands inside"),
    (lambda s: s.edit(COMMIT, num_records=9), f"{COMMIT}: counts 9 records"),
    (lambda s: s.edit(COMMIT, num_tokens=17), f"{COMMIT}: counts 17 tokens, and a batch has room for 16"),
    (lambda s: s.edit(COMMIT, num_tokens=11), f"{COMMIT}: its totals are"),
    (lambda s: s.edit(COMMIT, data=None), f"{COMMIT}: 12 tokens do not go with data None"),
    (lambda s: s.edit(COMMIT, data__name="batches/00000000.safetensors"), f"{COMMIT}: not a readable commit .*not one of this"),
    (lambda s: s.edit(COMMIT, data__name="../../secret"), f"{COMMIT}: not a readable commit .*not one of this batch in"),
    (lambda s: s.edit(COMMIT, end_of_stream=True),
     "worker-00000/commits/00000002.json: stands after the end of the stream"),
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
    assert (audit.workers[0].num_records, audit.workers[0].num_batches) == (4, 2)
    assert "not finished: worker 0, 4 of 10 records" in audit.to_text()
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
    counts = ["num_records", "num_tokens", "num_batches", "num_bytes", "expected_records"]
    assert list(value) == ["schema", "output", "deep", "verdict", "problems", "unfinished", "uncommitted", *counts,
                           "not_finite", "workers"]
    assert list(value["workers"][0]) == ["worker_id", "finished", "problems", "uncommitted", *counts, "not_finite"]
    assert value["workers"][0]["uncommitted"] == value["uncommitted"] == ["worker-00000/batches/torn.safetensors"]
    assert store.audit().to_json()["not_finite"] is None


def test_the_figures_are_those_of_the_commits(store):
    commits = [checkpoint.parse_commit(store.storage.read(name), name)
               for worker in range(NUM_WORKERS) for name in checkpoint.list_commits(store.storage, worker)]
    totals = store.audit().totals()
    assert totals["num_batches"] == len(commits)
    assert totals["num_tokens"] == sum(commit.num_tokens for commit in commits) == 2 * 69
    assert totals["num_bytes"] == sum(commit.data.size for commit in commits)


def test_long_lists_are_cut_for_people_only(store):
    for number in range(50):
        store.put(f"worker-00000/batches/{number:08d}-00.safetensors", b"")
    text = store.audit().to_text()
    assert text.count("\n") == 21 and "and 30 more such lines" in text
    assert len(store.audit().to_json()["uncommitted"]) == 50


# ---------------------------------------------------------------------------------------- where there is no run


def test_an_empty_output_holds_no_run(empty):
    with pytest.raises(InvalidRequest, match="holds no run: there is no run.json"):
        empty.audit()


def test_an_output_of_something_else_holds_no_run(empty):
    empty.put("photos/summer.jpg", b"sea")
    with pytest.raises(InvalidRequest, match="holds no run"):
        empty.audit()


def test_a_lost_run_description_is_damage(store):
    store.remove("run.json")
    with pytest.raises(DamagedData, match="run.json is missing, but worker-00000 is there"):
        store.audit()


@pytest.mark.parametrize("change, message", [
    (lambda data: b"", "not a readable run description"),
    (lambda data: edited(data, schema=2), "schema 2"),
    (lambda data: edited(data, fingerprint="sha256:0"), "its fingerprint is not that of its configuration"),
    (lambda data: edited(data, configuration__seq_len=9), "its fingerprint is not that of its configuration"),
    (lambda data: edited(data, configuration={}), "run description"),
    (lambda data: edited(data, streams=3), "streams cannot be"),
])
def test_a_damaged_run_description_is_named(store, change, message):
    store.change("run.json", change)
    with pytest.raises(DamagedData, match=f"run.json: .*{message}"):
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


def test_what_storage_refuses_is_raised_and_ends_the_audit(gcs, streams):
    storage = open_storage("gs://bucket/run")
    extract(storage, streams, 0)
    gcs.instruct("read", "*/commits/00000001.json", "fail", count=99, status=403)
    with pytest.raises(PermissionDenied, match="storage.objects.get"):
        audit_run(storage.location)


def test_a_run_of_the_first_records_is_proven(empty):
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker, most=0, max_records=0)
        config = join(empty.storage, empty.streams, max_records=0)
        chain = checkpoint.CommitChain.load(empty.storage, worker, config.fingerprint)
        (batch,) = pack_batches([], Cursor(0, 0), SHAPE, "split")
        chain.commit(batch, None, {})
    assert (empty.audit(deep=True).verdict, empty.audit().totals()["num_records"]) == ("proven", 0)


def test_the_command_says_json_on_stdout_and_nothing_else_on_a_pipe(store):
    result = verify(store.storage.location, "--deep", "--json")
    assert (result.returncode, result.stderr, json.loads(result.stdout)["verdict"]) == (0, "", "proven")
    store.change(DATA, flipped)
    result = verify(store.storage.location)
    assert (result.returncode, result.stderr) == (65, "")
    assert result.stdout.startswith(f"wrong: {DATA}: ")


def test_the_command_says_that_there_is_no_run(empty):
    result = verify(empty.storage.location)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {empty.storage.location} holds no run")


# ---------------------------------------------------------------------------------------- while workers run


def test_a_worker_that_commits_meanwhile_is_not_damage(empty):
    """The audit is made again and again while a worker goes on; no listing may look like a gap."""
    extract(empty.storage, empty.streams, 0, most=0)
    ended, problems, verdicts = threading.Event(), [], set()

    def watch():
        while True:
            last = ended.is_set()
            audit = empty.audit(deep=len(verdicts) % 2 == 0)
            problems.extend(audit.problems)
            verdicts.add(audit.verdict)
            if last:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker)
    ended.set()
    watcher.join()
    assert (problems, verdicts) == ([], {"in progress", "proven"})


def test_a_listing_that_missed_a_name_is_made_again(store, monkeypatch):
    """A folder that is read while names are added may show a later one without an earlier one, once."""
    listing, missed = type(store.storage).list, []

    def miss_one(self, prefix="", start_after=""):
        for info in listing(self, prefix, start_after):
            if info.name == COMMIT and not missed:
                missed.append(info.name)
            else:
                yield info

    monkeypatch.setattr(type(store.storage), "list", miss_one)
    assert (store.problems(), missed) == ([], [COMMIT])


def test_data_that_appears_after_the_commits_were_listed_is_in_flight(store, monkeypatch):
    """The last batch is committed between the two listings of its worker."""
    last = checkpoint.list_commits(store.storage, 0)[-1]
    data = last.replace("commits", "batches").replace("json", "safetensors")
    kept = {name: store.storage.read(name) for name in (last, data)}
    for name in kept:
        store.remove(name)
    listing = type(store.storage).list

    def commit_after(self, prefix="", start_after=""):
        yield from listing(self, prefix, start_after)
        if prefix == "worker-00000/commits/":
            for name in (data, last):
                store.put(name, kept[name])

    monkeypatch.setattr(type(store.storage), "list", commit_after)
    audit = store.audit(deep=True)
    assert (audit.verdict, audit.unfinished, audit.uncommitted) == ("in progress", [0], [data])


# ---------------------------------------------------------------------------------------- deep


@pytest.mark.parametrize("change, message", [
    (lambda a: a["tokens"].__setitem__(0, -1), "it holds a token below 0"),
    (lambda a: a["positions"].__setitem__(3, 5), "its positions do not count from 0"),
    (lambda a: a["record_index"].__setitem__(0, 7), "its record_index does not count from 2"),
    (lambda a: a["record_offsets"].__setitem__(1, 99), "its record_offsets do not rise"),
    (lambda a: a["record_offsets"].__setitem__(0, 1), "its record_offsets do not rise"),
    (lambda a: a["record_offsets"].__setitem__(1, 0), "record 2 does not go on at token 8"),
    (lambda a: a[HOOK].__setitem__((2, 3), 1e6), f"{HOOK}.sum\\[3\\] is"),
    (lambda a: a[f"{HOOK}.sum_of_squares"].__setitem__(1, 0.5), f"{HOOK}.sum_of_squares\\[1\\] is 0.5"),
    (lambda a: a[f"{HOOK}.sum"].__setitem__(1, np.nan), f"{HOOK}.sum\\[1\\] is nan"),
])
def test_deep_finds_what_was_committed_wrong(store, change, message):
    store.change_data(change)
    assert store.problems() == []
    assert_found(store.problems(deep=True), f"{DATA}: {message}")


def recommit(store, shard):
    """Put another data object in the place of the committed one, with a commit that fits it."""
    store.put(DATA, shard.data)
    total = json.loads(store.storage.read(COMMIT))["totals"]["bytes"]
    grown = len(shard.data) - json.loads(store.storage.read(COMMIT))["data"]["size"]
    store.edit(COMMIT, data__crc32c=crc32c_base64(shard.data), data__size=len(shard.data), totals__bytes=total + grown)


@pytest.mark.parametrize("worker_id, number, dtype, message", [
    (0, 5, np.float32, "its header says batch '5', not 1"),
    (1, 1, np.float32, "its header says worker_id '1', not 0"),
    (0, 1, np.float16, f"{HOOK} is float16\\[12, 4\\], its commit and run.json say float32\\[12, 4\\]"),
])
def test_deep_finds_an_object_of_another_place(store, worker_id, number, dtype, message):
    batch = batches_of(store.streams, 0, Cursor(2, 8))[0]
    recommit(store, shard_of(batch, worker_id, number, dtype))
    assert_found(store.problems(deep=True), f"{DATA}: {message}")


def test_deep_finds_the_records_of_another_batch(store):
    recommit(store, shard_of(batches_of(store.streams, 1, Cursor(2, 8))[0], 0, 1))
    assert f"{DATA}: the record ids of its header are not those of its commit" in store.problems(deep=True)


def test_deep_names_bytes_that_are_no_data_object(store):
    store.put(DATA, b"these are not tensors")
    store.edit(COMMIT, data__crc32c=crc32c_base64(b"these are not tensors"), data__size=21)
    assert f"{DATA}: cut off inside its header" in store.problems(deep=True)


def test_values_that_are_not_finite_are_counted_and_no_damage(store):
    def change(arrays):
        values = arrays[HOOK].copy()
        values[1, 2], values[4, 2], values[5, 0] = np.nan, np.inf, -np.inf
        with np.errstate(invalid="ignore"):
            for total, new in ((f"{HOOK}.sum", values.sum(0)), (f"{HOOK}.sum_of_squares", np.square(values).sum(0))):
                arrays[total][:] = new
        arrays[HOOK][:] = values

    store.change_data(change)
    audit = store.audit(deep=True)
    assert (audit.exit_code, audit.to_json()["not_finite"]) == (0, {HOOK: {"nan": 1, "inf": 2}})
    assert f"not finite: {HOOK} has 1 NaN and 2 infinite values" in audit.to_text()
    assert audit.workers[1].to_json(deep=True)["not_finite"] == {}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_runs_of_other_dtypes_are_proven(empty, dtype):
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker, store_dtype=dtype)
    assert empty.problems(deep=True) == []


def test_runs_that_truncate_are_proven_and_longer_records_are_not(empty):
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker, long_documents="truncate")
    assert empty.problems(deep=True) == []
    empty.edit(COMMIT, cursor_after={"record": 5, "token_offset": 8})
    assert any(problem.startswith(f"{COMMIT}: a cursor stands inside a window") for problem in empty.problems())


def test_every_byte_of_a_data_object_counts(tmp_path, streams):
    """Whatever byte is flipped, the audit names the object, deep or not."""
    storage = open_storage(str(tmp_path))
    extract(storage, streams, 0)
    path = tmp_path / DATA
    data = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        for deep in (False, True):
            assert [p for p in audit_run(str(tmp_path), deep=deep).problems if p.startswith(DATA)]


def test_symbolic_links_of_the_owner_are_followed(tmp_path, streams):
    storage = open_storage(str(tmp_path / "run"))
    for worker in range(NUM_WORKERS):
        extract(storage, streams, worker)
    (tmp_path / "run/worker-00001").rename(tmp_path / "other-disk")
    (tmp_path / "run/worker-00001").symlink_to(tmp_path / "other-disk")
    assert audit_run(str(tmp_path / "run"), deep=True).verdict == "proven"
    (tmp_path / "other-disk/commits/00000001.json").unlink()
    (tmp_path / "other-disk/commits/00000001.json").symlink_to("/nowhere")
    assert "worker-00001/commits/00000001.json is missing" in audit_run(str(tmp_path / "run")).problems[0]


def test_sums_over_many_rows_hold_to_their_rounding(tmp_path):
    """float32 sums of a step, as the device makes them, are within the bound; ten times the bound is not."""
    run = RunFacts("", "", "", None, (HOOK,), "float32", 2048, 4, 8192, False)
    batch = batches_of(make_streams(tmp_path), 0, Cursor(0, 0))[0]
    shard = shard_of(batch, 0, 0)
    values = np.random.default_rng(0).standard_normal((8192, 4)).astype(np.float32)
    shard.arrays[HOOK] = values
    parts = values.reshape(4, 2048, 4)
    for part, powers in (("sum", parts), ("sum_of_squares", parts**2)):
        shard.arrays[f"{HOOK}.{part}"][:] = powers.cumsum(axis=1, dtype=np.float32)[:, -1].sum(axis=0, dtype=np.float32)
    assert list(_check_values(shard, HOOK, run, Counter())) == []
    shard.arrays[f"{HOOK}.sum_of_squares"][0] *= 1.003
    assert len(list(_check_values(shard, HOOK, run, Counter()))) == 1

