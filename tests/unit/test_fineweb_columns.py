"""Parquet as others write it: other columns and types by reference, and rows that cannot be read."""

import json
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from create_dataset_streams import cli
from extraction.core.errors import DamagedData
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.corpora import column_chunks, read_all
from tests.helpers.fake_hub import FakeHub


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def create(source, output, *flags, num_streams=1):
    return run("fineweb", "--source", source, "--num-streams", num_streams, "--output", output, *flags)


def created(source, output, *flags, num_streams=1):
    """(id, text) of all records, which `check` finds whole."""
    result = create(source, output, *flags, num_streams=num_streams)
    assert result.exit_code == 0, result.stderr
    result = run("check", output)
    assert result.exit_code == 0, result.output
    streams = read_all(str(output))
    manifest = load_manifest(str(output))
    ids = [list(open_stream(manifest, str(output), index).read_ids()) for index in range(num_streams)]
    assert ids == [[name for name, _ in stream] for stream in streams]
    return list(chain(*streams))


def write(path, columns, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **settings)
    return path


TEXTS = ["a b", "", "ö 日本", "d"]


# ---------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("kind", [
    pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()), pa.dictionary(pa.int32(), pa.binary()),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("id_kind", [pa.int32(), pa.int64(), pa.uint8(), pa.uint64()], ids=str)
def test_texts_and_ids_of_any_type_that_means_them(tmp_path, kind, id_kind):
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    raw = [text.encode() for text in TEXTS] if pa.types.is_binary(value) or pa.types.is_large_binary(value) else TEXTS
    texts = pa.array(raw, value)
    texts = texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts
    numbers = [0, 7, 3, 200]
    write(tmp_path / "x.parquet", {"key": pa.array(numbers, id_kind), "content": texts}, row_group_size=2)
    found = created(tmp_path / "x.parquet", tmp_path / "out", "--text-column", "content", "--id-column", "key")
    assert found == list(zip(["0", "7", "3", "200"], TEXTS, strict=True))


def test_ids_of_negative_and_large_numbers(tmp_path):
    numbers = [-1, 1 << 62, -(1 << 63), 10]
    write(tmp_path / "x.parquet", {"id": numbers, "text": TEXTS})
    found = created(tmp_path / "x.parquet", tmp_path / "out")
    assert [name for name, _ in found] == ["-1", "4611686018427387904", "-9223372036854775808", "10"]


def test_an_id_and_a_text_column_may_also_be_meta(tmp_path):
    write(tmp_path / "x.parquet", {"id": [1, 2], "text": ["a", "b"], "tags": [["x"], []]})
    created(tmp_path / "x.parquet", tmp_path / "out", "--meta-columns", "id,tags")
    manifest = load_manifest(str(tmp_path / "out"))
    metas = [record.meta for record in open_stream(manifest, str(tmp_path / "out"), 0).read_records()]
    assert list(map(json.loads, metas)) == [{"id": 1, "tags": ["x"]}, {"id": 2, "tags": []}]


def test_ids_of_file_and_row_where_no_column_is_an_id(tmp_path):
    write(tmp_path / "web/a/x.parquet", {"text": TEXTS}, row_group_size=3)
    write(tmp_path / "web/b/x.parquet", {"text": ["e", "f"]})
    found = created(tmp_path / "web", tmp_path / "out", "--id-column", "", num_streams=2)
    names = [*(f"a/x.parquet#{row}" for row in range(4)), "b/x.parquet#0", "b/x.parquet#1"]
    assert found == list(zip(names, [*TEXTS, "e", "f"], strict=True))
    assert created(tmp_path / "web", tmp_path / "part", "--id-column", "", "--max-records", 3) == found[:3]
    stream = open_stream(load_manifest(str(tmp_path / "out")), str(tmp_path / "out"), 1)
    assert [record.id for record in stream.read_records(1)] == names[-stream.num_records + 1 :]
    (one,) = created(tmp_path / "web/b/x.parquet", tmp_path / "one", "--id-column", "", "--max-records", 1)
    assert one == ("x.parquet#0", "e")


