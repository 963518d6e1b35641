"""Token ids as sources: the same ids arrive at the model, from every kind of file; what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets import tokens
from extraction.format.records import Record
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from extraction.streams.build.check import check_streams
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.workers import MODEL, extract_here, verify

ROWS = [[5, 6, 7, 0, 8, 9, 0], [0, 1], [], [3] * 40]


def write(path, rows=ROWS, column="input_ids", **more):
    table = pa.table({column: pa.array(rows, pa.list_(pa.int32()))} | more)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":  # as `datasets` writes it to disk
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".feather":
        with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return path.with_suffix(".arrow")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


def create(source, output, num_streams=1, **options):
    return tokens.create(open_storage(str(output)), str(source), num_streams, tokens.TokenOptions(**options)).manifest


def ids_of(output):
    """The ids of all records, read anew from every record on, too."""
    manifest, found = load_manifest(str(output)), []
    for number in range(manifest.num_streams):
        stream = open_stream(manifest, str(output), number)
        records = list(stream.read_records())
        assert all(record.text == "" and record.tokens.dtype == np.int32 for record in records)
        for start in range(len(records)):
            again = [record.tokens.tolist() for record in stream.read_records(start)]
            assert again == [record.tokens.tolist() for record in records[start:]]
        found += [record.tokens.tolist() for record in records]
    return found


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.feather", "x.jsonl"])
@pytest.mark.parametrize("column", ["input_ids", "tokens"])
def test_the_ids_of_a_file_are_those_of_the_records(tmp_path, name, column):
    source = write(tmp_path / name, column=column, label=["a", "b", "c", "d"])
    manifest = create(source, tmp_path / "out", 2, meta_columns=("label",))
    assert ids_of(tmp_path / "out") == ROWS
    assert (manifest.num_records, manifest.options["tokens_column"]) == (4, "tokens")
    records = list(open_stream(manifest, str(tmp_path / "out"), 1).read_records())
    assert [record.meta for record in records] == ['{"label": "c"}', '{"label": "d"}']
    assert not check_streams(str(tmp_path / "out")).problems


def test_packed_rows_are_cut_at_the_separator(tmp_path):
    source = write(tmp_path / "x.parquet")
    create(source, tmp_path / "end", separator=0)
    assert ids_of(tmp_path / "end") == [[5, 6, 7, 0], [8, 9, 0], [0], [1], [3] * 40]
    create(source, tmp_path / "begin", separator=0, separator_at="begin")
    assert ids_of(tmp_path / "begin") == [[5, 6, 7], [0, 8, 9], [0], [0, 1], [3] * 40]
    stream = open_stream(load_manifest(str(tmp_path / "end")), str(tmp_path / "end"), 0)
    assert list(stream.read_ids()) == ["0/0", "0/1", "1/0", "1/1", "3"]


def test_padding_is_left_out(tmp_path):
    write(tmp_path / "x.jsonl", [[5, 6, 9, 9], [7, 9, 9, 9]], attention_mask=[[1, 1, 0, 0], [1, 0, 0, 0]])
    create(tmp_path / "x.jsonl", tmp_path / "out")
    assert ids_of(tmp_path / "out") == [[5, 6], [7]]


@pytest.mark.parametrize("mask", [[1, None, 0], None, [1, 1 << 31, 0]])
def test_a_mask_with_a_null_is_a_damaged_record(tmp_path, mask):
    write(
        tmp_path / "x.parquet", [[1, 2, 0], [3, 4, 0]], attention_mask=pa.array([mask, [1, 1, 0]], pa.list_(pa.int64()))
    )
    with pytest.raises(DamagedData, match="x.parquet: row 0: attention_mask is not a list of 0 and 1"):
        create(tmp_path / "x.parquet", tmp_path / "out")
    create(tmp_path / "x.parquet", tmp_path / "out", on_bad_record="skip")
    assert ids_of(tmp_path / "out") == [[3, 4]]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.jsonl"])
def test_lists_of_numbers_in_a_meta_are_whole(tmp_path, name):
    lists = {
        "input_ids": [list(range(2000))],
        "attention_mask": [[0, 1] * 1000],
        "token_ids": [[-100, 1 << 40, None] * 500],
    }
    write(
        tmp_path / name,
        lists["input_ids"],
        **{key: pa.array(value, pa.list_(pa.int64())) for key, value in lists.items()},
    )
    manifest = create(tmp_path / name, tmp_path / "out", meta_columns=tuple(lists), where="len(input_ids) > 5")
    (record,) = open_stream(manifest, str(tmp_path / "out"), 0).read_records()
    assert record.tokens.tolist() == list(range(1, 2000, 2))
    assert json.loads(record.meta) == {key: value for key, (value,) in lists.items()}


@pytest.mark.parametrize(
    "row, what",
    [
        ({"input_ids": [1, -1]}, "input_ids is not a list of token ids"),
        ({"input_ids": [1, 1 << 31]}, "input_ids is not a list of token ids"),
        ({"input_ids": [1, True]}, "input_ids is not a list of token ids"),
        ({"input_ids": "1 2"}, "input_ids is not a list of token ids"),
        ({"input_ids": [1, 5000]}, "the token id 5000 is beyond the vocabulary of"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "attention_mask has 1 entries, input_ids has 2"),
        ({"input_ids": [1, 2], "attention_mask": None}, "attention_mask is not a list of 0 and 1"),
        ({"text": "a"}, "has no column input_ids or tokens or token_ids; it has text"),
    ],
)
def test_what_is_no_row_of_ids_is_named_by_file_and_row_or_skipped(tmp_path, row, what):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ({"input_ids": [1]}, row)))
    with pytest.raises(DamagedData, match=rf"x.jsonl: line 2.*{what}"):
        create(tmp_path / "x.jsonl", tmp_path / "out", model=str(MODEL))
    manifest = create(tmp_path / "x.jsonl", tmp_path / "out", model=str(MODEL), on_bad_record="skip")
    assert (ids_of(tmp_path / "out"), manifest.options["skipped"]["count"]) == ([[1]], 1)


def test_a_null_in_a_list_is_damage_of_its_own_row_alone(tmp_path):
    write(tmp_path / "x.parquet", [[1, 2], [3, None], [4], None])
    with pytest.raises(DamagedData, match="x.parquet: row 1"):
        create(tmp_path / "x.parquet", tmp_path / "out")
    create(tmp_path / "x.parquet", tmp_path / "out", on_bad_record="skip")
    assert ids_of(tmp_path / "out") == [[1, 2], [4]]


def test_a_model_without_a_vocabulary_is_refused(tmp_path):
    write(tmp_path / "x.jsonl")
    with pytest.raises(InvalidRequest, match="does not say vocab_size"):
        create(tmp_path / "x.jsonl", tmp_path / "out", model=str(tmp_path))


def test_a_worker_refuses_an_id_that_the_model_has_no_embedding_of():
    records = [Record(0, "a", "", None, np.array([1, 2], np.int32)), Record(1, "b", "the"), Record(2, "c", "", None, np.array([7000], np.int32))]  # fmt: skip
    found = RecordTokenizer(MODEL, "always", 4096).tokenize(records)
    assert next(found).tokens.tolist() == [1, 2]  # with no beginning-of-text token of ours
    assert len(next(found).tokens) == 2
    with pytest.raises(
        DamagedData, match="record c: the token id 7000 is not one of the model, whose ids are below 4096"
    ):
        next(found)


@pytest.mark.slow
def test_ids_are_extracted_as_they_are_and_proven(tmp_path):
    rows = [np.random.default_rng(seed).integers(0, 1000, 50).tolist() for seed in range(5)]
    create(write(tmp_path / "x.parquet", rows), tmp_path / "streams")
    extract_here(tmp_path / "streams", tmp_path / "run", "--positions", "1:")
    assert [r.tokens.tolist() for r in ActivationReader(str(tmp_path / "run")).records()] == [row[1:] for row in rows]
    result = verify(tmp_path / "run", "--deep")
    assert result.returncode == 0, result.stdout


def test_a_limit_counts_the_documents_of_packed_rows(tmp_path):
    create(write(tmp_path / "x.parquet"), tmp_path / "out", separator=0, max_records=2)
    assert ids_of(tmp_path / "out") == [[5, 6, 7, 0], [8, 9, 0]]
