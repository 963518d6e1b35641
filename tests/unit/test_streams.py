"""Streams: disjoint and complete, the same bytes again, readable from any position, and never silently wrong."""

import shutil
import time
from itertools import accumulate, chain, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets import fineweb
from extraction.storage import open_storage
from extraction.streams import stream as reading
from extraction.streams.build.footers import Wanted, inspect
from extraction.streams.build.materialize import Row, publish_rows
from extraction.streams.build.publish import Origin
from extraction.streams.build.sources import SourceFile
from extraction.streams.extensions import load_manifest
from extraction.streams.parquet import Files
from extraction.streams.stream import open_stream
from tests.helpers.corpora import (
    column_chunks,
    contents,
    documents,
    id_of,
    read_all,
    table_of,
    text_of,
    write_corpus,
    write_parquet,
)

FILES = [[3, 2], [4], [1, 1, 5]]


def publish_documents(storage, num_rows, num_streams):
    """Materialised streams of documents."""
    rows = (Row(id_of(n), text_of(n)) for n in range(num_rows))
    return publish_rows(storage, Origin("arc-agi", "here"), rows, num_streams)


@pytest.fixture
def corpus(tmp_path):
    """A folder of Parquet files, and the location of two streams over it."""
    write_corpus(tmp_path / "corpus", FILES)
    fineweb.create(open_storage(str(tmp_path / "streams")), str(tmp_path / "corpus"), 2)
    return tmp_path / "corpus", str(tmp_path / "streams")


def one_stream(tmp_path, groups, statistics=True):
    """A single stream over a file `x.parquet` of these row groups."""
    write_parquet(tmp_path / "x.parquet", groups, statistics)
    location = str(tmp_path / "streams")
    published = fineweb.create(open_storage(location), str(tmp_path / "x.parquet"), 1)
    return open_stream(published.manifest, location, 0)


# ---------------------------------------------------------------------------------------------- cutting


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(files=st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=4), num_streams=st.integers(1, 9))
def test_references_are_disjoint_complete_and_even(tmp_path_factory, files, num_streams):
    folder = tmp_path_factory.mktemp("any")
    total = write_corpus(folder / "corpus", files)
    for name in ("streams", "again"):
        fineweb.create(open_storage(str(folder / name)), str(folder / "corpus"), num_streams)
    streams = read_all(str(folder / "streams"))
    assert list(chain(*streams)) == documents(range(total))
    ends = set(accumulate(size for file in files for size in file if size))
    bounds = [0, *accumulate(map(len, streams))]
    groups = [sum(begin < end <= after for end in ends) for begin, after in pairwise(bounds)]
    assert set(bounds) <= ends | {0} and len(groups) == num_streams and max(groups) - min(groups) <= 1
    assert contents(folder / "streams") == contents(folder / "again")
    assert list(contents(folder / "streams")) == ["manifest.json"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(0, 30), num_streams=st.integers(1, 9))
def test_rows_are_cut_into_even_runs(tmp_path_factory, num_rows, num_streams):
    folder = tmp_path_factory.mktemp("any")
    for name in ("streams", "again"):
        publish_documents(open_storage(str(folder / name)), num_rows, num_streams)
    streams = read_all(str(folder / "streams"))
    assert list(chain(*streams)) == documents(range(num_rows))
    assert max(map(len, streams)) - min(map(len, streams)) <= 1
    assert contents(folder / "streams") == contents(folder / "again")


