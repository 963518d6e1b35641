"""The audit of a run that workers are writing, and of a listing that misses names."""

import threading

import checkpoint
from extraction.audit.verify import audit_run
from extraction.storage import open_storage
from tests.helpers.stream_runs import (
    COMMIT,
    NUM_WORKERS,
    extract,
)


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


def test_symbolic_links_of_the_owner_are_followed(tmp_path, run_streams):
    storage = open_storage(str(tmp_path / "run"))
    for worker in range(NUM_WORKERS):
        extract(storage, run_streams, worker)
    (tmp_path / "run/worker-00001").rename(tmp_path / "other-disk")
    (tmp_path / "run/worker-00001").symlink_to(tmp_path / "other-disk")
    assert audit_run(str(tmp_path / "run"), deep=True).verdict == "proven"
    (tmp_path / "other-disk/commits/00000001.json").unlink()
    (tmp_path / "other-disk/commits/00000001.json").symlink_to("/nowhere")
    assert "worker-00001/commits/00000001.json is missing" in audit_run(str(tmp_path / "run")).problems[0]
