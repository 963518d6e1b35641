"""What a worker says to a store, an input or a configuration that was changed between two starts, or under its feet."""

import json
import os
import shutil

import pytest

from checkpoint import CommitChain, list_commits
from extraction.core.errors import ConfigurationMismatch, DamagedData, InvalidRequest
from extraction.format.safetensors import decode_header
from extraction.storage import open_storage
from tests.helpers.batches import batches_from, data_of
from tests.helpers.gcs_objects import flipped
from tests.helpers.workers import MODEL, committed, extract, extract_here, make_streams, text_of, write_corpus

FINGERPRINT = "sha256:f"
LAST_DATA, LAST_COMMIT = "worker-00000/batches/00000002.safetensors", "worker-00000/commits/00000002.json"
MIDDLE_COMMIT = "worker-00000/commits/00000001.json"


def edited(**changes):
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def removed(data):
    return None


# ---------------------------------------------------------------------------------------------- the store


@pytest.mark.parametrize(
    "name, change, message",
    [
        (LAST_DATA, flipped, f"{LAST_DATA}: .* were committed; restore it"),
        (LAST_DATA, lambda data: data[:-1], f"{LAST_DATA}: .* were committed; restore it"),
        (LAST_DATA, removed, f"{LAST_DATA}: committed by batch 2, but it is not there"),
        (LAST_COMMIT, lambda data: b"", f"{LAST_COMMIT}: not a readable commit"),
        (LAST_COMMIT, lambda data: data[:100], f"{LAST_COMMIT}: not a readable commit"),
        (LAST_COMMIT, lambda data: b"\x80 not JSON", f"{LAST_COMMIT}: not a readable commit"),
        (LAST_COMMIT, edited(format=2), f"{LAST_COMMIT}: commit of format 2, this version reads 4"),
        (LAST_COMMIT, edited(stream=7), f"{LAST_COMMIT}: it says stream 7"),
        (LAST_COMMIT, edited(batch=1), f"{LAST_COMMIT}: "),
        (MIDDLE_COMMIT, removed, f"{MIDDLE_COMMIT} is missing, but {LAST_COMMIT} is there: restore it"),
        ("worker-00000/commits/00000003.json.bak", lambda data: b"{}", "00000003.json.bak: no commit has such a name"),
    ],
    ids=lambda value: getattr(value, "__name__", value) if callable(value) else None,
)
def test_a_damaged_store_is_named_and_left_as_it_is(storage, tamper, name, change, message):
    chain = CommitChain.load(storage, 0, FINGERPRINT)
    for batch in batches_from(chain.cursor)[:3]:
        chain.commit(batch, data_of(batch, chain.next_batch), {})
    tamper(name, change)
    before = [(info.name, info.size, info.generation) for info in storage.list()]
    with pytest.raises(DamagedData, match=message):
        CommitChain.load(storage, 0, FINGERPRINT)
    assert [(info.name, info.size, info.generation) for info in storage.list()] == before


def test_stored_bytes_that_are_corrupted_on_the_way_back_are_named(gcs):
    storage = open_storage("gs://bucket/some/run")
    chain = CommitChain.load(storage, 0, FINGERPRINT)
    batch = batches_from(chain.cursor)[0]
    chain.commit(batch, data_of(batch, 0), {})
    gcs.instruct("read", "*/commits/*", "corrupt")
    assert CommitChain.load(storage, 0, FINGERPRINT).next_batch == 1
    gcs.instruct("read", "*/commits/*", "corrupt", count=1000)
    with pytest.raises(DamagedData, match="gs://bucket/some/run/worker-00000/commits/00000000.json"):
        CommitChain.load(storage, 0, FINGERPRINT)