def test_stream_files_have_row_groups_of_at_most_1000_rows(tmp_path):
    publish_documents(open_storage(str(tmp_path)), 4602, 2)
    metadata = pq.read_metadata(tmp_path / "stream-00000.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [1000, 1000, 301]
    assert read_all(str(tmp_path))[0] == documents(range(2301))


def test_streams_in_a_bucket_are_those_in_a_folder(storage, tmp_path):
    publish_documents(storage, 10, 3)
    publish_documents(open_storage(str(tmp_path / "folder")), 10, 3)
    assert read_all(storage) == read_all(storage.location) == read_all(str(tmp_path / "folder"))
    assert {info.name: storage.read(info.name) for info in storage.list()} == contents(tmp_path / "folder")


def test_stream_files_can_be_moved_with_their_manifest(tmp_path):
    publish_documents(open_storage(str(tmp_path / "here")), 10, 3)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert sum(map(len, read_all(str(tmp_path / "there")))) == 10


# ---------------------------------------------------------------------------------------------- reading


def test_from_every_position_come_the_records_of_a_full_read(corpus):
    manifest = load_manifest(corpus[1])
    for index in range(2):
        whole = list(open_stream(manifest, corpus[1], index).read_records())
        for start in range(len(whole) + 1):
            assert list(open_stream(manifest, corpus[1], index).read_records(start)) == whole[start:]


def test_ids_of_every_range(corpus):
    stream = open_stream(load_manifest(corpus[1]), corpus[1], 1)
    ids = [record.id for record in stream.read_records()]
    assert list(stream.read_ids()) == ids
    for start in range(len(ids) + 1):
        for stop in range(start, len(ids) + 1):
            assert list(stream.read_ids(start, stop)) == ids[start:stop]


def destroy(path, keep):
    """Overwrite each column chunk unless `keep(group, column)`; size and footer stay."""
    data = bytearray(path.read_bytes())
    for group, column, begin, end in column_chunks(path):
        if not keep(group, column):
            data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)


def test_starting_late_touches_one_row_group_and_two_columns(tmp_path):
    stream = one_stream(tmp_path, [range(10), range(10, 20), range(20, 30)])
    destroy(tmp_path / "x.parquet", lambda group, column: group == 2 and column != "token_count")
    assert [record.index for record in stream.read_records(25)] == [25, 26, 27, 28, 29]
    with pytest.raises(DamagedData, match="x.parquet: row group 1: column 'id': the manifest pins other content"):
        next(stream.read_records(19))


def test_ids_are_read_from_their_column_alone(tmp_path):
    stream = one_stream(tmp_path, [range(10), range(10, 20)])
    destroy(tmp_path / "x.parquet", lambda group, column: column == "id")
    assert list(stream.read_ids()) == [id_of(number) for number in range(20)]


def test_files_that_are_not_needed_are_not_opened(corpus):
    (corpus[0] / "000.parquet").unlink()
    stream = open_stream(load_manifest(corpus[1]), corpus[1], 0)
    assert next(stream.read_records(5)).id == id_of(5)
    with pytest.raises(DamagedData, match="000.parquet: the file is missing"):
        next(stream.read_records(4))


