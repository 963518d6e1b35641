"""`check` proves that streams are disjoint, complete and unchanged: each thing that can be wrong is named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from create_dataset_streams import cli
from extraction.core.count_of import count_of
from extraction.datasets import fineweb
from extraction.datasets.fineweb import FinewebOptions
from extraction.storage import open_storage
from extraction.streams.build.materialize import Row, publish_rows
from extraction.streams.build.publish import Origin
from extraction.streams.manifest import canonical_json
from tests.helpers.corpora import column_chunks, write_corpus, write_parquet
from tests.helpers.fake_hub import FakeHub

FILES = [[3, 2], [4], [1, 1, 5]]


def check(location, *flags):
    result = CliRunner().invoke(cli, ["check", str(location), *flags])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus", FILES)
    fineweb.create(open_storage(str(tmp_path / "out")), str(tmp_path / "corpus"), 2)
    return tmp_path / "corpus"


@pytest.fixture
def materialised(tmp_path):
    rows = (Row(f"id {n}", f"text {n}") for n in range(10))
    publish_rows(open_storage(str(tmp_path / "out")), Origin("arc-agi", "here"), rows, 3)
    return tmp_path / "out"


def assert_wrong(result, *said):
    """Exit code 65, a line for each thing, and one on stderr that counts them."""
    assert result.exit_code == 65, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == len(said) and f"{count_of(len(said), 'problem')} found" in result.stderr
    for words, line in zip(said, lines, strict=True):
        assert words in line


def test_what_is_whole_is_proven(corpus, tmp_path):
    result = check(tmp_path / "out")
    assert result.exit_code == 0
    assert (
        result.stdout
        == f"{tmp_path}/out: 2 streams, 16 records: disjoint, complete, unchanged by content (3 files), every id once\n"
    )


def test_streams_of_our_own_are_proven_in_a_bucket_too(storage):
    publish_rows(storage, Origin("arc-agi", "here"), (Row(f"{n}", "x") for n in range(10)), 3)
    assert check(storage.location).exit_code == 0


def test_a_part_of_a_hub_dataset_is_proven(tmp_path, monkeypatch):
    write_corpus(tmp_path / "web/data", FILES)
    with FakeHub(tmp_path, datasets={"lab/web": tmp_path / "web"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        for name, options in (("whole", {}), ("part", {"max_tokens": 40})):
            fineweb.create(
                open_storage(str(tmp_path / name)),
                "hf://datasets/lab/web/data",
                2,
                FinewebOptions(footer_cache="", **options),
            )
            assert check(tmp_path / name).exit_code == 0
        write_corpus(tmp_path / "web/data", [*FILES, [1]])
        assert_wrong(check(tmp_path / "whole"), "/data/003.parquet is in the source, but in no stream")


def test_no_manifest_is_a_mistake_of_the_caller(tmp_path):
    result = check(tmp_path)
    assert result.exit_code == 2 and "holds no manifest.json" in result.stderr


def test_files_that_are_lost_or_changed_are_all_named(corpus, tmp_path):
    (corpus / "000.parquet").unlink()
    write_parquet(corpus / "002.parquet", [range(30)])
    assert_wrong(check(tmp_path / "out"), "000.parquet: the file is missing", "002.parquet has")


def test_a_file_that_was_added_to_the_source_is_named(corpus, tmp_path):
    write_parquet(corpus / "003.parquet", [range(3)])
    assert_wrong(check(tmp_path / "out"), "003.parquet is in the source, but in no stream")


def test_ids_that_are_there_twice_are_named_with_both_places(tmp_path):
    table = pa.table({"text": ["a", "b", "c"], "id": ["x", "y", "x"], "token_count": [1, 1, 1]})
    write_parquet(tmp_path / "corpus/0.parquet", [table])
    write_parquet(tmp_path / "corpus/1.parquet", [table.slice(1, 1)])
    fineweb.create(open_storage(str(tmp_path / "out")), str(tmp_path / "corpus"), 2)
    assert_wrong(check(tmp_path / "out"), "the id 'x' is in two records: record 0 of stream 0 and record 2 of stream 0",
                 "the id 'y' is in two records: record 1 of stream 0 and record 0 of stream 1")  # fmt: skip
    assert check(tmp_path / "out", "--no-ids").exit_code == 0


@pytest.mark.parametrize("pieces, said", [
    ([[[0, 0, 0, 5], [2, 0, 0, 2]], [[1, 0, 0, 4], [2, 1, 0, 5]]],
     ["002.parquet: row 1 is in two streams ([2, 1, 0, 5])", "002.parquet: rows 6 to 6 are in no stream"]),
    ([[[0, 0, 0, 5], [1, 0, 0, 1], [1, 0, 2, 3]], [[2, 0, 0, 7]]],
     ["001.parquet: [1, 0, 2, 3] asks for rows that are not there", "001.parquet: rows 1 to 3 are in no stream"]),
    ([[[0, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 2]], [[1, 0, 0, 4], [2, 0, 0, 7]]], []),
])  # fmt: skip
def test_rows_that_are_in_two_streams_or_in_none_are_named(corpus, tmp_path, pieces, said):
    """As a manifest would have them that somebody edited so that all its sums are right."""
    storage = open_storage(str(tmp_path / "out"))
    value = json.loads(storage.read("manifest.json"))
    for stream, mine in enumerate(pieces):
        value["streams"][stream] |= {"pieces": mine, "num_records": sum(piece[3] for piece in mine)}
    storage.replace("manifest.json", canonical_json(value))
    if said:
        assert_wrong(check(tmp_path / "out"), *said)
    else:
        assert check(tmp_path / "out").exit_code == 0


def test_a_stream_file_that_was_changed_is_named(materialised):
    path = materialised / "stream-00001.parquet"
    data = bytearray(path.read_bytes())
    data[next(end for _, _, _, end in column_chunks(path)) - 1] ^= 1
    path.write_bytes(data)
    assert_wrong(check(materialised), "stream-00001.parquet: not the bytes of stream 1")


def test_a_stream_file_that_is_of_no_stream_is_named(materialised):
    (materialised / "stream-00003.parquet").write_bytes(b"")
    assert_wrong(check(materialised), "stream-00003.parquet exists, but is not in this manifest")


def test_rows_that_pass_the_filter_otherwise_are_named(tmp_path):
    table = pa.table({"text": ["a", "b"], "id": ["x", "y"], "language_score": [0.9, 0.1]})
    pq.write_table(table, tmp_path / "x.parquet")
    storage = open_storage(str(tmp_path / "out"))
    fineweb.create(storage, str(tmp_path / "x.parquet"), 1, FinewebOptions(min_language_score=0.5))
    assert check(tmp_path / "out").exit_code == 0
    value = json.loads(storage.read("manifest.json"))
    value["options"]["filter"]["min_language_score"] = 0.95
    storage.replace("manifest.json", canonical_json(value))
    assert_wrong(check(tmp_path / "out"), "row group 0 has 0 such records, the manifest says 1")
