"""AI2 ARC: the text of a question, the answer in its meta, and every malformed row named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets import ai2_arc
from extraction.storage import open_storage
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.fake_hub import COMMIT, FakeHub

ROW = {
    "id": "Mercury_7", "question": "Which of these is a mineral?",
    "choices": {"text": ["wood", "quartz", "wool"], "label": ["A", "B", "C"]}, "answerKey": "B",
}  # fmt: skip
NUMBERED = ROW | {"id": "NYSEDREGENTS_2", "choices": {"text": ["ice", "steam"], "label": ["1", "2"]}, "answerKey": "2"}
PUBLISHED = {
    "id": "Mercury_7", "answerKey": "B", "question": {"stem": ROW["question"], "choices": [
        {"text": "wood", "label": "A"}, {"text": "quartz", "label": "B"}, {"text": "wool", "label": "C"}]},
}  # fmt: skip
PROMPT = "Question: Which of these is a mineral?\nA. wood\nB. quartz\nC. wool\nAnswer:"


def records_of(tmp_path, source, **options):
    location = str(tmp_path / "out")
    manifest = ai2_arc.create(open_storage(location), str(source), 1, ai2_arc.Ai2ArcOptions(**options)).manifest
    return list(open_stream(manifest, location, 0).read_records())


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "name, row", [("x.parquet", ROW), ("x.jsonl", ROW), ("x.jsonl", PUBLISHED)], ids=["parquet", "jsonl", "published"]
)
def test_a_question_with_lettered_choices(tmp_path, name, row):
    (record,) = records_of(tmp_path, write_rows(tmp_path / name, [row]))
    assert (record.id, record.text) == ("Mercury_7", PROMPT)
    assert json.loads(record.meta) == {"answer": "B", "answer_key": "B", "num_choices": 3}


def test_the_answer_is_appended_if_asked_for_as_the_letter_that_is_shown(tmp_path):
    first, second = records_of(tmp_path, write_rows(tmp_path / "x.parquet", [ROW, NUMBERED]), with_answer=True)
    assert first.text == PROMPT + " B"
    assert second.text == "Question: Which of these is a mineral?\nA. ice\nB. steam\nAnswer: B"
    place = json.loads(second.meta)["spans"]["answer"]
    assert (second.text[slice(*place)], place[1]) == ("B", len(second.text))
    rest = {"answer": "B", "answer_key": "2", "num_choices": 2}
    assert json.loads(second.meta) == rest | {"spans": {"answer": place}}
    options = load_manifest(str(tmp_path / "out")).options
    assert options.keys() == {"with_answer", "spans", "source_files", "id_column"} and options["spans"] == ["answer"]


def test_from_the_hub_at_a_commit(tmp_path, monkeypatch):
    write_rows(tmp_path / "set/ARC-Easy/test-00000.parquet", [ROW])
    write_rows(tmp_path / "set/ARC-Challenge/test-00000.parquet", [NUMBERED])
    with FakeHub(tmp_path, datasets={"allenai/ai2_arc": tmp_path / "set"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        published = ai2_arc.create(
            open_storage(str(tmp_path / "x")), "hf://datasets/allenai/ai2_arc/ARC-*/test-*.parquet", 2
        )
        assert published.manifest.revision == COMMIT and published.manifest.num_records == 2
        assert len(records_of(tmp_path, "hf://datasets/allenai/ai2_arc/ARC-Easy")) == 1


@pytest.mark.parametrize("change, error, said", [
    ({"choices": None}, DamagedData, "line 1: choices must be lists"),
    ({"answerKey": "E"}, DamagedData, "the answer key 'E' is not one of the choices A, B, C"),
    ({"question": 3}, DamagedData, "line 1: its question is not a string"), ({"id": None}, DamagedData, "its id is null"),
    ({"choices": {"text": ["a"], "label": ["A", "B"]}}, DamagedData, "2 labels and 1 text"),
    ({"choices": {"text": [], "label": []}}, DamagedData, "0 labels"),
    ({"question": ...}, InvalidRequest, "no column 'question'; it has id, choices, answerKey"),
])  # fmt: skip
def test_a_row_that_is_no_question_is_named(tmp_path, change, error, said):
    row = {key: value for key, value in (ROW | change).items() if value is not ...}
    with pytest.raises(error, match=said):
        records_of(tmp_path, write_rows(tmp_path / "x.jsonl", [row]))
    assert not (tmp_path / "out").exists()


def test_an_id_that_is_there_twice_is_named(tmp_path):
    with pytest.raises(DamagedData, match="the id 'Mercury_7' is in two records: record 0 and record 2"):
        records_of(tmp_path, write_rows(tmp_path / "x.jsonl", [ROW, NUMBERED, ROW]))