def test_ids_of_file_and_row_on_the_hub_do_not_name_the_commit(tmp_path, monkeypatch):
    for name in ("data/CC-1/000.parquet", "data/CC-2/000.parquet"):
        write(tmp_path / "web" / name, {"text": ["a"]})
    with FakeHub(tmp_path, datasets={"lab/web": tmp_path / "web"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        flags = ("--id-column", "", "--footer-cache", "")
        found = created("hf://datasets/lab/web/data", tmp_path / "out", *flags)
    assert found == [("CC-1/000.parquet#0", "a"), ("CC-2/000.parquet#0", "a")]


@pytest.mark.parametrize("columns, flags, said", [
    ({"id": ["a"], "body": ["b"]}, (),
     "1.parquet has no single column 'text'; it has id, body; name the text's column by --text-column"),
    ({"text": ["a"]}, (), "1.parquet has no single column 'id'; it has text; name the id's column by --id-column, "
                          "or give --id-column '' for ids of the form FILE#ROW"),
    ({"id": [1.5], "text": ["b"]}, (), "1.parquet: column 'id' is double, not a string or a whole number"),
    ({"id": [True], "text": ["b"]}, (), "1.parquet: column 'id' is bool, not a string or a whole number"),
    ({"id": [["a"]], "text": ["b"]}, (),
     "1.parquet: column 'id' is list<element: string>, not a string or a whole number"),
    ({"id": ["a"], "text": [3]}, (), "1.parquet: column 'text' is int64, not a string"),
    ({"id": ["a"], "text": ["b"]}, ("--text-column", "body"), "0.parquet has no single column 'body'; it has id, text"),
])  # fmt: skip
def test_a_column_that_is_missing_or_of_another_type_is_named_with_its_file(tmp_path, columns, flags, said):
    for number in (0, 2):
        write(tmp_path / f"web/{number}.parquet", {"id": ["a"], "text": ["b"]})
    write(tmp_path / "web/1.parquet", columns)
    result = create(tmp_path / "web", tmp_path / "out", *flags)
    assert result.exit_code == 2 and result.stderr.endswith(f"error: {tmp_path}/web/{said}\n")


# ---------------------------------------------------------------------------------------------- bad records


def strings(values):
    """A column of strings of some bytes, whatever they are, and None."""
    raw = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])


BAD = {"text": strings([b"a", None, b"c\xff", b"d", b"e"]), "id": strings([b"0", b"1", b"2", None, b"4"])}


@pytest.mark.parametrize("write_statistics", [True, False])
def test_bad_records_stop_the_making_of_streams_unless_they_are_skipped(tmp_path, write_statistics):
    path = write(tmp_path / "web/x.parquet", BAD, row_group_size=2, write_statistics=write_statistics)
    result = create(path, tmp_path / "out")
    assert result.exit_code == 65 and result.stderr.endswith(
        f"error: {path}: row 1 of row group 0: text is null; take it out, or leave such rows out by "
        "--on-bad-record skip\n"
    )
    assert not (tmp_path / "out").exists()
    assert created(path, tmp_path / "out", "--on-bad-record", "skip") == [("0", "a"), ("4", "e")]
    manifest = load_manifest(str(tmp_path / "out"))
    assert manifest.options["skipped"] == {"count": 3, "first": [f"{path} row {row}" for row in (1, 2, 3)]}
    assert run("check", tmp_path / "out").stderr.splitlines()[:4] == [
        "3 records were skipped when the streams were made:", *(f"{path} row {row}" for row in (1, 2, 3))
    ]  # fmt: skip
    assert "nothing to do" in create(path, tmp_path / "out", "--on-bad-record", "skip").stdout


def test_a_row_that_is_filtered_out_is_no_bad_record(tmp_path):
    write(tmp_path / "x.parquet", BAD | {"language_score": [0.9, 0.1, 0.1, 0.9, 0.9]})
    flags = ("--min-language-score", 0.5)
    result = create(tmp_path / "x.parquet", tmp_path / "out", *flags)
    assert result.exit_code == 65 and "row 3 of row group 0: id is null" in result.stderr
    found = created(tmp_path / "x.parquet", tmp_path / "out", *flags, "--on-bad-record", "skip")
    assert found == [("0", "a"), ("4", "e")]


def test_of_many_bad_records_the_first_hundred_are_named(tmp_path):
    path = write(tmp_path / "x.parquet", {"id": range(300), "text": [None, "x"] * 150}, row_group_size=70)
    assert len(created(path, tmp_path / "out", "--on-bad-record", "skip", num_streams=3)) == 150
    skipped = load_manifest(str(tmp_path / "out")).options["skipped"]
    assert skipped == {"count": 150, "first": [f"{path} row {row}" for row in range(0, 200, 2)]}
    assert run("check", tmp_path / "out").stderr.startswith("150 records were skipped")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.lists(st.sampled_from([b"x", None, b"\xc3("]), max_size=5), min_size=1, max_size=4),
       num_streams=st.integers(1, 3), limit=st.none() | st.integers(1, 12))  # fmt: skip
