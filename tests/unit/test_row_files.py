"""Files that are cut, joined or ambiguous are refused by name; sound ones of every writer are read whole."""

import bz2
import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.core.errors import DamagedData
from extraction.datasets import text
from extraction.storage import open_storage
from extraction.streams.build.materialize import Row, Spool
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream

TEXTS = [
    'he said "hi"',
    '"whole"',
    '"',
    '""',
    "a\tb",
    "two\nlines",
    '"open',
    'close"',
    "",
    "a, b",
    "'",
    '"a\n"b\tc\td"',
]


def records(path, **options):
    """The records of a file as `text` makes them."""
    output = str(path.parent / "out")
    text.create(open_storage(output), str(path), 1, text.TextOptions(**options))
    return list(open_stream(load_manifest(output), output, 0).read_records())


def texts(path, **options):
    return [record.text for record in records(path, **options)]


def write(path, data):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def assert_refused(path, said, **options):
    with pytest.raises(DamagedData, match=said) as caught:
        texts(path, **options)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- CSV and TSV


@pytest.mark.parametrize("delimiter, suffix", [(",", "csv"), ("\t", "tsv")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("width", [1, 2])
def test_what_writers_of_tables_quote_is_read(tmp_path, delimiter, suffix, quoting, end, width):
    sink = io.StringIO(newline="")
    rows = [[value, n][:width] for n, value in enumerate(TEXTS)]
    csv.writer(sink, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([["text", "n"][:width], *rows])
    path = write(tmp_path / f"x.{suffix}", sink.getvalue())
    if (suffix, quoting, width) == ("tsv", csv.QUOTE_MINIMAL, 1):
        assert_refused(path, "line 8 has quotes that may belong to the text")  # or two rows
    else:
        assert texts(path) == TEXTS


def test_a_tsv_of_pandas_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"n": range(len(TEXTS)), "text": TEXTS}).to_csv(tmp_path / "x.tsv", sep="\t", index=False)
    assert texts(tmp_path / "x.tsv") == TEXTS


def test_quotes_inside_a_field_of_a_tsv_are_text(tmp_path):
    said = ['he said "hi"', 'close"', 'a "b" c', ""]
    path = write(tmp_path / "x.tsv", "n\ttext\n" + "".join(f"{n}\t{value}\n" for n, value in enumerate(said)))
    assert texts(path) == said


TABLES = {
    "not closed": ("x.csv", 'n,text\n1,"unclosed\n2,foo\n3,bar\n', "begins in line 2: unexpected end"),
    "cut in a field": ("x.csv", 'n,text\n0,a\n1,"two\nli', "begins in line 3: unexpected end of data: the file is cut"),
    "text behind a quote": ("x.csv", 'text,n\nx,0\n"ab"cd,1\n', "begins in line 3: ',' expected after"),
    "backslash": ("x.csv", 'text,n\n"a \\"b\\" c",1\n', "begins in line 2: ',' expected after"),
    "text begins with a quote": ("x.tsv", 'n\ttext\n1\t"Hello" he said\n', "begins in line 2: 'tab' expected after"),
    "one not closed": ("x.tsv", 'n\ttext\n1\t"Hello he said\n2\tfoo\n', "begins in line 2: unexpected end"),
    "two not closed": ("x.tsv", 'n\ttext\n1\t"Hello he said\n2\tfoo\n3\t"bye\n4\tend\n', "begins in line 2: 'tab' expected"),
    "open and close": ("x.tsv", 'n\ttext\n1\t"Hello\n2\tfoo\n3\tbye"\n4\tend\n', "line 4 has quotes that may"),
    "open and close, the first": ("x.tsv", 'text\tn\n"Hello\t1\nbye"\t2\n', "line 3 has quotes that may"),
    "open and close, alone": ("x.tsv", 'text\n"one\ntwo\nthree"\nfour\n', "line 4 has quotes that may"),
    "whole": ("x.tsv", 'n\ttext\n1\t"whole"\n', "line 2 has quotes that may belong to the text: write it with all"),
    "repeated name": ("x.csv", "id,text,text\n1,a,b\n", "no single column 'text'; it has id, text, text"),
    "repeated name, tabs": ("x.tsv", "id\ttext\ttext\n1\ta\tb\n", "no single column 'text'"),
}  # fmt: skip


@pytest.mark.parametrize("name, data, said", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("bad", ["fail", "skip"])
def test_a_table_that_can_be_read_in_two_ways_is_refused(tmp_path, name, data, said, bad):
    assert_refused(write(tmp_path / name, data), said, on_bad_record=bad)


def test_repeated_names_that_nobody_asks_for_are_ignored(tmp_path):
    assert texts(write(tmp_path / "x.csv", ",,text\n1,2,a\n")) == ["a"]


def test_a_column_name_is_there_once_in_parquet_arrow_and_json(tmp_path):
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert_refused(tmp_path / "x.parquet", "no single column 'text'")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert_refused(tmp_path / "x.arrow", "no single column 'text'")
    twice = '{"text": "a", "text": "b"}\n'
    assert_refused(write(tmp_path / "x.jsonl", twice), "line 1 is not valid JSON: the key 'text' is repeated")
    assert_refused(write(tmp_path / "x.json", twice), "row 0 is not valid JSON: the key 'text' is repeated")
    assert_refused(write(tmp_path / "x.json", f"[{twice}]"), "is not valid JSON: the key 'text' is repeated")


def test_damage_inside_parquet_is_one_line(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "x.parquet")
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[4:40] = b"\xff" * 36
    assert_refused(write(tmp_path / "x.parquet", bytes(data)), "cannot be read: .* Deserializing page header failed")


# ---------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_json_in_any_encoding(tmp_path, indent, encoding):
    rows = [{"text": "a"}, {"text": "é"}]
    assert texts(write(tmp_path / "x.json", json.dumps(rows, indent=indent).encode(encoding))) == ["a", "é"]


# ---------------------------------------------------------------------------------------------- packed


def packed(kind, data):
    if kind == "zst":
        return pa.compress(data, codec="zstd", asbytes=True)
    return gzip.compress(data, mtime=0) if kind == "gz" else bz2.compress(data)


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2"])
def test_all_members_of_a_packed_file_are_read(tmp_path, kind):
    parts = [b"", b"a\n", b"", b"", b"b" * 200_000 + b"\n", b"c\n", b""]
    path = write(tmp_path / f"x.txt.{kind}", b"".join(packed(kind, part) for part in parts))
    assert texts(path) == ["a", "b" * 200_000, "c"]


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2"])
def test_a_packed_file_that_is_cut_or_goes_on_is_refused(tmp_path, kind):
    one, path = packed(kind, b"one\n"), tmp_path / f"x.txt.{kind}"
    for length in range(len(one)):
        assert_refused(write(path, one[:length]), "cannot be read")
        if length:
            assert_refused(write(path, one + one[:length]), "cannot be read")
    assert_refused(write(path, one + b"\0" * 9), "cannot be read")


# ---------------------------------------------------------------------------------------------- Arrow


def arrow(is_file=False, batches=3, **options):
    """The bytes of an Arrow file or stream with two rows in a batch, and where each batch ends."""
    sink, table, ends = pa.BufferOutputStream(), pa.table({"text": ["a", "b"]}), []
    make = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(batches):
            writer.write_table(table)
            ends.append(sink.tell())
    return sink.getvalue().to_pybytes(), ends


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("packing", ["", ".zst"])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"metadata_version": pa.ipc.MetadataVersion.V4}])
def test_arrow_of_its_writers_is_read_whole(tmp_path, is_file, packing, options):
    data, _ = arrow(is_file, **options)
    path = write(tmp_path / f"x.arrow{packing}", packed("zst", data) if packing else data)
    assert texts(path) == ["a", "b"] * 3


