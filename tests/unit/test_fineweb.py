"""FineWeb: from the hub and from buckets as from a folder, filtered exactly, pinned, and never silently changed."""

import json
import math
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction.core.errors import DamagedData, InvalidRequest, PermissionDenied, TryAgain
from extraction.datasets import fineweb
from extraction.datasets.fineweb import FinewebOptions
from extraction.storage import open_storage
from extraction.streams.build.footers import Wanted, inspect
from extraction.streams.build.sources import SourceFile
from extraction.streams.extensions import load_manifest
from extraction.streams.manifest import canonical_json, parse_manifest
from extraction.streams.parquet import Files
from extraction.streams.stream import open_stream
from tests.helpers.corpora import column_chunks, documents, read_all, write_corpus, write_parquet
from tests.helpers.fake_hub import COMMIT, FakeHub

pytestmark = pytest.mark.slow

FILES = [[3, 2], [4], [1, 1, 5]]
SAMPLE = "hf://datasets/lab/web/sample/10BT"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a dataset `lab/web` of the shape of FineWeb; this process is pointed at it."""
    write_corpus(tmp_path / "web/sample/10BT", FILES)
    write_parquet(tmp_path / "web/data/dump/000.parquet", [range(50, 55)])
    with FakeHub(tmp_path, datasets={"lab/web": tmp_path / "web"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "5")
        yield server


def create(source, output, num_streams=2, **options):
    return fineweb.create(
        open_storage(str(output)), str(source), num_streams, FinewebOptions(**{"footer_cache": ""} | options)
    ).manifest


# ---------------------------------------------------------------------------------------------- the hub


def test_a_hub_dataset_is_pinned_to_a_commit_and_read_where_it_lies(hub, tmp_path):
    manifest = create(f"{SAMPLE}/*.parquet", tmp_path / "out")
    assert (manifest.source, manifest.revision) == (f"{SAMPLE}/*.parquet", COMMIT)
    names = [f"hf://datasets/lab/web@{COMMIT}/sample/10BT/{number:03d}.parquet" for number in range(3)]
    assert [file.name for file in manifest.files] == names
    assert all(file.etag.startswith("etag:") for file in manifest.files)
    assert b"document" not in open_storage(str(tmp_path / "out")).read("manifest.json")
    assert list(chain(*read_all(str(tmp_path / "out")))) == documents(range(16))
    create(tmp_path / "web/sample/10BT", tmp_path / "local")
    assert read_all(str(tmp_path / "local")) == read_all(str(tmp_path / "out"))


@pytest.mark.parametrize("source, count", [
    (f"{SAMPLE}", 3), (f"{SAMPLE}/", 3), ("hf://datasets/lab/web@main/sample/*/*.parquet", 3),
    (f"hf://datasets/lab/web@{COMMIT}/**/000.parquet", 2), (f"{SAMPLE}/001.parquet", 1),
    (f"{SAMPLE}/00[12].parquet", 2),
])  # fmt: skip
def test_what_a_hub_source_means(hub, tmp_path, source, count):
    manifest = create(source, tmp_path / "out")
    assert len(manifest.files) == count and manifest.revision == COMMIT
    assert "@" not in manifest.source


@pytest.mark.parametrize("source, error, said", [
    ("hf://datasets/lab/web/nothing/*.parquet", InvalidRequest, "no Parquet file there"),
    ("hf://datasets/lab/web/sample/*.csv", InvalidRequest, "no Parquet file there"),
    ("hf://datasets/lab/web", InvalidRequest, "has data and sample, .* choose one, such as hf://datasets/lab/web/data"),
    ("hf://datasets/lab/none", InvalidRequest, "no such repository on the hub; if it is private, set HF_TOKEN"),
    ("hf://datasets/lab/web@v9/sample", InvalidRequest, "no such revision"),
    ("hf://datasets/web", InvalidRequest, "give hf://datasets/OWNER/NAME"),
])  # fmt: skip
def test_what_is_not_on_the_hub_is_said(hub, tmp_path, source, error, said):
    with pytest.raises(error, match=said) as raised:
        create(source, tmp_path / "out")
    assert source.partition("@")[0] in str(raised.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "status, code, said",
    [(403, "GatedRepo", "gated; ask for access .* HF_TOKEN"), (401, "", "HF_TOKEN"), (403, "", "HF_TOKEN")],
)
def test_what_the_hub_refuses_names_the_token(hub, tmp_path, status, code, said):
    hub.refuse = (status, code)
    with pytest.raises(PermissionDenied, match=said):
        create(SAMPLE, tmp_path / "out")


@pytest.mark.parametrize("what", ["503", "429 0", "cut"])
def test_trouble_that_passes_is_waited_out(hub, tmp_path, what):
    hub.trouble = [("/stored/*", what, 2), ("/api/datasets/*", what, 1)]
    create(SAMPLE, tmp_path / "out", 1)
    hub.trouble = [("/stored/*000.parquet", what, 2), ("*/resolve/*001.parquet", what, 2)]
    assert read_all(str(tmp_path / "out")) == [documents(range(16))]
    assert all(count == 0 for _, _, count in hub.trouble)


def test_the_hub_is_not_asked_before_it_wants_to_be(hub, tmp_path):
    hub.trouble = [("/api/datasets/*", "429 60", 1)]
    with pytest.raises(TryAgain, match="no success within 5 s: .*429"):
        create(SAMPLE, tmp_path / "out")
    assert len([path for path in hub.asked if "lab/web" in path]) == 1


def test_trouble_that_stays_ends_after_the_records_before_it(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.5")
    manifest = create(SAMPLE, tmp_path / "out", 1)
    hub.trouble = [("*002.parquet", "500", 1000)]
    records = open_stream(manifest, str(tmp_path / "out"), 0).read_records()
    assert [next(records).index for _ in range(9)] == list(range(9))
    with pytest.raises(TryAgain, match="002.parquet: no success"):
        next(records)


def replace(path):
    """Other content of the same size, footer and all but one byte of a page."""
    data = bytearray(path.read_bytes())
    data[next(end for _, _, _, end in column_chunks(path)) - 1] ^= 1
    path.write_bytes(data)


def test_a_file_that_changed_on_the_hub_is_damage(hub, tmp_path):
    manifest = create(SAMPLE, tmp_path / "out")
    replace(tmp_path / "web/sample/10BT/000.parquet")
    with pytest.raises(DamagedData, match="000.parquet is etag:.*the manifest says etag:.*replaced") as error:
        next(open_stream(manifest, str(tmp_path / "out"), 0).read_records())
    assert error.value.exit_code == 65
    (tmp_path / "web/sample/10BT/002.parquet").unlink()
    with pytest.raises(DamagedData, match="002.parquet: the file is missing"):
        list(open_stream(manifest, str(tmp_path / "out"), 1).read_records())


def test_making_a_manifest_goes_on_where_it_was_interrupted(hub, tmp_path):
    hub.trouble = [("*/002.parquet", "403", 1)]
    with pytest.raises(PermissionDenied):
        create(SAMPLE, tmp_path / "out", footer_cache=str(tmp_path / "cache"))
    assert not (tmp_path / "out").exists()
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(cache.read_bytes() + b'{"facts": {"na')  # killed while it wrote
    hub.asked.clear()
    manifest = create(SAMPLE, tmp_path / "out", footer_cache=str(tmp_path / "cache"))
    assert {path.rpartition("/")[2] for path in hub.asked if path.startswith("/stored/")} == {"002.parquet"}
    assert manifest == create(SAMPLE, tmp_path / "without")
    hub.asked.clear()
    replace(tmp_path / "web/sample/10BT/001.parquet")
    changed = create(SAMPLE, tmp_path / "changed", footer_cache=str(tmp_path / "cache"))
    assert {path.rpartition("/")[2] for path in hub.asked if path.startswith("/stored/")} == {"001.parquet"}
    assert changed.files[1].etag != manifest.files[1].etag


# ---------------------------------------------------------------------------------------------- a bucket


def test_a_mirror_in_a_bucket_is_read_where_it_lies(gcs, tmp_path):
    write_corpus(tmp_path / "web", FILES)
    mirror = open_storage("gs://bucket/mirror/fineweb")
    for path in sorted((tmp_path / "web").iterdir()):
        mirror.create(path.name, path.read_bytes())
    for source in ("gs://bucket/mirror/fineweb", "gs://bucket/mirror/*/*.parquet"):
        out = tmp_path / source.replace("/", "_")
        manifest = create(source, out)
        names = [f"gs://bucket/mirror/fineweb/{number:03d}.parquet" for number in range(3)]
        assert [file.name for file in manifest.files] == names
        assert all(file.etag.startswith("crc32c:") for file in manifest.files)
        assert list(chain(*read_all(str(out)))) == documents(range(16))
    replace(tmp_path / "web/000.parquet")
    mirror.replace("000.parquet", (tmp_path / "web/000.parquet").read_bytes())
    with pytest.raises(DamagedData, match="000.parquet is crc32c:.*replaced"):
        read_all(str(out))
    with pytest.raises(InvalidRequest, match="no Parquet file there"):
        create("gs://bucket/elsewhere", tmp_path / "none")


# ---------------------------------------------------------------------------------------------- parts of a source

DUMPS = ["CC-MAIN-2013-20", "CC-MAIN-2024-10", "CC-MAIN-2024-18"]
rows = st.tuples(
    st.one_of(st.none(), st.just(math.nan), st.sampled_from([0.65, 0.8, 0.95])),
    st.one_of(st.none(), st.sampled_from(DUMPS)), st.integers(0, 50),
)  # fmt: skip
options = st.fixed_dictionaries({}, optional={
    "min_language_score": st.sampled_from([0.7, 0.8, 1.0]),
    "dump": st.lists(st.sampled_from(DUMPS), min_size=1, max_size=2),
    "max_records": st.integers(1, 20), "max_tokens": st.integers(1, 300),
})  # fmt: skip


def write_rows(folder, files):
    """Files of row groups of (language score, dump, tokens), ids numbered through; returns (id, row) of all."""
    folder.mkdir(parents=True)
    number, everything = 0, []
    schema = pa.schema({"text": pa.string(), "id": pa.string(), "dump": pa.string(), "language_score": pa.float64(),
                        "token_count": pa.int64()})  # fmt: skip
    for name, groups in enumerate(files):
        with pq.ParquetWriter(folder / f"{name:03d}.parquet", schema) as writer:
            for group in groups:
                ids = [str(n) for n in range(number, number + len(group))]
                scores, dumps, tokens = ([row[i] for row in group] for i in range(3))
                columns = {"text": [f"text {i}" for i in ids], "id": ids, "dump": dumps, "language_score": scores,
                           "token_count": tokens}  # fmt: skip
                writer.write_table(pa.table(columns, schema=schema))
                everything += zip(ids, group, strict=True)
                number += len(group)
    return everything


def expected_ids(everything, asked):
    kept = []
    for name, (score, dump, tokens) in everything:
        if "min_language_score" in asked and not (score is not None and score >= asked["min_language_score"]):
            continue
        if "dump" in asked and dump not in asked["dump"]:
            continue
        kept.append((name, tokens))
    kept = kept[: asked.get("max_records")]
    total = 0
    for count, (_, tokens) in enumerate(kept):
        total += tokens
        if total > asked.get("max_tokens", math.inf):
            return [name for name, _ in kept[:count]]
    return [name for name, _ in kept]


@settings(max_examples=120, deadline=None)
@given(files=st.lists(st.lists(st.lists(rows, max_size=6), max_size=4), min_size=1, max_size=3), asked=options,
       num_streams=st.integers(1, 4))  # fmt: skip
def test_a_part_of_a_source_is_exactly_what_was_asked_for(tmp_path_factory, files, asked, num_streams):
    folder = tmp_path_factory.mktemp("part")
    expected = expected_ids(write_rows(folder / "web", files), asked)
    if asked.keys() - {"max_records"} and not expected:
        with pytest.raises(InvalidRequest, match="the flags keep none of its rows"):
            create(folder / "web", folder / "out", num_streams, **asked)
        return
    for name in ("out", "again"):
        create(folder / "web", folder / name, num_streams, **asked)
    manifest = load_manifest(str(folder / "out"))
    assert manifest.num_records == len(expected) and manifest == load_manifest(str(folder / "again"))
    streams = [open_stream(manifest, str(folder / "out"), index) for index in range(num_streams)]
    assert list(chain(*(stream.read_ids() for stream in streams))) == expected
    for stream in streams:
        records = list(stream.read_records())
        assert len(records) == stream.num_records and [record.text for record in records] == [
            f"text {r.id}" for r in records
        ]
        start = len(records) // 2
        assert list(stream.read_records(start)) == records[start:]
        assert list(stream.read_ids(start)) == [record.id for record in records[start:]]


def test_the_part_stands_in_the_manifest(tmp_path):
    write_rows(tmp_path / "web", [[[(0.9, DUMPS[1], 3), (0.7, DUMPS[1], 3)]]])
    asked = {"min_language_score": 0.8, "dump": (DUMPS[1],), "max_records": 5, "max_tokens": 100}
    manifest = create(tmp_path / "web", tmp_path / "out", 1, **asked)
    assert manifest.options == {
        "filter": {"min_language_score": 0.8, "dumps": [DUMPS[1]]},
        "max_records": 5,
        "max_tokens": 100,
    }
    assert manifest.streams[0].pieces[0].to_json() == [0, 0, 0, 2, 1]


def test_statistics_decide_where_they_can(tmp_path):
    """A row group of one dump is not read to know that all or none of it is kept, nor is one that is not kept."""
    groups = [[(0.9, dump, 1)] * 3 for dump in DUMPS]
    write_rows(tmp_path / "web", [groups])
    path = tmp_path / "web/000.parquet"
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    for _, column, begin, end in column_chunks(path):
        if column == "dump":
            data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    wanted = Wanted(filter=FinewebOptions(dump=(DUMPS[0], DUMPS[2])).filter)
    assert inspect(Files(), SourceFile(str(path)), wanted).records.tolist() == [3, 0, 3]
    data = bytearray(whole)
    for group, _, begin, end in column_chunks(path):
        if group == 1:
            data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    manifest = create(tmp_path / "web", tmp_path / "out", 1, dump=(DUMPS[0], DUMPS[2]))
    assert [piece.to_json() for piece in manifest.streams[0].pieces] == [[0, 0, 0, 3], [0, 2, 0, 3]]


@pytest.mark.parametrize("other", [DUMPS[1], None])
def test_statistics_that_do_not_decide_are_not_trusted(tmp_path, other):
    write_rows(tmp_path / "web", [[[(0.9, DUMPS[0], 1), (0.9, other, 1)]]])
    assert create(tmp_path / "web", tmp_path / "out", 1, dump=(DUMPS[0],)).num_records == 1


def test_rows_that_the_filter_counts_otherwise_are_damage(tmp_path):
    write_rows(tmp_path / "web", [[[(0.9, DUMPS[0], 1), (0.7, DUMPS[0], 1), (0.9, DUMPS[0], 1)]]])
    storage = open_storage(str(tmp_path / "out"))
    create(tmp_path / "web", tmp_path / "out", 1, min_language_score=0.8)
    value = json.loads(storage.read("manifest.json"))
    value["streams"][0] |= {"pieces": [[0, 0, 0, 3, 1]], "num_records": 1}
    manifest = parse_manifest(canonical_json(value | {"num_records": 1}), "there")
    with pytest.raises(DamagedData, match="000.parquet: row group 0 has 2 such records, the manifest says 1"):
        list(open_stream(manifest, storage, 0).read_records())


@pytest.mark.parametrize("asked, said", [
    ({"max_tokens": 5}, "no single column 'token_count'; it has text, id"),
    ({"dump": ("x",)}, "no single column 'dump'"),
    ({"min_language_score": 0.5}, "no single column 'language_score'"),
    ({"meta_columns": ("url",)}, "no single column 'url'"),
])  # fmt: skip
def test_a_column_that_a_part_needs_is_named(tmp_path, asked, said):
    pq.write_table(pa.table({"text": ["a"], "id": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(InvalidRequest, match=said):
        create(tmp_path, tmp_path / "out", **asked)


def test_a_token_count_that_is_null_is_named(tmp_path):
    write_rows(tmp_path / "web", [[[(0.9, DUMPS[0], 1), (0.9, DUMPS[0], None)]]])
    with pytest.raises(InvalidRequest, match="000.parquet: row group 0 has a token_count that is null"):
        create(tmp_path / "web", tmp_path / "out", max_tokens=5)


def test_columns_can_go_beside_the_activations_as_meta(tmp_path):
    write_rows(tmp_path / "web", [[[(0.9, DUMPS[0], 1), (None, DUMPS[1], 2)]]])
    manifest = create(
        tmp_path / "web", tmp_path / "out", 1, meta_columns=("dump", "language_score"), min_language_score=0.1
    )
    (record,) = open_stream(manifest, str(tmp_path / "out"), 0).read_records()
    assert json.loads(record.meta) == {"dump": DUMPS[0], "language_score": 0.9}
    assert (
        next(open_stream(create(tmp_path / "web", tmp_path / "x", 1), str(tmp_path / "x"), 0).read_records()).meta
        is None
    )
