"""Which files a source is, through the command line: exactly those named, by split and configuration."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.streams.extensions import load_manifest
from tests.helpers.corpora import read_all
from tests.unit.test_check_streams import check
from tests.unit.test_create_dataset_streams import assert_refused, create


def lines(*texts, **more):
    return "".join(json.dumps({"text": text} | more) + "\n" for text in texts)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def parquet(path, texts, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, "id": texts} | columns), path)


def texts_of(result, location):
    assert result.exit_code == 0, result.stderr
    return [text for stream in read_all(str(location)) for _, text in stream]


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.jsonl", "a?.jsonl", "[ab]/a1.jsonl"])
@pytest.mark.parametrize("place", ["local", "bucket"])
def test_a_path_that_exists_is_that_file_whatever_its_characters(tmp_path, request, name, place):
    for other in ("a1.jsonl", "a/a1.jsonl", "b/a1.jsonl"):
        write(tmp_path / "in" / other, lines("another"))
    write(tmp_path / "in" / name, lines("this"))
    source = f"{tmp_path}/in/{name}"
    if place == "bucket":
        gcs, source = request.getfixturevalue("gcs"), f"gs://bucket/in/{name}"
        for path in (tmp_path / "in").rglob("*.jsonl"):
            gcs.land(str(path.relative_to(tmp_path)), path.read_bytes(), None)
    assert texts_of(create("text", source, 1, tmp_path / "out"), tmp_path / "out") == ["this"]


def test_a_glob_is_one_where_nothing_has_that_name(tmp_path):
    write(tmp_path / "a1.jsonl", lines("one"))
    write(tmp_path / "a2.jsonl", lines("two"))
    write(tmp_path / "b/c.jsonl", lines("deep"))
    for number, (glob, expected) in enumerate([("a[1].jsonl", ["one"]), ("a?.jsonl", ["one", "two"]), ("[b]", ["deep"]),
                                               ("**/*.jsonl", ["one", "two", "deep"])]):  # fmt: skip
        assert (
            texts_of(create("text", tmp_path / glob, 1, tmp_path / f"out/{number}"), tmp_path / f"out/{number}")
            == expected
        )


def test_all_files_of_one_kind_are_read_and_said(tmp_path):
    write(tmp_path / "in/train.jsonl", lines("one"))
    write(tmp_path / "in/part-001.jsonl", lines("two"))
    write(tmp_path / "in/more.ndjson", lines("three"))
    for name in ("README.md", ".gitattributes", "LICENSE", "make.py", "dataset_infos.json", "README.txt"):
        write(tmp_path / "in" / name, "words")
    result = create("text", tmp_path / "in", 1, tmp_path / "out")
    assert texts_of(result, tmp_path / "out") == ["three", "two", "one"]
    first, second = result.stderr.splitlines()
    size = sum((tmp_path / "in" / name).stat().st_size for name in ("train.jsonl", "part-001.jsonl", "more.ndjson"))
    assert first == f"reading 3 files, {size} bytes: " + ", ".join(
        f"{tmp_path}/in/{name}" for name in ("more.ndjson", "part-001.jsonl", "train.jsonl")
    )
    assert second == "not reading 5 other files there: LICENSE, README.md, README.txt, dataset_infos.json, make.py"


def test_files_of_two_kinds_are_refused_and_a_glob_chooses(tmp_path):
    write(tmp_path / "in/a.jsonl", lines("one"))
    write(tmp_path / "in/b.jsonl", lines("two"))
    write(tmp_path / "in/c.csv", "text\nthree\n")
    refused = create("text", tmp_path / "in", 1, tmp_path / "out")
    assert_refused(refused, 2, "CSV files", "c.csv", "JSONL files", "a.jsonl", "choose one kind with a glob")
    assert texts_of(create("text", tmp_path / "in/*.csv", 1, tmp_path / "out"), tmp_path / "out") == ["three"]


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    write(tmp_path / "in/a.jsonl", lines("one"))
    (tmp_path / "in/again").symlink_to(tmp_path / "in")
    write(tmp_path / "elsewhere/b.jsonl", lines("two"))
    (tmp_path / "in/other").symlink_to(tmp_path / "elsewhere")
    assert texts_of(create("text", tmp_path / "in", 1, tmp_path / "out"), tmp_path / "out") == ["one", "two"]


@pytest.mark.parametrize("dataset", ["text", "ai2-arc", "arc-agi", "fineweb"])
def test_a_folder_without_data_is_one_line(tmp_path, dataset):
    (tmp_path / "in").mkdir()
    assert_refused(
        create(dataset, tmp_path / "in", 1, tmp_path / "out"), 2, f"{tmp_path}/in: no ", "no file in this folder"
    )
    write(tmp_path / "in/README.md", "words")
    assert_refused(create(dataset, tmp_path / "in", 1, tmp_path / "out"), 2, f"{tmp_path}/in: no ", "it has README.md")
    assert_refused(
        create(dataset, tmp_path / "x", 1, tmp_path / "out"), 2, f"{tmp_path}/x: no ", "no such file or folder"
    )


@pytest.mark.parametrize("dataset, name, data, said", [
    ("text", "x.jsonl", "", "it has no records"), ("text", "x.csv", "", "it has no records"),
    ("text", "x.txt", "", "it has no records"), ("text", "x.json", "", "it has no records"),
    ("text", "x.json", "[]", "it has no records"), ("text", "x.jsonl.gz", gzip.compress(b"", mtime=0), "it has no records"),
    ("ai2-arc", "x.jsonl", "\n", "it has no records"), ("arc-agi", "x.jsonl", "", "it has no tasks"),
    ("arc-agi", "x.json", "{}", "it has no tasks"),
])  # fmt: skip
def test_a_file_without_a_record_is_one_line(tmp_path, dataset, name, data, said):
    write(tmp_path / name, data)
    assert_refused(create(dataset, tmp_path / name, 1, tmp_path / "out"), 2, f"{tmp_path}/{name}", said)


@pytest.mark.parametrize("dataset, name, data, said", [
    ("text", "x.parquet", "", "does not end as a Parquet file"), ("arc-agi", "x.json", "", "is not valid JSON"),
    ("text", "x.jsonl.gz", gzip.compress(lines("a" * 99).encode(), mtime=0)[:-9], "Truncated"),
    ("text", "x.jsonl.zst", "no zstd", "cannot be read"),
])  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, dataset, name, data, said):
    write(tmp_path / name, data)
    assert_refused(create(dataset, tmp_path / name, 1, tmp_path / "out"), 65, f"{tmp_path}/{name}", said)


# ---------------------------------------------------------------------------------------------- kinds


PACKED = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: packed(data, "zstd"),
    ".bz2": lambda data: packed(data, "bz2"),
}


def packed(data, codec):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PLAIN = {
    "jsonl": '{"text": "é, \\"one\\"", "n": 1}\n\n{"text": "two\\nlines", "n": 2}\n',
    "ndjson": '{"text": "é, \\"one\\"", "n": 1}\r\n{"n": 2, "text": "two\\nlines"}',
    "json": '\n[{"text": "é, \\"one\\"", "n": 1},\n {"text": "two\\nlines", "n": 2}]',
    "csv": '\ufeffn,text\n1,"é, ""one"""\n2,"two\nlines"\n',
    "tsv": 'n\ttext\n1\t"é, ""one"""\n2\t"two\nlines"\n',
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", PLAIN)
def test_files_of_all_kinds_packed_or_not(tmp_path, kind, packing):
    path = write(tmp_path / f"in/x.{kind}{packing}", PACKED[packing](PLAIN[kind].encode()))
    for source, out in ((path, "file"), (path.parent, "folder")):
        result = create("text", source, 1, tmp_path / out, "--id-column", "n")
        assert result.exit_code == 0, result.stderr
        assert read_all(str(tmp_path / out)) == [[("1", 'é, "one"'), ("2", "two\nlines")]]