@pytest.mark.parametrize("is_file", [False, True])
def test_arrow_that_is_cut_or_goes_on_is_refused(tmp_path, is_file):
    data, ends = arrow(is_file)
    path, behind = tmp_path / "x.arrow", "bytes behind its rows"
    for length in range(0, len(data), 20):
        assert_refused(write(path, data[:length]), "x.arrow")
    for length in ends:
        assert_refused(write(path, data[:length]), "has no mark of its end")
    for more in (data, b"\0", b"\0" * 8, arrow(not is_file)[0]):
        assert_refused(write(path, data + more), behind)
    if is_file:
        assert_refused(write(path, data[:-10] + bytes(4) + b"ARROW1"), behind)


def test_arrow_of_the_datasets_library_is_read_whole(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [f"text {n}" for n in range(25)]
    made = datasets.Dataset.from_dict(
        {"text": rows, "label": datasets.ClassLabel(names=["a", "b"]).str2int(["a"] * 25)}
    )
    made.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    kept = made.map(lambda row: row, cache_file_name=str(tmp_path / "cache.arrow"), writer_batch_size=10)
    assert kept.num_rows == 25
    assert texts(tmp_path / "cache.arrow") == rows
    (tmp_path / "out").rename(tmp_path / "first")
    assert texts(tmp_path / "saved") == rows


# ---------------------------------------------------------------------------------------------- meta


def not_utf8():
    return pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffx"))


METAS = {
    "half a character": ("jsonl", ['"\\ud83d"', '"x"'], "its meta is not Unicode text"),
    "half a character inside": ("jsonl", ['{"\\ud83d": [1]}', '"x"'], "its meta is not Unicode text"),
    "bytes in a table": ("csv", [b"\xff", b"x"], "its meta is not Unicode text"),
    "a late date": ("parquet", pa.array([2**53, 1], pa.timestamp("ms")), "m is not readable: date value out of range"),
    "a late day": ("arrow", pa.array([2**31 - 1, 1], pa.date32()), "m is not readable: "),
    "in a list": ("arrow", pa.array([[2**53], [1]], pa.list_(pa.timestamp("ms"))), "m is not readable: "),
    "no such zone": ("parquet", pa.array([1, None], pa.timestamp("ms", tz="No/Where")), "m is not readable: "),
    "not UTF-8": ("parquet", not_utf8(), "m is not UTF-8"),
    "not UTF-8 in a struct": ("parquet", pa.StructArray.from_arrays([not_utf8()], ["a"]), "m is not UTF-8"),
}


@pytest.mark.parametrize("kind, values, said", METAS.values(), ids=METAS)
def test_a_meta_that_cannot_be_read_is_a_damaged_record(tmp_path, kind, values, said):
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        write(path, "".join(f'{{"text": "ok", "m": {value}}}\n' for value in values))
    elif kind == "csv":
        write(path, b"text,m\n" + b"".join(b"ok,%b\n" % value for value in values))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": ["ok"] * 2, "m": values}), path, store_schema=True)
    else:
        table = pa.table({"text": ["ok"] * 2, "m": values})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert_refused(path, rf"x.{kind}: (row 0|line [12]): {said}", meta_columns=("m",))
    assert len(records(path, meta_columns=("m",), on_bad_record="skip")) == 1


def test_rows_of_a_spool_have_unicode_in_id_text_and_meta():
    for row in (Row("\ud83d", "a"), Row("a", "\ud83d"), Row("a", "a", '{"m": "\ud83d"}')):
        with pytest.raises(DamagedData, match="not Unicode text"):
            Spool([row])
