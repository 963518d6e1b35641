"""What is read is what was pinned: files that are rewritten with equal size and footer are found by all who read."""

import io
import itertools
import json
import random
import weakref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.core.errors import DamagedData
from extraction.datasets import fineweb
from extraction.storage import open_storage
from extraction.streams import stream as reading
from extraction.streams.build.materialize import Row, publish_rows
from extraction.streams.build.publish import Origin
from extraction.streams.column_chunks import open_chunks
from extraction.streams.extensions import load_manifest
from extraction.streams.parquet import Files
from extraction.streams.stream import open_stream
from tests.helpers.corpora import column_chunks
from tests.helpers.workers import extract, make_streams, python, verify

pytestmark = pytest.mark.slow

WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in "lmnrst"]


def texts_of(number: int) -> list[str]:
    """Documents of random words, in whose middle two words may change places."""
    pick = random.Random(number)
    return [" ".join(pick.choices(WORDS, k=40)) for _ in range(24)]


def encode(texts: list[str], ids: list[str] | None = None) -> bytes:
    """A Parquet file with zstd, which most corpora have."""
    ids = ids or [f"<urn:doc:{number}>" for number in range(len(texts))]
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "text": texts}), sink, row_group_size=8, compression="zstd")
    return sink.getvalue()


def footer_of(data: bytes) -> bytes:
    return data[-8 - int.from_bytes(data[-8:-4], "little") :]


def is_alike(one: bytes, other: bytes) -> bool:
    return one != other and len(one) == len(other) and footer_of(one) == footer_of(other)


def swapped(texts: list[str], encoder=encode) -> tuple[list[str], bytes]:
    """The texts with two words swapped, as a file of the same size and footer as the file of the texts."""
    whole = encoder(texts)
    for number, place in itertools.product(range(9, 15), range(39)):
        words = texts[number].split()
        words[place], words[place + 1] = words[place + 1], words[place]
        others = [*texts[:number], " ".join(words), *texts[number + 1 :]]
        if is_alike(whole, data := encoder(others)):
            return others, data
    raise AssertionError("no such pair of words")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/000.parquet").write_bytes(encode(texts_of(0)))
    return tmp_path / "corpus"


def check(streams, *flags):
    return python("create_dataset_streams.py", "check", streams, *flags)


def test_two_words_that_change_places_are_found_by_check_worker_and_create(source, tmp_path):
    streams = make_streams(source, tmp_path / "streams")
    assert check(streams).returncode == 0
    (source / "000.parquet").write_bytes(swapped(texts_of(0))[1])
    said = "000.parquet: row group 1: column 'text': the manifest pins other content: the file was changed"
    result = check(streams)
    assert result.returncode == 65 and said in result.stdout and "1 problem found" in result.stderr
    result = extract(streams, tmp_path / "output")
    assert result.returncode == 65 and said in result.stderr and "Traceback" not in result.stderr
    proof = verify(tmp_path / "output")
    assert proof.returncode == 75 and "7 of 24 records" in proof.stdout
    result = python("create_dataset_streams.py", "fineweb", "--source", source, "--num-streams", 1, "--output", streams)
    assert result.returncode == 2 and "the file" in result.stderr and "differs" in result.stderr
    assert check(streams, "--no-content").returncode == 0


def test_ids_that_change_places_are_found_by_verify(source, tmp_path):
    streams = make_streams(source, tmp_path / "streams")
    assert extract(streams, tmp_path / "output").returncode == 0
    ids = [f"<urn:doc:{number}>" for number in range(24)]
    ids[11], ids[12] = ids[12], ids[11]
    data = encode(texts_of(0), ids)
    assert is_alike(encode(texts_of(0)), data)
    (source / "000.parquet").write_bytes(data)
    for flags in ((), ("--deep",)):
        result = verify(tmp_path / "output", *flags)
        assert result.returncode == 65, result.stdout + result.stderr
        assert "000.parquet: row group 1: column 'id': the manifest pins other content" in result.stdout + result.stderr


