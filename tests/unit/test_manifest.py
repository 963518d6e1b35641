"""The manifest: digests, and the field that is named where one is wrong."""

import json

import pyarrow.parquet as pq
import pytest

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets import fineweb
from extraction.format.digests import digest_of
from extraction.storage import open_storage
from extraction.streams.extensions import load_manifest
from extraction.streams.manifest import canonical_json, parse_manifest
from extraction.streams.stream import open_stream
from tests.helpers.corpora import (
    write_corpus,
)
from tests.unit.test_streams import FILES, one_stream


@pytest.fixture
def corpus(tmp_path):
    """A folder of Parquet files, and the location of two streams over it."""
    write_corpus(tmp_path / "corpus", FILES)
    fineweb.create(open_storage(str(tmp_path / "streams")), str(tmp_path / "corpus"), 2)
    return tmp_path / "corpus", str(tmp_path / "streams")


def test_the_digest_is_that_of_the_bytes(corpus):
    data = open_storage(corpus[1]).read("manifest.json")
    manifest = load_manifest(corpus[1])
    assert manifest.digest == digest_of(data)
    assert data == canonical_json(json.loads(data)) and data.endswith(b"}\n")


def test_the_digest_of_a_stream_follows_its_own_files_only(tmp_path):
    digests = []
    for last in (1, 2):
        write_corpus(tmp_path / "corpus", [[2], [last]])
        published = fineweb.create(open_storage(str(tmp_path / f"streams{last}")), str(tmp_path / "corpus"), 2)
        digests.append([stream.digest for stream in published.manifest.streams])
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]


def test_the_same_rows_by_another_writer_are_explained(corpus):
    file = sorted(corpus[0].glob("*.parquet"))[0]
    pq.write_table(pq.read_table(file), file, compression="gzip")
    with pytest.raises(InvalidRequest, match="differs in its content, or was written by another version of pyarrow"):
        fineweb.create(open_storage(corpus[1]), str(corpus[0]), 2)


def test_no_manifest_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(InvalidRequest, match="holds no manifest.json"):
        load_manifest(str(tmp_path))


def changed(value, path, new):
    """The JSON value with the field at `path` set to `new`, or taken out if `new` is `...`."""
    target = value
    for key in path[:-1]:
        target = target[key]
    if new is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return value


@pytest.mark.parametrize(
    "path, new, named",
    [
        (["schema"], 1, "schema is 1; this version reads schema 2: make the streams again"),
        (["schema"], ..., "schema is missing"),
        (["dataset"], None, "dataset is not a string"),
        (["source"], 3, "source is not a string"),
        (["revision"], ..., "revision is missing"),
        (["revision"], 3, "revision is not a string"),
        (["options"], [], "options is not an object"),
        (["num_streams"], 3, "num_streams is 3, but 2 streams are listed"),
        (["num_streams"], True, "num_streams is not a whole number"),
        (["num_records"], 17, "num_records is 17, but the streams hold 16"),
        (["num_records"], -1, "num_records is -1, below zero"),
        (["files"], {}, "files is not a list"),
        (["files", 0], "x", "files[0] is not an object"),
        (["files", 0, "name"], "../x.parquet", "files[0].name is '../x.parquet'"),
        (["files", 0, "name"], "a/../../x.parquet", "files[0].name"),
        (["files", 0, "name"], "", "files[0].name"),
        (["files", 0, "name"], "/x\0.parquet", "files[0].name"),
        (["files", 0, "size"], 1.5, "files[0].size is not a whole number"),
        (["files", 0, "num_rows"], 6, "files[0].num_rows is 6, but the streams hold 5"),
        (["files", 0, "footer"], "md5:abc", "files[0].footer is not sha256:"),
        (["files", 0, "content"], ..., "files[0] has neither etag nor content"),
        (["files", 0, "content"], 3, "files[0].content is not an object"),
        (["files", 0, "content", "text"], [1 << 32, 5], "files[0].content.text is not a list of crc32c's"),
        (["files", 0, "content", "text"], [1], "files[0].content has lists of different lengths"),
        (["files", 0, "skipped"], [[0, 1, 2]], "files[0].skipped is not a list of [row group, row]"),
        (["files", 0, "skipped"], [[0, 1], [0, 1]], "files[0].skipped is not in order"),
        (["options", "skipped"], {"count": 1, "first": [3]}, "options.skipped.first is not a list of strings"),
        (["options", "skipped"], {"first": []}, "options.skipped.count is missing"),
        (["streams", 1, "num_records"], 8, "streams[1].num_records is not the sum"),
        (["streams", 1, "digest"], ..., "streams[1].digest is missing"),
        (["streams", 1, "pieces", 0], [1, 0, 0], "streams[1].pieces[0] is not [file"),
        (["streams", 1, "pieces", 0], [2, 0, 0, 7, 8], "streams[1].pieces[0] is [2, 0, 0, 7, 8]"),
        (["options"], {"filter": {"language": "en"}}, "options.filter is not one that this version can apply"),
        (["options"], {"filter": 3}, "options.filter is not an object"),
        (["streams", 1, "pieces", 0], [9, 0, 0, 1], "streams[1].pieces[0] is [9, 0, 0, 1]"),
        (["streams", 1, "pieces", 0], [0, 0, -1, 1], "streams[1].pieces[0] is [0, 0, -1, 1]"),
        (
            ["streams", 0, "pieces"],
            [[0, 0, 0, 3], [0, 0, 1, 2], [1, 0, 0, 4]],
            "streams hold rows twice: [0, 0, 0, 3] and [0, 0, 1, 2]",
        ),
    ],
)
def test_a_manifest_that_is_wrong_names_the_field(corpus, path, new, named):
    value = json.loads(open_storage(corpus[1]).read("manifest.json"))
    with pytest.raises(DamagedData) as error:
        parse_manifest(canonical_json(changed(value, path, new)), "there/manifest.json")
    assert str(error.value).startswith("there/manifest.json: ") and named in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"1" * 5000])
def test_what_is_no_manifest_is_damage(data):
    with pytest.raises(DamagedData, match="there/manifest.json"):
        parse_manifest(data, "there/manifest.json")


def test_a_piece_beyond_its_row_group_is_damage(tmp_path):
    one_stream(tmp_path, [range(5)])
    storage = open_storage(str(tmp_path / "streams"))
    for piece in ([0, 0, 1, 5], [0, 1, 0, 5]):
        value = changed(json.loads(storage.read("manifest.json")), ["streams", 0, "pieces", 0], piece)
        stream = open_stream(parse_manifest(canonical_json(value), "there"), storage, 0)
        with pytest.raises(DamagedData, match=f"x.parquet: row group {piece[1]}"):
            list(stream.read_records())
