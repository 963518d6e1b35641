"""Streams that are extended, and runs that take the new streams up: through the command lines."""

import json
import shutil
from pathlib import Path

import pytest

from extraction import ActivationReader
from extraction.core.errors import DamagedData, TryAgain
from extraction.datasets import fineweb
from extraction.storage import open_storage
from extraction.streams.build.extend import extend_streams
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers import workers
from tests.helpers.workers import python, text_of, verify


def write_lines(path: Path, ids: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"id": one, "text": f"text of {one}"}) + "\n" for one in ids))
    return path


def create(streams: Path, source: Path, *more: object, dataset: str = "text"):
    arguments = (dataset, "--source", source, "--num-streams", 2, "--output", streams, *more)
    result = python("create_dataset_streams.py", *arguments)
    assert result.returncode == 0, result.stderr


def extend(streams: Path, source: Path, *more: object, dataset: str = "text", num_streams: int = 2, **environment: str):
    arguments = ("extend", streams, dataset, "--source", source, "--num-streams", num_streams, *more)
    return python("create_dataset_streams.py", *arguments, **environment)


def check(streams: Path):
    return python("create_dataset_streams.py", "check", streams)


def ids_of(streams: Path) -> list[list[str]]:
    manifest = load_manifest(str(streams))
    return [list(open_stream(manifest, str(streams), i).read_ids()) for i in range(manifest.num_streams)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_corpus(folder: Path, name: str, num_records: int, first: int = 0) -> Path:
    """A Parquet file of a corpus whose ids have the name of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    numbers = range(first, first + num_records)
    columns = {"id": [f"{name}/{i}" for i in numbers], "text": [text_of(i, 20) for i in numbers]}
    pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=2)
    return folder


def test_new_files_become_streams_behind_the_old_ones(tmp_path):
    write_lines(tmp_path / "in/a.jsonl", ["a", "b", "c"])
    create(tmp_path / "s", tmp_path / "in", "--id-column", "id")
    before = bytes_of(tmp_path / "s")
    write_lines(tmp_path / "in/b.jsonl", ["d", "e", "f"])
    result = extend(tmp_path / "s", tmp_path / "in", "--id-column", "id")
    assert result.returncode == 0, result.stderr
    assert "2 streams, 3 records, numbered from 2; together 4 streams, 6 records" in result.stdout
    assert "a.jsonl" in result.stderr and "that the streams have" in result.stderr
    assert ids_of(tmp_path / "s") == [["a"], ["b", "c"], ["d"], ["e", "f"]]
    assert before.items() <= bytes_of(tmp_path / "s").items()
    again = extend(tmp_path / "s", tmp_path / "in", "--id-column", "id")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    write_lines(tmp_path / "in/c.jsonl", ["g"])
    assert extend(tmp_path / "s", tmp_path / "in", "--id-column", "id", num_streams=1).returncode == 0
    checked = check(tmp_path / "s")
    assert checked.returncode == 0 and "5 streams, 7 records with 2 extensions: disjoint, complete" in checked.stdout
    assert "every id once" in checked.stdout


def test_streams_by_reference_are_extended_by_reference(tmp_path):
    write_corpus(tmp_path / "in", "a", 6)
    create(tmp_path / "s", tmp_path / "in", "--id-column", "", dataset="fineweb")
    write_corpus(tmp_path / "other", "a", 4)  # a file of the same name in another folder
    result = extend(tmp_path / "s", tmp_path / "other", "--id-column", "", dataset="fineweb")
    assert result.returncode == 0, result.stderr
    ids = [one for stream in ids_of(tmp_path / "s") for one in stream]
    assert len(set(ids)) == 10 and ids[0] == "a.parquet#0"
    assert check(tmp_path / "s").returncode == 0


def test_ids_by_row_number_are_told_apart(tmp_path):
    create(tmp_path / "s", write_lines(tmp_path / "in/a.jsonl", ["x", "y"]))
    assert extend(tmp_path / "s", write_lines(tmp_path / "in/b.jsonl", ["x", "y"])).returncode == 0
    assert ids_of(tmp_path / "s") == [["0"], ["1"], ["+1/0"], ["+1/1"]]


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("same id", 65, "the id 'a' is in two records: record 0 of stream 0 and record 0 of stream 3; nothing was"),
        ("changed", 2, "when the streams were made"),
        ("cut", 2, "only the first records, by --max-records"),
        ("token ids", 2, "one run needs one value"),
    ],
)
def test_documents_that_the_streams_have_are_refused(tmp_path, how, code, message):
    more = ["--max-records", 1] if how == "cut" else []
    source = write_lines(tmp_path / "in/a.jsonl", ["a", "b"])
    create(tmp_path / "s", source, "--id-column", "id", *more)
    before = bytes_of(tmp_path / "s")
    if how == "same id":
        source = write_lines(tmp_path / "in/b.jsonl", ["c", "a"])
    elif how == "changed":
        write_lines(source, ["a", "b", "c"])
    elif how == "token ids":
        source = tmp_path / "in/tokens.jsonl"
        source.write_text('{"id": "t", "input_ids": [1, 2]}\n')
    dataset = "tokens" if how == "token ids" else "text"
    result = extend(tmp_path / "s", source, "--id-column", "id", dataset=dataset)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert load_manifest(str(tmp_path / "s")).num_records == (1 if how == "cut" else 2)
    assert before.items() <= bytes_of(tmp_path / "s").items()


def test_more_files_than_are_listed_need_an_id_column(tmp_path):
    for number in range(1001):
        write_lines(tmp_path / f"in/{number:04d}.jsonl", [str(number)])
    create(tmp_path / "s", tmp_path / "in")
    result = extend(tmp_path / "s", write_lines(tmp_path / "new.jsonl", ["x"]))
    assert result.returncode == 2 and "copied from 1,001 files" in result.stderr and "--id-column" in result.stderr


def test_a_killed_extension_is_completed_by_the_same_command(tmp_path):
    create(tmp_path / "s", write_lines(tmp_path / "in/a.jsonl", ["a", "b"]))
    source = write_lines(tmp_path / "in/b.jsonl", ["c", "d"])
    assert extend(tmp_path / "s", source, EXTRACT_KILL_AT="before-extension").returncode == -9
    assert load_manifest(str(tmp_path / "s")).num_streams == 2
    assert check(tmp_path / "s").returncode == 0
    written = bytes_of(tmp_path / "s")
    assert extend(tmp_path / "s", source).returncode == 0
    assert bytes_of(tmp_path / "s").keys() - written.keys() == {"extensions/0001.json"}
    assert load_manifest(str(tmp_path / "s")).num_streams == 4


def test_of_two_extensions_at_the_same_time_one_is_made_and_the_other_is_refused(tmp_path):
    streams = str(tmp_path / "s")
    fineweb.create(open_storage(streams), str(write_corpus(tmp_path / "in", "a", 4)), 1)
    sources = [str(write_corpus(tmp_path / name, name, 4)) for name in ("b", "c")]

    def with_rival(home, known):
        extend_streams(streams, ["rival"], lambda home, _: fineweb.create(home, sources[1], 1), False)
        return fineweb.create(home, sources[0], 1)

    with pytest.raises(TryAgain, match=r"extensions/0001.json was made by another command at the same time"):
        extend_streams(streams, ["first"], with_rival, False)
    assert [one[0] for one in ids_of(tmp_path / "s")] == ["a/0", "c/0"]
    result = extend(tmp_path / "s", Path(sources[0]), dataset="fineweb", num_streams=1)
    assert result.returncode == 0, result.stderr
    assert [one[0] for one in ids_of(tmp_path / "s")] == ["a/0", "c/0", "b/0"]
    assert check(tmp_path / "s").returncode == 0


@pytest.mark.parametrize("damage", ["gap", "not its manifest", "other streams before it", "no manifest"])
def test_damaged_extensions_are_named(tmp_path, damage):
    streams = tmp_path / "s"
    create(streams, write_lines(tmp_path / "in/a.jsonl", ["a", "b"]))
    for name in ("b", "c"):
        assert extend(streams, write_lines(tmp_path / f"in/{name}.jsonl", [name]), num_streams=1).returncode == 0
    first = streams / "extensions/0001.json"
    if damage == "gap":
        first.unlink()
    elif damage == "other streams before it":
        first.write_text(first.read_text().replace('"schema"', ' "schema"'))
    else:
        (manifest,) = streams.glob("streams-0001-*/manifest.json")
        manifest.write_text(manifest.read_text() + "\n") if damage == "not its manifest" else manifest.unlink()
    result = check(streams)
    name = "extensions/0002.json" if damage == "other streams before it" else "extensions/0001.json"
    assert result.returncode == 65 and name in result.stderr, result.stderr


@pytest.mark.slow
def test_a_run_takes_the_new_streams_up_and_leaves_the_old_ones(tmp_path):
    streams, output, corpus = tmp_path / "s", tmp_path / "run", tmp_path / "in"
    create(streams, write_corpus(corpus, "a", 8), dataset="fineweb")
    shutil.copytree(streams, tmp_path / "old")
    worker = workers.start(streams, output, 0)
    write_corpus(corpus, "b", 6, first=20)
    assert extend(streams, corpus, dataset="fineweb", num_streams=1).returncode == 0  # while it works
    worker.communicate(timeout=120)
    assert worker.returncode == 0
    assert workers.extract(streams, output, 1).returncode == 0  # an old stream; the new one is not taken up by it
    first = verify(output, "--json")
    assert first.returncode == 0 and json.loads(first.stdout)["num_ahead"] == 1
    assert verify(output, "--streams", tmp_path / "old").returncode == 0
    kept, reader = bytes_of(output), ActivationReader(str(output))
    rows = len(reader)

    assert workers.extract(streams, output, 2).returncode == 0
    write_corpus(corpus, "c", 4, first=40)
    assert extend(streams, corpus, dataset="fineweb").returncode == 0
    status = json.loads(python("extract_activations.py", "status", output, "--json").stdout)
    assert status["finished"] and len(status["streams"]) == 3  # the run has not taken up the second extension
    taken = workers.extract(streams, output, 0, "--stream", "any")
    assert taken.returncode == 0, taken.stderr
    found = verify(output, "--deep", "--tokens", "--expect", json.loads(first.stdout)["digest"])
    assert found.returncode == 0 and "5 streams" in found.stdout and "18 records" in found.stdout
    assert "extensions/0002.json: streams 3 to 4, 4 records" in found.stdout
    assert kept.items() <= bytes_of(output).items()
    assert len(ActivationReader(str(output))) > rows == len(reader)
    reader = ActivationReader(str(output))
    assert reader.text(reader.record("c/40")) == text_of(40, 20)
    old = workers.extract(tmp_path / "old", output, 1)  # a worker that knows only the first streams
    assert old.returncode == 0 and "complete" in old.stderr
    refused = verify(output, "--streams", tmp_path / "old")
    assert refused.returncode == 78 and "that extended" in refused.stderr
    (output / "extensions/0001.json").unlink()
    assert verify(output).returncode == 65


@pytest.mark.slow
def test_a_run_that_began_over_extended_streams_goes_on_after_the_next_extension(tmp_path):
    streams, output, corpus = tmp_path / "s", tmp_path / "run", tmp_path / "in"
    create(streams, write_corpus(corpus, "a", 4), dataset="fineweb")
    shutil.copytree(streams, tmp_path / "old")
    write_corpus(corpus, "b", 2, first=20)
    assert extend(streams, corpus, dataset="fineweb", num_streams=1).returncode == 0
    killed = workers.extract(streams, output, 2, EXTRACT_KILL_AT="after-commit:0")
    assert killed.returncode == -9
    write_corpus(corpus, "c", 2, first=40)
    assert extend(streams, corpus, dataset="fineweb", num_streams=1).returncode == 0
    assert workers.extract(streams, output, 0, "--stream", "any", "--idle-after", "0").returncode == 0
    assert verify(output, "--deep").returncode == 0
    assert [path.name for path in (output / "extensions").iterdir()] == ["0001.json"]
    other = workers.extract(tmp_path / "old", output, 0)  # these streams are not those of the run
    assert other.returncode == 78 and "manifest_digest" in other.stderr
    name = output / "extensions/0001.json"
    kept = name.read_text()
    name.write_text(f"{kept} ")  # as one with other streams
    found = verify(output)
    assert found.returncode == 65 and "00000000.json: follows another extension of the run" in found.stdout
    reader = ActivationReader(str(output))
    assert len(list(reader.refs(0))) == 1
    with pytest.raises(DamagedData, match="worker-00003/commits/00000000.json: follows another extension of the run"):
        list(reader.refs(3))
    name.write_text(kept.replace('"format": 4', '"format": 3'))
    assert verify(output).returncode == 65


def test_packed_documents_are_extended_without_an_id_column(tmp_path):
    """Their ids are ROW/PART, and no new row may be called so."""
    for name, rows in (("a", [[5, 0], [6, 0, 7, 0]]), ("b", [[8, 0], [9, 0, 9, 9, 0]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    create(tmp_path / "streams", tmp_path / "a.jsonl", "--separator", 0, dataset="tokens")
    result = extend(tmp_path / "streams", tmp_path / "b.jsonl", "--separator", 0, dataset="tokens")
    assert result.returncode == 0, result.stderr
    assert sum(ids_of(tmp_path / "streams"), []) == ["0", "1/0", "1/1", "+1/0", "+1/1/0", "+1/1/1"]