def test_what_is_left_is_every_good_row_once_in_order(tmp_path_factory, groups, num_streams, limit):
    folder = tmp_path_factory.mktemp("bad")
    number, expected = 0, []
    with pq.ParquetWriter(folder / "x.parquet", pa.schema({"id": pa.int64(), "text": pa.string()})) as writer:
        for group in groups:
            ids = range(number, number + len(group))
            writer.write_table(pa.table({"id": pa.array(ids, pa.int64()), "text": strings(group)}))
            good = [i for i, text in zip(ids, group, strict=True) if text == b"x" and i < (limit or 99)]
            expected += [(str(i), "x") for i in good]
            number += len(group)
    flags = ("--on-bad-record", "skip", *(("--max-records", limit) if limit else ()))
    assert created(folder / "x.parquet", folder / "out", *flags, num_streams=num_streams) == expected
    manifest = load_manifest(str(folder / "out"))
    for index in range(num_streams):
        stream = open_stream(manifest, str(folder / "out"), index)
        whole = list(stream.read_records())
        for start in range(len(whole) + 1):
            assert list(stream.read_records(start)) == whole[start:]


def test_on_the_hub_only_row_groups_that_are_not_known_to_be_good_are_read(tmp_path, monkeypatch):
    """The first and last row group are destroyed: reading them would raise."""
    path = tmp_path / "web/x.parquet"
    write(path, {"id": range(6), "text": ["a", "b", None, "d", "e", "f"]}, row_group_size=2)
    data = bytearray(path.read_bytes())
    for group, _, begin, end in column_chunks(path):
        if group != 1:
            data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    with FakeHub(tmp_path, datasets={"lab/web": tmp_path / "web"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        result = create("hf://datasets/lab/web", tmp_path / "out", "--footer-cache", tmp_path / "cache")
        assert result.exit_code == 65 and "row 0 of row group 1: text is null" in result.stderr
        flags = ("--footer-cache", tmp_path / "cache", "--on-bad-record", "skip")
        assert create("hf://datasets/lab/web", tmp_path / "out", *flags).exit_code == 0
    manifest = load_manifest(str(tmp_path / "out"))
    assert manifest.num_records == 5 and manifest.options["skipped"]["count"] == 1
    assert manifest.files[0].content is None


@pytest.mark.parametrize("more, flags, said", [
    ({"text": strings([b"a", b"b\xff"])}, (), "text is not UTF-8"),
    ({"d": strings([b"a", b"b\xff"])}, ("--meta-columns", "d"), "d is not UTF-8"),
    ({"d": pa.array([1, 2**53], pa.timestamp("ms"))}, ("--meta-columns", "d"), "d is not readable: date value out"),
    ({"d": pa.array([[1], [2**62]], pa.list_(pa.duration("s")))}, ("--meta-columns", "d"), "d is not readable: "),
])  # fmt: skip
def test_a_value_that_python_cannot_hold_is_found_by_the_worker_on_the_hub_and_here_at_once(
    tmp_path, monkeypatch, more, flags, said
):
    write(tmp_path / "web/x.parquet", {"id": strings([b"0", b"1"]), "text": strings([b"a", b"b"])} | more)
    here = create(tmp_path / "web/x.parquet", tmp_path / "here", *flags)
    assert here.exit_code == 65 and f"row 1 of row group 0: {said}" in here.stderr
    assert create(tmp_path / "web/x.parquet", tmp_path / "here", *flags, "--on-bad-record", "skip").exit_code == 0
    assert load_manifest(str(tmp_path / "here")).num_records == 1
    with FakeHub(tmp_path, datasets={"lab/web": tmp_path / "web"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert create("hf://datasets/lab/web", tmp_path / "out", "--footer-cache", "", *flags).exit_code == 0
        records = open_stream(load_manifest(str(tmp_path / "out")), str(tmp_path / "out"), 0).read_records()
        assert next(records).text == "a"
        with pytest.raises(DamagedData, match=f"row 1 of row group 0 .*: {said}"):
            next(records)
