"""What resuming means: the specification of the commit chain, on a local folder and on a GCS server.

A worker is killed by leaving its chain where it is and loading a new one, as a new process does. The tests that kill
real processes are in test_kill_points.py.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import checkpoint
from checkpoint import CommitChain
from extraction.core.errors import ConfigurationMismatch, DamagedData, Fenced
from extraction.core.versions import software_versions, version_differences
from extraction.format.commit import parse_commit
from extraction.format.records import Cursor
from extraction.format.run_config import RunDescription
from extraction.storage import open_storage
from tests.helpers.batches import LENGTHS, batches_from, data_of, extract_all
from tests.helpers.runs import CONFIG

FINGERPRINT = "sha256:of-the-configuration"
NUM_BATCHES = len(batches_from(Cursor(0, 0)))


def load(storage, fingerprint=FINGERPRINT):
    return CommitChain.load(storage, 0, fingerprint)


def commit_next(chain):
    batch = batches_from(chain.cursor)[0]
    return chain.commit(batch, data_of(batch, chain.next_batch), {"step": 0.5})


def committed(storage):
    """What a reader sees: each commit without what names the attempt, and the bytes of its data."""
    seen = []
    for name in checkpoint.list_commits(storage, 0):
        commit = json.loads(storage.read(name))
        data = commit["data"] and storage.read("worker-00000/" + commit["data"]["name"])
        numbers = ("batch", "cursor_before", "cursor_after", "num_records", "num_rows", "end_of_stream")
        seen.append(({key: commit[key] for key in numbers}, data))
    return seen


@pytest.fixture
def undisturbed(tmp_path):
    storage = open_storage(str(tmp_path / "undisturbed"))
    extract_all(load(storage))
    return committed(storage)


def test_a_new_worker_stands_at_the_beginning(storage):
    chain = load(storage)
    assert (chain.cursor, chain.next_batch, chain.end_of_stream) == (Cursor(0, 0), 0, False)


def test_a_commit_has_the_keys_of_the_format(storage):
    commit_next(load(storage))
    commit = json.loads(storage.read("worker-00000/commits/00000000.json"))
    assert commit["format"] == 4
    assert commit["cursor_before"] == {"record": 0, "token_offset": 0}
    assert commit["cursor_after"] == {"record": 2, "token_offset": 8}
    assert (commit["num_records"], commit["num_rows"], commit["end_of_stream"]) == (3, 16, False)
    assert commit["data"]["name"] == "batches/00000000.safetensors"
    info = storage.stat("worker-00000/batches/00000000.safetensors")
    assert (commit["data"]["size"], commit["data"]["crc32c"]) == (info.size, info.crc32c)
    assert commit["data"]["generation"] == info.generation
    assert commit["seconds"].keys() == {"step", "upload"}


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(NUM_BATCHES + 1))
def test_stopped_after_any_batch_it_ends_with_the_same_bytes(storage, undisturbed, stop):
    chain = load(storage)
    for _ in range(stop):
        commit_next(chain)
    extract_all(load(storage))
    assert committed(storage) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("first", range(NUM_BATCHES))
def test_stopped_twice_it_ends_with_the_same_bytes(storage, undisturbed, first):
    for stop in (first, (NUM_BATCHES - first) // 2):
        chain = load(storage)
        for _ in range(stop):
            commit_next(chain)
    extract_all(load(storage))
    assert committed(storage) == undisturbed


def test_resuming_lists_the_commits_reads_the_last_and_the_first_and_looks_up_the_data_of_the_last(gcs):
    storage = open_storage("gs://bucket/run")
    extract_all(load(storage))
    before = len(gcs.operations())
    load(storage)
    last = f"{NUM_BATCHES - 1:08d}"
    assert gcs.operations()[before:] == [
        "list run/worker-00000/commits/",
        f"read run/worker-00000/commits/{last}.json",
        "read run/worker-00000/commits/00000000.json",
        f"get run/worker-00000/batches/{last}.safetensors",
    ]


def test_a_chain_that_follows_another_run_json_is_not_continued(storage):
    commit_next(CommitChain.load(storage, 0, FINGERPRINT, "sha256:of-run-json"))
    commit_next(CommitChain.load(storage, 0, FINGERPRINT, "sha256:of-run-json"))
    with pytest.raises(DamagedData, match="commits/00000000.json: follows another run.json"):
        CommitChain.load(storage, 0, FINGERPRINT, "sha256:of-another")


def test_the_end_of_the_stream_is_remembered(storage):
    extract_all(load(storage))
    chain = load(storage)
    assert chain.end_of_stream
    assert chain.cursor == Cursor(len(LENGTHS), 0)


def test_killed_between_data_and_commit_the_data_is_adopted(storage):
    chain = load(storage)
    batch = batches_from(chain.cursor)[0]
    storage.create("worker-00000/batches/00000000.safetensors", data_of(batch, 0))
    before = storage.stat("worker-00000/batches/00000000.safetensors").generation
    assert commit_next(chain).data.name == "batches/00000000.safetensors"
    assert storage.stat("worker-00000/batches/00000000.safetensors").generation == before


def test_uncommitted_data_with_other_bytes_is_left_alone(storage):
    storage.create("worker-00000/batches/00000000.safetensors", b"of a forgotten attempt")
    chain = load(storage)
    name = commit_next(chain).data.name
    assert name == f"batches/00000000-{chain.attempt.id}.safetensors"
    assert storage.read("worker-00000/batches/00000000.safetensors") == b"of a forgotten attempt"
    assert load(storage).cursor == chain.cursor


def test_of_two_workers_on_one_stream_the_second_is_fenced(storage):
    winner, loser = load(storage), load(storage)
    commit_next(winner)
    with pytest.raises(Fenced, match=winner.attempt.id):
        commit_next(loser)
    assert loser.cursor == Cursor(0, 0)
    assert load(storage).cursor == winner.cursor


def test_a_batch_that_does_not_begin_at_the_cursor_is_refused(storage):
    batches = batches_from(Cursor(0, 0))
    with pytest.raises(ValueError, match="the chain ends at"):
        load(storage).commit(batches[1], data_of(batches[1], 0), {})
    assert checkpoint.list_commits(storage, 0) == []


def test_nothing_follows_the_end_of_the_stream(storage):
    extract_all(load(storage))
    chain, before = load(storage), checkpoint.list_commits(storage, 0)
    (batch,) = batches_from(chain.cursor)
    with pytest.raises(ValueError, match="the stream has ended"):
        chain.commit(batch, data_of(batch, chain.next_batch), {})
    assert checkpoint.list_commits(storage, 0) == before


def test_a_stream_without_tokens_ends_with_a_commit_without_data(storage):
    chain = load(storage)
    (batch,) = batches_from(Cursor(0, 0), ())
    chain.commit(batch, data_of(batch, 0), {})
    assert json.loads(storage.read("worker-00000/commits/00000000.json"))["data"] is None
    assert load(storage).end_of_stream


def test_another_configuration_stops_the_worker(storage):
    commit_next(load(storage))
    with pytest.raises(ConfigurationMismatch, match="sha256:other"):
        load(storage, "sha256:other")


def test_joining_a_run_names_each_field_that_differs(storage):
    first = RunDescription(CONFIG, "somewhere")
    checkpoint.join_run(storage, first)
    assert checkpoint.join_run(storage, RunDescription(CONFIG, "elsewhere")) == first
    with pytest.raises(
        ConfigurationMismatch, match='seq_len: 8 in the run, 2048 now; bos: "never" in the run, "auto" now'
    ):
        checkpoint.join_run(storage, RunDescription(replace(CONFIG, seq_len=2048, bos="auto"), "somewhere"))


@pytest.mark.parametrize("own", [CONFIG, replace(CONFIG, seq_len=2048)])
def test_of_two_workers_that_found_no_run_the_slower_one_joins_the_other(gcs, own):
    """Unless it has another configuration."""
    storage, told = open_storage("gs://bucket/run"), gcs.instruct("insert", "*run.json", "hold")
    with ThreadPoolExecutor(1) as pool:
        slower = pool.submit(checkpoint.join_run, storage, RunDescription(own, "elsewhere"))
        assert told.entered.wait(30)
        first = checkpoint.join_run(open_storage("gs://bucket/run"), RunDescription(CONFIG, "somewhere"))
        told.release.set()
    if own == CONFIG:
        assert slower.result() == first
    else:
        with pytest.raises(ConfigurationMismatch, match="seq_len: 8 in the run, 2048 now"):
            slower.result()


def test_a_lost_run_json_is_not_made_anew(storage):
    commit_next(load(storage))
    with pytest.raises(DamagedData, match="run.json is missing, but worker-00000/commits/00000000.json is there"):
        checkpoint.join_run(storage, RunDescription(CONFIG, "somewhere"))
    assert storage.folders() == ["worker-00000"]


def test_a_run_that_is_begun_while_a_worker_looks_for_it_is_joined(gcs):
    storage, told = open_storage("gs://bucket/run"), gcs.instruct("list", "*worker-*", "hold")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(checkpoint.join_run, storage, RunDescription(CONFIG, "elsewhere"))
        assert told.entered.wait(30)
        first = checkpoint.join_run(open_storage("gs://bucket/run"), RunDescription(CONFIG, "somewhere"))
        commit_next(load(open_storage("gs://bucket/run")))
        told.release.set()
    assert late.result() == first


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a readable commit"),
        (b'{"format": 4, "stream"', "not a readable commit"),
        (b"[1, 2]", "not a readable commit"),
        (b'{"format": 2}', "format 2"),
        (b'{"format": 4, "stream": 0}', "not a readable commit"),
    ],
)
def test_an_unreadable_last_commit_stops_the_worker_and_is_named(storage, content, message):
    commit_next(load(storage))
    storage.create("worker-00000/commits/00000001.json", content)
    with pytest.raises(DamagedData, match=f"commits/00000001.json.*{message}"):
        load(storage)


def test_every_key_of_a_commit_is_required_and_others_are_ignored():
    example = {
        "format": 4,
        "stream": 3,
        "batch": 41,
        "cursor_before": {"record": 1200, "token_offset": 0},
        "cursor_after": {"record": 1236, "token_offset": 2048},
        "data": {
            "name": "batches/00000041.safetensors",
            "size": 117440512,
            "crc32c": "AAAAAA==",
            "generation": 1763937000000000,
        },
        "previous": "sha256:2",
        "num_records": 37,
        "num_rows": 65110,
        "num_tokens": 65200,
        "end_of_stream": False,
        "attempt": "5f0c",
        "fingerprint": "sha256:0",
        "seconds": {"step": 1.91, "upload": 0.74},
        "record_ids_digest": "sha256:1",
        "reconstruction_error": {},
        "not_finite": {},
        "host": "machine",
        "started": "2026-01-01T00:00:00Z",
        "versions": {"jax": "0.9"},
        "totals": {
            "rows": 65110,
            "tokens": 65200,
            "bytes": 117440512,
            "attempts": 1,
            "seconds": {"step": 1.91},
            "not_finite": {},
        },
    }
    commit = parse_commit(json.dumps(example | {"later": 1}).encode(), "commit")
    assert (commit.cursor_after, commit.data.size, commit.totals.tokens) == (Cursor(1236, 2048), 117440512, 65200)
    for key in example:
        with pytest.raises(DamagedData, match=f"not a readable commit .*{key}"):
            parse_commit(json.dumps({k: v for k, v in example.items() if k != key}).encode(), "commit")
    for key in example["totals"]:
        less = example | {"totals": {k: v for k, v in example["totals"].items() if k != key}}
        with pytest.raises(DamagedData, match=f"not a readable commit .*{key}"):
            parse_commit(json.dumps(less).encode(), "commit")


def test_a_gap_stops_the_worker_and_names_what_is_missing(storage):
    commit_next(load(storage))
    storage.create("worker-00000/commits/00000002.json", b"{}")
    with pytest.raises(DamagedData, match="commits/00000001.json is missing"):
        load(storage)


def test_a_damaged_or_missing_last_data_object_stops_the_worker(tmp_path):
    storage = open_storage(str(tmp_path))
    commit_next(load(storage))
    path = tmp_path / "worker-00000/batches/00000000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedData, match="batches/00000000.safetensors.*were committed"):
        load(storage)
    path.unlink()
    with pytest.raises(DamagedData, match="batches/00000000.safetensors.*not there"):
        load(storage)


@pytest.mark.parametrize("name", ["../../secret", "batches/../x.safetensors", "batches/00000000.safetensors"])
def test_a_commit_cannot_name_data_outside_its_folder_or_of_another_batch(tmp_path, name):
    commit = commit_next(load(open_storage(str(tmp_path))))
    stolen = json.loads(commit.to_bytes()) | {"batch": 1}
    stolen["data"] = stolen["data"] | {"name": name}
    with pytest.raises(DamagedData, match="not one of this batch in the batches folder"):
        parse_commit(json.dumps(stolen).encode(), "commit")


def test_the_last_commit_sums_up_the_whole_chain(storage):
    for _ in range(2):
        commit_next(load(storage))
    extract_all(load(storage))
    commits = [json.loads(storage.read(name)) for name in checkpoint.list_commits(storage, 0)]
    totals = commits[-1]["totals"]
    assert totals["rows"] == sum(commit["num_rows"] for commit in commits) == sum(LENGTHS)
    assert totals["bytes"] == sum(commit["data"]["size"] for commit in commits if commit["data"])
    assert totals["attempts"] == len({commit["attempt"] for commit in commits}) == 3
    assert totals["seconds"]["step"] == pytest.approx(sum(commit["seconds"].get("step", 0) for commit in commits))


def test_each_commit_and_the_run_say_which_software_it_was(storage):
    run = checkpoint.join_run(storage, RunDescription(CONFIG, "somewhere", versions=software_versions()))
    commit = commit_next(load(storage))
    assert run.versions == commit.versions == checkpoint.read_run(storage).versions
    assert {"project", "jax", "jaxlib", "flax"} <= commit.versions.keys()


def test_other_software_is_named():
    assert version_differences(software_versions(), software_versions()) == []
    (line,) = version_differences(software_versions() | {"jax": "0.1"}, software_versions())
    assert line.startswith("jax: 0.1 in the run, ")
    for name in ("libtpu", "tokenizers", "transformers", "device"):
        (line,) = version_differences({name: "one"}, {name: "other"})
        assert line == f"{name}: one in the run, other here"