def test_a_listing_that_overtakes_a_commit_is_no_gap(tmp_path, monkeypatch):
    """A folder is read in any order: what is committed meanwhile can show without the commit before it."""
    storage = open_storage(str(tmp_path))
    chain = CommitChain.load(storage, 0, FINGERPRINT)
    for batch in batches_from(chain.cursor)[:3]:
        chain.commit(batch, data_of(batch, chain.next_batch), {})
    real = os.scandir

    def too_early_for_the_second(folder):
        with real(folder) as entries:
            return Entries(entry for entry in entries if entry.name != "00000001.json")

    class Entries(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(os, "scandir", too_early_for_the_second)
    assert [name[-13:] for name in list_commits(storage, 0)] == [f"{number:08d}.json" for number in range(3)]


# ---------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run over two files: (corpus, streams, output)."""
    folder = tmp_path_factory.mktemp("run")
    texts = [text_of(i, 6 + i * 4) for i in range(12)]
    for name, part in (("a.parquet", texts[:6]), ("b.parquet", texts[6:])):
        write_corpus(folder / "corpus", part, name=name)
    streams = make_streams(folder / "corpus", folder / "streams")
    extract_here(streams, folder / "output")
    return folder / "corpus", streams, folder / "output"


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def replaced(path):
    write_corpus(path.parent, [text_of(i + 50, 9) for i in range(6)], name=path.name)


@pytest.mark.slow
@pytest.mark.parametrize("change", [cut, replaced, lambda path: path.unlink()], ids=["cut", "replaced", "missing"])
def test_an_input_file_that_changes_half_way_is_named_and_what_came_before_is_kept(run, tmp_path, change):
    corpus, streams, output = run
    expected, kept = committed(open_storage(str(output))), tmp_path / "b.parquet"
    shutil.copy(corpus / "b.parquet", kept)
    try:
        change(corpus / "b.parquet")
        with pytest.raises(DamagedData, match=str(corpus / "b.parquet")):
            extract_here(streams, tmp_path / "output")
    finally:
        shutil.copy(kept, corpus / "b.parquet")
    done = committed(open_storage(str(tmp_path / "output")))
    assert 2 <= len(done) < len(expected) and done == expected[: len(done)]
    extract_here(streams, tmp_path / "output")
    assert committed(open_storage(str(tmp_path / "output"))) == expected


def other_weights(model):
    path, data = model / "model.safetensors", bytearray((model / "model.safetensors").read_bytes())
    start, header = decode_header(data)
    data[start + header["model.embed_tokens.weight"]["data_offsets"][0]] ^= 1
    path.write_bytes(data)


def other_tokenizer(model):
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": None}, indent=3))


@pytest.mark.slow
@pytest.mark.parametrize("change, field", [(other_weights, "weights_digest"), (other_tokenizer, "tokenizer_digest")])
def test_another_model_under_the_same_name_is_refused_with_both_values(run, tmp_path, change, field):
    _, streams, output = run
    model = shutil.copytree(MODEL, tmp_path / MODEL.name)
    before = committed(open_storage(str(output)))
    change(model)
    with pytest.raises(ConfigurationMismatch) as caught:
        extract_here(streams, output, "--model", model)
    stored = json.loads((output / "run.json").read_text())["config"][field]
    lines = str(caught.value).partition("another run config: ")[2].split("; ")
    assert len(lines) == 1 and lines[0].startswith(f'{field}: "{stored}" in the run, "sha256:') and "now" in lines[0]
    assert committed(open_storage(str(output))) == before


@pytest.mark.slow
def test_a_tokenizer_that_is_not_of_the_model_is_refused(run, tmp_path):
    model = shutil.copytree(MODEL, tmp_path / MODEL.name)
    config = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))
    with pytest.raises(InvalidRequest, match="ids up to 2047, the embedding has 1000 rows"):
        extract_here(run[1], tmp_path / "output", "--model", model)
    assert not (tmp_path / "output/run.json").exists()


@pytest.mark.slow
def test_other_streams_in_the_same_place_are_refused_with_both_values(run, tmp_path):
    streams = make_streams(write_corpus(tmp_path / "corpus", ["other", "texts"]), tmp_path / "streams")
    with pytest.raises(ConfigurationMismatch, match='manifest_digest: "sha256:.*" in the run, "sha256:.*" now'):
        extract_here(streams, run[2])


@pytest.mark.slow
def test_damage_is_exit_65_a_storm_75_and_no_permission_77(run, gcs, tmp_path):
    _, streams, output = run
    copy = shutil.copytree(output, tmp_path / "copy")
    last = sorted((copy / "worker-00000/batches").iterdir())[-1]
    last.write_bytes(flipped(last.read_bytes()))
    result = extract(streams, copy)
    assert result.returncode == 65, result.stderr
    assert f"error: worker-00000/batches/{last.name}" in result.stderr
    assert "restore what is named above from a copy (`repair OUTPUT` recomputes a batch file)" in result.stderr
    storm = gcs.instruct("insert", "run/*", "fail", count=10_000)
    result = extract(streams, "gs://bucket/run", EXTRACT_RETRY_DEADLINE="0.5")
    assert result.returncode == 75, result.stderr
    assert "error: gs://bucket/run/run.json: no success within 0.5 s: 503" in result.stderr
    storm.count, gcs.permissions = 0, frozenset({"get", "list"})
    result = extract(streams, "gs://bucket/run")
    assert result.returncode == 77, result.stderr
    assert "error: storage.objects.create on gs://bucket was refused" in result.stderr
