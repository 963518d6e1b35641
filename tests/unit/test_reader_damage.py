"""The reader refuses a batch file that is not the committed one, by its size and its header, before it reads rows."""

import json
import shutil
from pathlib import Path

import pytest

from extraction.core.errors import DamagedData
from extraction.read.reader import ActivationReader
from extraction.read.select import Select
from extraction.read.shuffle import ShuffledReader, ShuffleOptions
from extraction.storage import Storage, open_storage
from extraction.storage.local import LocalStorage
from tests.helpers.fake_hub import FakeHub
from tests.helpers.runs import WIDTHS, make_run
from tests.helpers.stream_runs import edited

pytestmark = pytest.mark.slow

HOOK, OTHER = WIDTHS
STREAMS = ([8] * 8, [8] * 8)
ONE, LAST = "worker-00000/batches/00000000.safetensors", "worker-00001/commits/00000003.json"
LAST_FILE = "worker-00001/batches/00000003.safetensors"


@pytest.fixture
def run(tmp_path):
    make_run(open_storage(str(tmp_path / "run")), STREAMS)
    return tmp_path / "run"


def shuffled(reader):
    return ShuffledReader(reader, HOOK, ShuffleOptions(batch_size=4, buffer=16))


READINGS = {
    "rows": lambda run: list(ActivationReader(run).rows(HOOK)),
    "records": lambda run: list(ActivationReader(run).records(OTHER)),
    "statistics": lambda run: ActivationReader(run).statistics(),
    "shuffled": lambda run: list(shuffled(ActivationReader(run))),
    "positions": lambda run: list(ActivationReader(run, Select(positions="every:2")).rows(HOOK)),
    "shuffled positions": lambda run: list(shuffled(ActivationReader(run, Select(positions="every:2")))),
}


@pytest.mark.parametrize("other", ["worker-00001/batches/00000000", "worker-00000/batches/00000003"])
@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
def test_another_batch_file_of_the_same_size_is_refused(run, read, other):
    assert read(str(run))
    assert (run / f"{other}.safetensors").stat().st_size == (run / ONE).stat().st_size
    shutil.copy(run / f"{other}.safetensors", run / ONE)
    with pytest.raises(DamagedData, match=rf"^{ONE}: its header says (stream '1'|batch '3'), not 0; restore it$"):
        read(str(run))


@pytest.mark.parametrize("change", [lambda data: data + b"junk", lambda data: data[:-1]])
@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
def test_a_file_of_another_size_is_refused(run, read, change):
    size = (run / ONE).stat().st_size
    (run / ONE).write_bytes(change((run / ONE).read_bytes()))
    with pytest.raises(DamagedData, match=rf"^{ONE}: \d+ bytes, but {size} were committed; restore it$"):
        read(str(run))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with FakeHub(tmp_path, datasets={"org/acts": tmp_path / "run"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "5")
        yield server


def num_reads(server):
    """How many requests were for bytes of the batch file `ONE`."""
    if isinstance(server, FakeHub):
        return sum(path.startswith("/stored/") and path.endswith(ONE) for path in server.asked)
    whats = [" ".join(map(str, entry)) for entry in server.history]
    return sum(ONE in what and "read" in what for what in whats)


@pytest.mark.parametrize("head", [1 << 20, 8192])
@pytest.mark.parametrize("kind, place", [
    ("gcs", "gs://bucket/run"), ("s3", "s3://bucket/run"), ("hub", "hf://datasets/org/acts"),
])  # fmt: skip
def test_a_longer_object_is_refused_with_the_first_request(run, kind, place, head, request, monkeypatch):
    """By the size that its answer says, whether it has all of the object or a part of it."""
    server = request.getfixturevalue(kind)
    monkeypatch.setattr("extraction.format.batch_file._HEAD", head)
    (run / ONE).write_bytes((run / ONE).read_bytes() + b"junk")
    if kind != "hub":
        for path in filter(Path.is_file, run.rglob("*")):
            open_storage(place).create(str(path.relative_to(run)), path.read_bytes())
    before = num_reads(server)
    with pytest.raises(DamagedData, match=rf"^{ONE}: \d+ bytes, but \d+ were committed; restore it$"):
        list(ActivationReader(place).rows(HOOK))
    assert num_reads(server) == before + 1
    assert len(list(ActivationReader(place).rows(HOOK, [1]))) == 4


def test_a_store_that_does_not_say_sizes_is_read(run, monkeypatch):
    monkeypatch.setattr(LocalStorage, "read_part", Storage.read_part)
    rows = [rows.tokens.tolist() for rows in ActivationReader(str(run)).rows(HOOK)]
    data = (run / ONE).read_bytes()
    (run / ONE).write_bytes(data + b"junk")
    assert [rows.tokens.tolist() for rows in ActivationReader(str(run)).rows(HOOK)] == rows
    (run / ONE).write_bytes(data[:-1])
    with pytest.raises(DamagedData, match="ends before byte"):
        list(ActivationReader(str(run)).rows(OTHER))


@pytest.mark.parametrize("old, new, message", [
    (b'"format":"4"', b'"format":"3"', "its header says format '3', not 4"),
    (b'"stream":"1"', b'"strean":"1"', "its header says stream None, not 1"),
    (b"<urn:1/7>", b"<urn:1/8>", "its record ids are not the committed ones"),
    (b'"shape":[2]', b'"shape":[1]', "its header does not describe its data"),
])  # fmt: skip
def test_a_header_that_was_edited_is_refused(run, old, new, message):
    data = (run / LAST_FILE).read_bytes()
    (run / LAST_FILE).write_bytes(data.replace(old, new, 1))
    with pytest.raises(DamagedData, match=f"^{LAST_FILE}: {message}"):
        list(ActivationReader(str(run)).rows(HOOK))


@pytest.mark.parametrize("change, message", [
    ({"num_records": 3}, r"record_index has the shape \[2\], 3 were committed"),
    ({"num_rows": 15}, r"tokens has the shape \[16\], 15 were committed"),
])  # fmt: skip
def test_a_file_of_another_number_of_rows_or_records_is_refused(run, change, message):
    (run / LAST).write_bytes(edited((run / LAST).read_bytes(), **change))
    with pytest.raises(DamagedData, match=f"^{LAST_FILE}: {message}; restore it$"):
        list(ActivationReader(str(run)).rows(HOOK))


@pytest.mark.parametrize("name", ["positions", OTHER])
def test_an_array_of_other_rows_than_the_others_is_refused(run, name):
    data = (run / LAST_FILE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    rows, *width = header[name]["shape"]
    header[name]["shape"] = [rows // 2, *(n * 2 for n in width)] if width else [rows // 2, 2]
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= size
    (run / LAST_FILE).write_bytes(data[:8] + text.ljust(size) + data[8 + size :])
    with pytest.raises(DamagedData, match=rf"^{LAST_FILE}: {name} has the shape \[8, \d+\], 16 were committed"):
        list(ActivationReader(str(run)).rows(HOOK))