def test_a_stream_file_of_ours_is_compared_with_the_manifest_as_it_is_read(storage, tmp_path):
    number_of = itertools.count()

    def encoder(texts):
        rows = (Row(f"id {number}", text) for number, text in enumerate(texts))
        folder = tmp_path / str(next(number_of))
        publish_rows(open_storage(str(folder)), Origin("text", "here"), rows, 1)
        return (folder / "stream-00000.parquet").read_bytes()

    rows = (Row(f"id {number}", text) for number, text in enumerate(texts_of(1)))
    manifest = publish_rows(storage, Origin("text", "here"), rows, 1).manifest
    _, data = swapped(texts_of(1), encoder)
    storage.replace("stream-00000.parquet", data)
    with pytest.raises(DamagedData, match="stream-00000.parquet: row group 0: column 'text': .* other content"):
        list(open_stream(manifest, storage, 0).read_records())
    assert [*open_stream(manifest, storage, 0).read_ids()] == [f"id {number}" for number in range(24)]


def test_a_worker_that_starts_late_reads_and_compares_only_what_it_needs(source, tmp_path):
    streams = make_streams(source, tmp_path / "streams")
    path = source / "000.parquet"
    data = bytearray(path.read_bytes())
    for group, column, begin, end in column_chunks(path):
        if group == 0 or (group, column) == (2, "text"):
            data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    stream = open_stream(load_manifest(str(streams)), str(streams), 0)
    records = stream.read_records(8)
    assert [next(records).text for _ in range(8)] == texts_of(0)[8:16]
    with pytest.raises(DamagedData, match="row group 2: column 'text'"):
        next(records)
    assert list(stream.read_ids(16)) == [f"<urn:doc:{number}>" for number in range(16, 24)]


def test_an_object_that_is_replaced_while_it_is_read_is_found_by_its_generation(gcs, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PREFETCH_BYTES", 1)  # a row group at a time
    bucket = open_storage("gs://bucket/web")
    bucket.create("x.parquet", encode(texts_of(0)))
    storage = open_storage(str(tmp_path / "streams"))
    manifest = fineweb.create(storage, "gs://bucket/web", 1, fineweb.FinewebOptions(footer_cache="")).manifest
    assert manifest.files[0].content is None and manifest.files[0].etag.startswith("crc32c:")
    records = open_stream(manifest, storage, 0).read_records()
    assert next(records).text == texts_of(0)[0]
    bucket.replace("x.parquet", swapped(texts_of(0))[1])
    with pytest.raises(DamagedData, match="x.parquet: it was replaced or removed while it was read"):
        list(records)
    with pytest.raises(DamagedData, match="x.parquet is crc32c:.*: the file was replaced"):
        next(open_stream(manifest, storage, 0).read_records())
    result = check(tmp_path / "streams")
    assert result.returncode == 65 and "the file was replaced" in result.stdout
    bucket.replace("x.parquet", encode(texts_of(0)))
    assert "complete, unchanged by the store's checksums (1 file), every id once" in check(tmp_path / "streams").stdout


def test_what_pins_content_is_the_crc32c_of_the_columns_that_are_read(source, tmp_path):
    import google_crc32c

    streams = make_streams(source, tmp_path / "streams")
    path, data = source / "000.parquet", (source / "000.parquet").read_bytes()
    expected = {"id": [], "text": []}
    for _, column, begin, end in column_chunks(path):
        expected[column].append(google_crc32c.value(data[begin:end]))
    (file,) = json.loads((streams / "manifest.json").read_text())["files"]
    assert file["content"] == expected


def test_the_bytes_of_a_row_group_are_released_with_its_file(source, tmp_path):
    """Arrow would keep them for ever if the file that it reads from knew the object that has it."""
    file = load_manifest(str(make_streams(source, tmp_path / "streams"))).files[0]
    with open_chunks(Files(), file) as chunks:
        chunks.hold(0, ("text",))
        assert sum(table.num_rows for _, table in chunks.decode()) > 0
        seen = weakref.ref(chunks)
    del chunks
    assert seen() is None
