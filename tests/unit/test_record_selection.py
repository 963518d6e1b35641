"""Which records streams are made of, and in which order: the same by reference and by copy, and again when it is read."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets import fineweb, text
from extraction.storage import open_storage
from extraction.streams.build import external_shuffle
from extraction.streams.build.check import check_streams
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.workers import MODEL, text_of

N = 300
TEXTS = [text_of(n, n % 17) for n in range(N)]
SCORES = [n * 37 % 100 / 10 for n in range(N)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two Parquet files of small row groups, with an id, a score and a nested column."""
    folder = tmp_path_factory.mktemp("source")
    ids, nested = [f"id {n}" for n in range(N)], [{"lang": "en" if n % 3 else "de"} for n in range(N)]
    for half in (0, 1):
        here = slice(half * N // 2, (half + 1) * N // 2)
        columns = {"text": TEXTS[here], "id": ids[here], "score": SCORES[here], "metadata": nested[here]}
        pq.write_table(pa.table(columns), folder / f"{half}.parquet", row_group_size=20)
    return str(folder)


def made(dataset, source, output, num_streams=3, **options):
    """The ids of the records of each stream, read from every place on."""
    kind = {fineweb: fineweb.FinewebOptions, text: text.TextOptions}[dataset]
    more = {"id_column": "id"} if dataset is text else {"footer_cache": ""}
    manifest = dataset.create(open_storage(str(output)), source, num_streams, kind(**options | more)).manifest
    streams = []
    for number in range(num_streams):
        stream = open_stream(manifest, str(output), number)
        ids = [record.id for record in stream.read_records()]
        for start in (1, len(ids) // 2, len(ids) - 1):
            start = min(max(start, 0), len(ids))
            assert [record.id for record in stream.read_records(start)] == ids[start:]
        streams.append(ids)
    assert not check_streams(str(output)).problems
    return streams


def flat(streams):
    return [record for stream in streams for record in stream]


@pytest.mark.parametrize("dataset", [fineweb, text])
def test_a_condition_on_any_columns(source, tmp_path, dataset):
    wanted = [f"id {n}" for n in range(N) if SCORES[n] >= 7.5 and n % 3]
    found = made(dataset, source, tmp_path / "out", where="score >= 7.5 and metadata.lang == 'en'")
    assert flat(found) == wanted


def test_row_groups_that_a_footer_rules_out_are_not_decoded_and_rows_keep_their_numbers(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"t{n}" for n in range(100)], "n": range(100)}), path, row_group_size=10)
    read = []
    whole = pq.ParquetFile.iter_batches

    def watched(self, size, row_groups, *rest, **more):
        read.append(row_groups)
        return whole(self, size, row_groups, *rest, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    text.create(open_storage(str(tmp_path / "out")), str(path), 1, text.TextOptions(where="n >= 85"))
    assert read[:2] == [[8], [9]]
    ids = list(open_stream(load_manifest(str(tmp_path / "out")), str(tmp_path / "out"), 0).read_ids())
    assert ids == [str(n) for n in range(85, 100)]


@pytest.mark.parametrize("dataset", [fineweb, text])
def test_parts_share_no_document_and_are_together_the_whole(source, tmp_path, dataset):
    train = flat(made(dataset, source, tmp_path / "train", part="0.8:train"))
    test = flat(made(dataset, source, tmp_path / "test", part="0.8:test"))
    assert sorted(train + test) == sorted(f"id {n}" for n in range(N)) and 200 < len(train) < 280
    sample = flat(made(dataset, source, tmp_path / "sample", part="0.8:train", sample=0.5))
    assert set(sample) < set(train) and 80 < len(sample) < 160


def test_copies_and_references_have_the_same_part(source, tmp_path):
    one, other = (
        flat(made(d, source, tmp_path / d.__name__, part="0.5:test", where="score > 2")) for d in (fineweb, text)
    )
    assert one == other


def test_parts_need_ids(source, tmp_path):
    with pytest.raises(InvalidRequest, match="--part and --sample choose rows by the hash of the id"):
        made(fineweb, source, tmp_path / "out", id_column="", part="0.5:train")


@pytest.mark.parametrize("dataset", [fineweb, text])
def test_another_order_is_a_function_of_the_seed(source, tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(external_shuffle, "BUCKET_BYTES", 4000)  # several buckets
    plain, one, again, other = (
        flat(made(dataset, source, tmp_path / str(n), shuffle=seed)) for n, seed in enumerate((None, 1, 1, 2))
    )
    assert one == again != other
    assert plain != one and sorted(one) == sorted(other) == sorted(plain)
    places = np.array([int(record.split()[1]) for record in one])
    assert abs(np.corrcoef(places, np.arange(N))[0, 1]) < 0.4


@pytest.mark.parametrize("dataset", [fineweb, text])
@pytest.mark.parametrize("limit", [100, 1234])
def test_tokens_of_the_model_are_counted(source, tmp_path, dataset, limit):
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    prefix = len(tokenizer.encode("a").ids) - len(tokenizer.encode("a", add_special_tokens=False).ids)
    sums = np.cumsum([len(tokenizer.encode(one, add_special_tokens=False).ids) + prefix for one in TEXTS])
    found = flat(made(dataset, source, tmp_path / "out", max_tokens=limit, model=str(MODEL)))
    assert abs(len(found) - np.searchsorted(sums, limit, side="right")) <= (0 if prefix == 0 else 2)
    assert found == [f"id {n}" for n in range(len(found))]


def test_without_a_model_copied_rows_have_no_tokens_to_count(source, tmp_path):
    with pytest.raises(InvalidRequest, match="--max-tokens counts the tokens of a model"):
        made(text, source, tmp_path / "out", max_tokens=10)
    pq.write_table(pa.table({"text": ["a b c d e f"], "id": ["1"]}), tmp_path / "x.parquet")
    for dataset in (fineweb, text):
        with pytest.raises(InvalidRequest, match=r"--max-tokens 1: the first record alone has \d+ tokens"):
            made(dataset, str(tmp_path / "x.parquet"), tmp_path / "out", max_tokens=1, model=str(MODEL))


def one_group(path, rows):
    columns = {"text": [f"text {n} " + "x" * 50 for n in range(rows)], "id": [f"id {n}" for n in range(rows)]}
    columns["score"] = [n % 7 for n in range(rows)]
    pq.write_table(pa.table(columns), path, row_group_size=rows)


def test_one_large_row_group_spreads_over_streams_evenly(tmp_path):
    one_group(tmp_path / "x.parquet", 20_000)
    found = made(fineweb, str(tmp_path / "x.parquet"), tmp_path / "out", 7)
    assert flat(found) == [f"id {n}" for n in range(20_000)]
    assert max(map(len, found)) - min(map(len, found)) <= 1100
    assert len(flat(made(fineweb, str(tmp_path / "x.parquet"), tmp_path / "shuffled", 7, shuffle=3))) == 20_000


def test_a_row_group_is_read_in_tables_of_bounded_size(tmp_path, monkeypatch):
    from extraction.streams import column_chunks

    monkeypatch.setattr(column_chunks, "TABLE_BYTES", 100_000)
    one_group(tmp_path / "x.parquet", 20_000)
    for where, wanted in ((None, range(20_000)), ("score == 3", range(3, 20_000, 7))):
        found = made(fineweb, str(tmp_path / "x.parquet"), tmp_path / f"out-{where}", 2, where=where)
        assert flat(found) == [f"id {n}" for n in wanted]


def test_rows_of_another_type_and_columns_that_are_missing_are_damaged_rows(tmp_path):
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": "x"}, {"text": "c"}, {"text": "d", "n": 5}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for lines, said in (
        (rows[:2], "line 2: --where n > 0: it cannot be applied"),
        (rows[::2], "line 2 has no column 'n'"),
    ):
        (tmp_path / "y.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        with pytest.raises(DamagedData, match=f"y.jsonl: {said}"):
            text.create(
                open_storage(str(tmp_path / "o")), str(tmp_path / "y.jsonl"), 1, text.TextOptions(where="n > 0")
            )
    options = text.TextOptions(where="n > 0", on_bad_record="skip")
    manifest = text.create(open_storage(str(tmp_path / "out")), str(tmp_path / "x.jsonl"), 1, options).manifest
    assert (manifest.num_records, manifest.options["skipped"]["count"]) == (2, 2)


def test_token_ids_by_reference(tmp_path):
    rows = [[1, 2, 3], [], [4], None]
    pq.write_table(pa.table({"input_ids": rows[:3], "id": ["a", "b", "c"]}), tmp_path / "x.parquet", row_group_size=2)
    options = fineweb.FinewebOptions(tokens_column="input_ids")
    manifest = fineweb.create(open_storage(str(tmp_path / "out")), str(tmp_path / "x.parquet"), 2, options).manifest
    found = [r.tokens.tolist() for n in (0, 1) for r in open_stream(manifest, str(tmp_path / "out"), n).read_records()]
    assert found == rows[:3]
    pq.write_table(pa.table({"input_ids": rows, "id": list("abcd")}), tmp_path / "y.parquet")
    with pytest.raises(DamagedData, match="row 3 of row group 0: input_ids is null"):
        fineweb.create(open_storage(str(tmp_path / "no")), str(tmp_path / "y.parquet"), 1, options)


def test_parts_of_a_filtered_and_of_a_whole_source_share_no_row(tmp_path):
    """Without an id column ids are numbers of rows, whichever row groups are left out."""
    for number in (0, 1):
        columns = {"text": [f"{number} {n}" for n in range(20)], "s": [0 if n >= 10 else 5 for n in range(20)]}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet", row_group_size=10)
    for name, options in (("train", {"part": "0.5:train", "where": "s >= 3"}), ("test", {"part": "0.5:test"})):
        output = str(tmp_path / name)
        text.create(open_storage(output), str(tmp_path / "*.parquet"), 1, text.TextOptions(**options))
    train, test = (
        {r.text: r.id for r in open_stream(load_manifest(str(tmp_path / n)), str(tmp_path / n), 0).read_records()}
        for n in ("train", "test")
    )
    assert train and not train.keys() & test.keys()
    assert all(int(number) == 20 * int(content[0]) + int(content[2:]) for content, number in (train | test).items())


@pytest.mark.parametrize("dataset", [fineweb, text])
def test_parts_of_all_splits_and_of_one_share_no_document(tmp_path, dataset):
    for split in ("train", "test"):
        ids = [f"{split} {n}" for n in range(20)]
        (tmp_path / "data" / split).mkdir(parents=True)
        pq.write_table(pa.table({"text": ids, "id": ids}), tmp_path / f"data/{split}/0.parquet")
    source = str(tmp_path / "data")
    train = flat(made(dataset, source, tmp_path / "a", 1, split="train", part="0.5:train"))
    test = flat(made(text, source, tmp_path / "b", 1, split="all", part="0.5:test"))
    assert train and not set(train) & {one.partition("/")[2] for one in test}


@pytest.mark.parametrize("dataset", [fineweb, text])
def test_conditions_that_keep_nothing_are_named(source, tmp_path, dataset):
    with pytest.raises(InvalidRequest, match="the flags keep none of its (300 )?rows"):
        made(dataset, source, tmp_path / "out", where="score > 99")


@pytest.mark.parametrize("dataset", [fineweb, text])
def test_a_meta_is_json(tmp_path, dataset):
    columns = {"text": ["a", "b"], "id": ["1", "2"], "score": [float("nan"), 1.5], "raw": [b"en", b"de"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    options = {"meta_columns": ("score", "raw")}
    made(dataset, str(tmp_path / "x.parquet"), tmp_path / "out", 1, **options)
    stream = open_stream(load_manifest(str(tmp_path / "out")), str(tmp_path / "out"), 0)
    metas = [json.loads(record.meta) for record in stream.read_records()]
    assert metas == [{"score": None, "raw": "en"}, {"score": 1.5, "raw": "de"}]