def peak_of_reading(stream):
    """The most bytes that Arrow held while the stream was read."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert sum(1 for _ in stream.read_records()) == stream.num_records
        assert pool.bytes_allocated() == 0
        return pool.max_memory()
    finally:
        pa.set_memory_pool(before)


def test_reading_many_row_groups_takes_the_memory_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PREFETCH_BYTES", 1)
    texts = pa.table({"text": ["x" * 10_000 + str(n) for n in range(100)], "id": ["i"] * 100, "token_count": [1] * 100})
    one = peak_of_reading(one_stream(tmp_path / "one", [texts]))
    assert one > texts.nbytes
    assert peak_of_reading(one_stream(tmp_path / "five", [texts] * 5)) < one + texts.nbytes / 2


def test_row_groups_are_read_ahead_within_a_budget(tmp_path, monkeypatch):
    texts = pa.table({"text": ["x" * 10_000 + str(n) for n in range(100)], "id": ["i"] * 100, "token_count": [1] * 100})
    stream = one_stream(tmp_path, [texts] * 6)
    for limit, ahead in ((1, 1), (3 * texts.nbytes, 3)):
        monkeypatch.setattr(reading, "PREFETCH_BYTES", limit)
        read = []
        monkeypatch.setattr(
            stream, "_kept", lambda *args, read=read: read.append(args[1]) or type(stream)._kept(stream, *args)
        )
        records = stream.read_records()
        next(records)
        deadline = time.monotonic() + 5
        while len(read) < ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(read) == ahead
        records.close()
        assert len(read) == ahead


def open_files() -> list[Path]:
    return [Path(entry).resolve() for entry in Path("/proc/self/fd").iterdir()]


def test_an_abandoned_read_closes_its_file(corpus):
    records = open_stream(load_manifest(corpus[1]), corpus[1], 0).read_records()
    next(records)
    records.close()
    assert not [path for path in open_files() if path.suffix == ".parquet"]


def test_empty_text_is_a_record(tmp_path):
    stream = one_stream(tmp_path, [pa.table({"text": ["a", "", "b"], "id": ["1", "2", "3"], "token_count": [1, 0, 1]})])
    assert [record.text for record in stream.read_records()] == ["a", "", "b"]


@pytest.mark.parametrize("start", [-1, 10])
def test_a_position_outside_the_stream_is_refused_at_once(corpus, start):
    stream = open_stream(load_manifest(corpus[1]), corpus[1], 0)
    assert stream.num_records == 9
    with pytest.raises(InvalidRequest, match="stream 0 has 9 records"):
        stream.read_records(start)
    with pytest.raises(InvalidRequest, match="stream 0 has 9 records"):
        stream.read_ids(start)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_stream_that_is_not_there(corpus, index):
    with pytest.raises(InvalidRequest, match=f"no stream {index}: .* has 2"):
        open_stream(load_manifest(corpus[1]), corpus[1], index)


# ---------------------------------------------------------------------------------------------- damage


def table_with(column, position, value):
    """Five documents, one value of which is replaced; bytes that are no UTF-8 stay as they are."""
    table = table_of(range(5))
    values = [text.encode() for text in table[column].to_pylist()]
    values[position] = value
    raw = pa.array(values, pa.binary())
    strings = pa.StringArray.from_buffers(5, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    return table.set_column(table.column_names.index(column), column, strings)


@pytest.mark.parametrize("column", ["text", "id"])
@pytest.mark.parametrize("value, what", [(None, "is null"), (b"ab\xffc", "is not UTF-8")])
@pytest.mark.parametrize("position", [0, 3])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_bad_value_is_named_when_the_streams_are_made(tmp_path, column, value, what, position, statistics):
    with pytest.raises(DamagedData) as error:
        one_stream(tmp_path, [range(5), table_with(column, position, value)], statistics)
    assert f"x.parquet: row {position} of row group 1: {column} {what}" in str(error.value)
    assert "--on-bad-record skip" in str(error.value) and not (tmp_path / "streams").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def grow(path):
    write_parquet(path, [range(100, 200), range(200, 300)])


def remove(path):
    path.unlink()


def replace_with_the_same_size(path):
    data = path.read_bytes()
    assert data.count(b"parquet-cpp-arrow version") == 1
    path.write_bytes(data.replace(b"parquet-cpp-arrow version", b"parquet-cpp-arrow VERSION"))


def flip_a_bit_of_a_page(path):
    data = bytearray(path.read_bytes())
    end = next(end for group, column, _, end in column_chunks(path) if (group, column) == (0, "text"))
    data[end - 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, what",
    [
        (cut, "does not end as a Parquet file does"),
        (empty, "does not end as a Parquet file does"),
        (grow, "bytes, the manifest says"),
        (remove, "is missing"),
        (replace_with_the_same_size, "has another footer than the manifest says"),
        (flip_a_bit_of_a_page, "row group 0: column 'text': the manifest pins other content: the file was changed"),
    ],
)
@pytest.mark.parametrize("kind", ["reference", "materialised"])
def test_a_changed_file_is_named_when_it_is_opened(tmp_path, damage, what, kind):
    if kind == "reference":
        stream, path = one_stream(tmp_path, [range(5), range(5, 10)]), tmp_path / "x.parquet"
    else:
        manifest = publish_documents(open_storage(str(tmp_path)), 10, 1).manifest
        stream, path = open_stream(manifest, str(tmp_path), 0), tmp_path / "stream-00000.parquet"
    damage(path)
    with pytest.raises(DamagedData, match=f"{path.name}.*{what}") as error:
        list(stream.read_records())
    assert error.value.exit_code == 65


@pytest.mark.parametrize("footer", [b"", b"\xff" * 40])
def test_a_footer_of_garbage_is_damage(tmp_path, footer):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DamagedData, match="x.parquet cannot be read"):
        inspect(Files(), SourceFile(str(path)), Wanted())