def test_json_may_be_lines_or_one_object(tmp_path):
    write(tmp_path / "lines.json", lines("one", "two"))
    write(tmp_path / "object.json", '{\n "text": "one"\n}\n')
    assert texts_of(create("text", tmp_path / "lines.json", 1, tmp_path / "a"), tmp_path / "a") == ["one", "two"]
    assert texts_of(create("text", tmp_path / "object.json", 1, tmp_path / "b"), tmp_path / "b") == ["one"]


def test_lines_of_text_are_records_also_empty_ones(tmp_path):
    write(tmp_path / "x.txt.gz", gzip.compress(b"one\r\n\ntwo"))
    assert texts_of(create("text", tmp_path / "x.txt.gz", 1, tmp_path / "a"), tmp_path / "a") == ["one", "", "two"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_only_the_columns_that_are_needed_are_looked_at(tmp_path, kind):
    drifting = [{"url": None}, {"url": "x"}, {"url": 3, "n": [1]}, {"url": {"a": None}}, {"url": [[]], "new": True}]
    for number, more in enumerate(drifting):
        if kind == "jsonl":
            write(tmp_path / f"in/{number}.jsonl", lines("one", "two", **more) + lines("three"))
        else:
            parquet(tmp_path / f"in/{number}.parquet", ["one", "two", "three"], **{k: [v] * 3 for k, v in more.items()
                    if not isinstance(v, dict)})  # fmt: skip
    assert (
        texts_of(create("text", tmp_path / "in", 1, tmp_path / "out"), tmp_path / "out") == ["one", "two", "three"] * 5
    )


def test_parquet_text_may_be_bytes_and_ids_numbers(tmp_path):
    parquet(tmp_path / "x.parquet", [b"one", "zwölf".encode()], id=[7, 8])
    assert create("text", tmp_path / "x.parquet", 1, tmp_path / "out", "--id-column", "id").exit_code == 0
    assert read_all(str(tmp_path / "out")) == [[("7", "one"), ("8", "zwölf")]]


def test_text_from_a_bucket(tmp_path, gcs):
    gcs.land("in/a.jsonl.gz", gzip.compress(lines("one", "two").encode()), None)
    gcs.land("in/b.jsonl", lines("three").encode(), None)
    gcs.land("in/README.md", b"words", None)
    assert texts_of(create("text", "gs://bucket/in", 2, "gs://bucket/out"), "gs://bucket/out") == [
        "one",
        "two",
        "three",
    ]
    (first, _), (_, _) = [entry[:2] for entry in load_manifest("gs://bucket/out").options["source_files"]["files"]]
    assert first == "gs://bucket/in/a.jsonl.gz"
    assert check("gs://bucket/out").stderr == ""
    gcs.land("in/b.jsonl", lines("other").encode(), None)
    assert check("gs://bucket/out").stderr == "gs://bucket/in/b.jsonl has changed since the streams were made\n"


# ---------------------------------------------------------------------------------------------- damaged records


GOOD = {"text": "fine"}
BAD = {
    "null": ('{"text": null}', "line 2: text is null"), "number": ('{"text": 3}', "line 2: text is not a string"),
    "no json": ('{"text": ', "line 2 is not valid JSON"), "no object": ("3", "line 2 is not a JSON object"),
    "no column": ('{"body": "x"}', "line 2 has no column 'text'; it has body"),
    "surrogate": ('{"text": "\\ud800"}', "line 2: text is not Unicode text"),
}  # fmt: skip


@pytest.mark.parametrize("line, said", BAD.values(), ids=BAD)
def test_a_damaged_record_ends_the_command_or_is_skipped_and_named(tmp_path, line, said):
    path = write(tmp_path / "x.jsonl", f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    assert_refused(
        create("text", path, 1, tmp_path / "out"), 65, f"{path}: {said}" if said[6] == ":" else str(path), said
    )
    result = create("text", path, 1, tmp_path / "out", "--on-bad-record", "skip")
    assert texts_of(result, tmp_path / "out") == ["fine", "fine"]
    assert [name for name, _ in read_all(str(tmp_path / "out"))[0]] == ["0", "2"]
    skipped = load_manifest(str(tmp_path / "out")).options["skipped"]
    assert skipped["count"] == 1 and len(skipped["first"]) == 1 and said in skipped["first"][0]
    head = "1 record was skipped when the streams were made:"
    assert f"warning: {head}\nwarning: {path}" in result.stderr
    proof = check(tmp_path / "out")
    assert proof.exit_code == 0 and proof.stderr.startswith(f"{head}\n{path}") and said in proof.stderr


def test_of_many_damaged_records_the_first_hundred_are_named(tmp_path):
    write(tmp_path / "x.jsonl", lines("fine") + lines(None) * 250)
    assert create("text", tmp_path / "x.jsonl", 1, tmp_path / "out", "--on-bad-record", "skip").exit_code == 0
    skipped = load_manifest(str(tmp_path / "out")).options["skipped"]
    assert (skipped["count"], len(skipped["first"])) == (250, 100)


def test_only_damaged_records_are_no_records(tmp_path):
    write(tmp_path / "x.jsonl", lines(None, None))
    result = create("text", tmp_path / "x.jsonl", 1, tmp_path / "out", "--on-bad-record", "skip")
    assert_refused(result, 2, "it has no records: all 2 are damaged, the first: ", "line 1: text is null")


@pytest.mark.parametrize("name, data, said", [
    ("x.csv", b"text,n\nfine,1\nshort\nfine,2\n", "line 3 has 1 fields, its first line has 2"),
    ("x.csv", b"text\nfine\n\xff\nfine\n", "line 3: text is not Unicode text"),
    ("x.txt", b"fine\n\xff\nfine\n", "line 2: text is not Unicode text"),
])  # fmt: skip
def test_damaged_lines_of_tables_and_text(tmp_path, name, data, said):
    write(tmp_path / name, data)
    assert_refused(
        create("text", tmp_path / name, 1, tmp_path / "out"),
        65,
        f"{tmp_path}/{name}: {said}".replace(": line 3 has", ": line 3 has"),
    )
    assert (
        texts_of(create("text", tmp_path / name, 1, tmp_path / "out", "--on-bad-record", "skip"), tmp_path / "out")
        == ["fine"] * 2
    )


def test_parquet_text_that_is_null_or_not_utf8(tmp_path):
    wrong = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\4\0\0\0\5\0\0\0\11\0\0\0"), pa.py_buffer(b"fine\xfffine")
    )
    pq.write_table(pa.table({"text": pa.chunked_array([wrong, pa.array([None], pa.string())])}), tmp_path / "x.parquet")
    assert_refused(
        create("text", tmp_path / "x.parquet", 1, tmp_path / "out"), 65, "x.parquet: row 1: text is not UTF-8"
    )
    assert (
        texts_of(
            create("text", tmp_path / "x.parquet", 1, tmp_path / "out", "--on-bad-record", "skip"), tmp_path / "out"
        )
        == ["fine"] * 2
    )
    first = load_manifest(str(tmp_path / "out")).options["skipped"]["first"]
    assert [entry.partition("parquet: ")[2] for entry in first] == ["row 1: text is not UTF-8", "row 3: text is null"]


# ---------------------------------------------------------------------------------------------- pinned


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_source_files_are_pinned_by_content_and_check_tells_of_a_change(tmp_path, name):
    import hashlib

    path = tmp_path / name
    parquet(path, ["one", "two"]) if name.endswith("parquet") else write(
        path, PACKED[path.suffix if path.suffix == ".gz" else ""](lines("one", "two").encode())
    )
    assert create("text", path, 1, tmp_path / "out").exit_code == 0
    data = path.read_bytes()
    assert load_manifest(str(tmp_path / "out")).options["source_files"] == {
        "count": 1, "size": len(data), "files": [[str(path), len(data), f"sha256:{hashlib.sha256(data).hexdigest()}"]]
    }  # fmt: skip
    assert "nothing to do" in create("text", path, 1, tmp_path / "out").stdout
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    changed = check(tmp_path / "out")
    assert (changed.exit_code, changed.stderr) == (0, f"{path} has changed since the streams were made\n")
    os.unlink(path)
    assert check(tmp_path / "out").stderr == f"{path} is gone since the streams were made\n"


def test_a_part_of_a_file_is_not_pinned_and_many_files_are_pinned_together(tmp_path, monkeypatch):
    write(tmp_path / "x.jsonl", lines("one", "two"))
    assert create("text", tmp_path / "x.jsonl", 1, tmp_path / "out", "--max-records", 1).exit_code == 0
    assert load_manifest(str(tmp_path / "out")).options["source_files"]["files"][0][2] is None
    monkeypatch.setattr("extraction.streams.build.read_log.MOST_FILES", 1)
    write(tmp_path / "many/a.jsonl", lines("one"))
    write(tmp_path / "many/b.jsonl", lines("two"))
    assert create("text", tmp_path / "many", 1, tmp_path / "many-out").exit_code == 0
    pinned = load_manifest(str(tmp_path / "many-out")).options["source_files"]
    assert pinned.keys() == {"count", "size", "digest"} and pinned["count"] == 2
