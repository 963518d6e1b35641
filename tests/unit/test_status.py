"""`status` derives every state from the objects in the output and the store's clock alone."""

import io
import json
import os
import platform
import re
import time
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

import checkpoint
from extract_activations import cli
from extraction.batching.token_selection import Selection, Selector
from extraction.core.amounts import format_bytes, format_seconds
from extraction.core.errors import DamagedData, Fenced
from extraction.core.google_machine import zone
from extraction.format.commit import parse_commit
from extraction.format.stream_state import BEGIN, StreamState, note_name
from extraction.storage import open_storage
from extraction.tools.status import _mean_rate, _rate_now, read_status, watch
from extraction.tools.status_table import table
from extraction.worker.attempts import new_attempt, note_begin, note_failure
from tests.helpers import fake_gcs
from tests.helpers.fake_metadata import FakeMetadata
from tests.helpers.runs import FINGERPRINT, chain_of, extract, make_run
from tests.helpers.workers import python

STREAMS = [[8] * 30, [5] * 20, [9] * 12, [4], [4], [4], [4]]


def make_fleet(storage):
    """A stream in each state: running, finished after two preemptions, failed, fenced, stuck, starting, waiting."""
    make_run(storage, STREAMS[:1], stop_after=5)
    for stop_after in (1, 2, None):
        extract(checkpoint.CommitChain.load(storage, 1, FINGERPRINT), STREAMS[1], stop_after)
    extract(checkpoint.CommitChain.load(storage, 2, FINGERPRINT), STREAMS[2], stop_after=2)
    for number, error in ((2, DamagedData("a bad file")), (3, Fenced("another has it"))):
        with pytest.raises(type(error)), note_failure(storage, number, checkpoint.Attempt()):
            raise error
    extract(checkpoint.CommitChain.load(storage, 4, FINGERPRINT), [4, 9, 9, 9], stop_after=1)
    note_begin(storage, 5, checkpoint.Attempt())
    describe_streams(storage, *map(len, STREAMS))


def describe_streams(storage, *num_records):
    """Say in `run.json` how many records each stream has, as a worker does."""
    run = replace(checkpoint.read_run(storage), records_per_stream=num_records)
    storage.replace("run.json", run.to_bytes())


@pytest.fixture
def output(tmp_path):
    make_fleet(open_storage(str(tmp_path / "run")))
    for path in (tmp_path / "run/worker-00004").rglob("*.json"):
        os.utime(path, times=(time.time() - 4000,) * 2)
    return str(tmp_path / "run")


def test_every_state_is_told(output):
    found = read_status(output)
    assert [stream.state for stream in found.streams] == [
        "running",
        "finished",
        "failed",
        "fenced",
        "stuck",
        "starting",
        "waiting",
    ]
    assert found.streams[2].message == "a bad file"
    assert found.streams[4].message == "nothing for 1 h 6 min"
    assert (found.finished, found.exit_code) == (False, 3)
    assert [stream.stream for stream in found.streams if stream.needs_person] == [2, 3, 4]


def test_where_a_part_is_stored_pace_is_of_all_tokens(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    make_run(open_storage(str(whole)), STREAMS[:1])
    make_run(open_storage(str(part)), STREAMS[:1], selector=Selector(Selection.parse("last")))
    ours, theirs = (read_status(str(path)).streams[0] for path in (part, whole))
    assert (ours.tokens, ours.rows) == (240, 30) and (theirs.tokens, theirs.rows) == (240, 240)
    assert ours.bytes < theirs.bytes
    last = parse_commit(open_storage(str(part)).read("worker-00000/commits/00000014.json"), "it")
    fast = StreamState(0, last, 100.0, (100.0, 114.0))
    assert _mean_rate(fast) == pytest.approx(240 * 14 / 15 / 14)


def test_numbers_are_those_of_the_last_commit(output):
    running, finished = read_status(output).streams[:2]
    assert (running.records, running.tokens, running.batches, running.num_records) == (10, 80, 5, 30)
    assert (finished.records, finished.tokens, finished.num_records) == (20, 100, 20)
    assert (running.preemptions, finished.preemptions) == (0, 2)
    assert running.bytes == sum(p.stat().st_size for p in (Path(output) / "worker-00000/batches").iterdir())


def test_rates_and_the_time_left_follow_from_the_times_of_the_commits(output):
    begin = time.time() - 100
    for number, path in enumerate(sorted((Path(output) / "worker-00000/commits").iterdir())):
        os.utime(path, times=(begin + 20 * number,) * 2)
    running = read_status(output).streams[0]
    assert running.age == pytest.approx(20, abs=5)
    assert running.rate_mean == pytest.approx(16 / 20, rel=0.01)  # 16 tokens in a batch, a batch in 20 s
    assert running.rate_now == pytest.approx(64 / 100, rel=0.1)  # four batches since the first, 100 s ago
    assert running.seconds_left == pytest.approx(20 * 8 / running.rate_now)


def begin_attempts(storage, stream, *ages):
    """Notes of attempts that began so many seconds ago."""
    for age in ages:
        attempt = checkpoint.Attempt()
        note_begin(storage, stream, attempt)
        path = Path(storage.location) / note_name(stream, attempt.id, BEGIN)
        os.utime(path, times=(time.time() - age,) * 2)


@pytest.mark.parametrize(
    "ages, state, message",
    [
        ((50, 40, 30, 5), "crashing", "3 attempts died without a commit; see the logs of the last one"),
        ((40, 30, 5), "starting", ""),
        ((40.5, 40.4, 40.3, 40.2, 5.1, 5.0), "starting", ""),  # workers that chose the stream at once
    ],
)
def test_attempts_that_die_before_they_commit_are_a_crash_loop(tmp_path, ages, state, message):
    storage = open_storage(str(tmp_path))
    make_run(storage, STREAMS[:1], stop_after=0)
    begin_attempts(storage, 0, *ages)
    describe_streams(storage, len(STREAMS[0]))
    found = read_status(str(tmp_path))
    assert (found.streams[0].state, found.streams[0].message) == (state, message)
    assert found.exit_code == (3 if message else 75)
    extract(checkpoint.CommitChain.load(storage, 0, FINGERPRINT), STREAMS[0], stop_after=1)
    assert read_status(str(tmp_path)).streams[0].state == "running"


@pytest.mark.parametrize("silent, state, code", [(80, "running", 75), (200, "stuck", 75), (1000, "stuck", 3)])
def test_a_killed_worker_is_noticed_within_a_few_batch_times(tmp_path, silent, state, code):
    """A batch in 20 s: after five of them without a commit. A person is called after --stuck-after."""
    storage = open_storage(str(tmp_path))
    make_run(storage, STREAMS[:1], stop_after=6)
    for number, path in enumerate(sorted((tmp_path / "worker-00000/commits").iterdir())):
        os.utime(path, times=(time.time() - silent - 20 * (5 - number),) * 2)
    found = read_status(str(tmp_path))
    assert (found.streams[0].state, found.exit_code) == (state, code)
    if state == "stuck":
        begin_attempts(storage, 0, silent - 130)  # the next attempt loads and compiles
        assert read_status(str(tmp_path)).streams[0].state == "running"


def test_a_stream_that_is_slower_than_a_third_of_the_median_says_so(tmp_path):
    make_run(open_storage(str(tmp_path)), [[8] * 30] * 4, stop_after=8)
    for stream, seconds in enumerate((4, 5, 20, 5)):
        for number, path in enumerate(sorted((tmp_path / f"worker-{stream:05d}/commits").iterdir())):
            os.utime(path, times=(time.time() - seconds * (7 - number),) * 2)
    notes = [stream.message for stream in read_status(str(tmp_path)).streams]
    assert [bool(note) for note in notes] == [False, False, True, False]
    assert re.fullmatch(r"slow on .+: 1 tokens/s, the median is 3", notes[2])


DEVICE = "TPU v5 lite, mesh data=2,model=4"
HOUR = 3600.0


def put_last_commit(storage, stream, **changes):
    """Let the last commit of a stream say something else."""
    name = max(info.name for info in storage.list(f"worker-{stream:05d}/commits/"))
    storage.replace(name, replace(parse_commit(storage.read(name), name), **changes).to_bytes())


def test_cost_preemptions_and_rates_are_those_of_the_chips(tmp_path):
    """Two streams of 30 records, 8 tokens each. One has done 10 in 2 hours on 8 chips, the other 20 in 1 hour on one."""
    storage = open_storage(str(tmp_path))
    make_run(storage, [[8] * 30] * 2, stop_after=5)
    extract(chain_of(storage, 1), [8] * 30, stop_after=5)
    describe_streams(storage, 30, 30)
    for stream, device, hours, attempts in ((0, DEVICE, 2, 4), (1, "cpu 1234", 1, 1)):
        totals = chain_of(storage, stream).totals
        seconds = {"step": 0.9 * hours * HOUR, "pack": 0.1 * hours * HOUR, "upload": 7 * HOUR}  # it runs beside them
        put_last_commit(
            storage, stream, versions={"device": device}, totals=replace(totals, seconds=seconds, attempts=attempts)
        )
    batch = storage.list("worker-00000/commits/")
    hint = {"batch": len(list(batch)) - 1, "begun": time.time() - 100, "mfu": 0.4321}
    storage.replace("worker-00000/progress.json", json.dumps(hint).encode())
    found = read_status(str(tmp_path), price=1.5)
    first, second = found.streams
    assert (first.device, first.chips, first.mfu) == ("TPU v5 lite", 8, 0.4321)
    assert (second.device, second.chips, second.mfu) == ("cpu 1234", None, None)
    assert found.share == (10 + 20) / 60
    assert found.total("chip_hours") == pytest.approx(8 * 2 + 1 * 1)
    assert found.chip_hours_left == pytest.approx(17)  # half of the records are left
    assert found.preemptions_per_hour == pytest.approx(3 / 3)  # in three hours of work
    assert found.rate_per_chip == pytest.approx(first.rate_now / 8)
    shown = found.to_json()
    assert (shown["chip_hours"], shown["price"]) == (pytest.approx(17), 1.5)
    console = Console(width=280, file=io.StringIO())
    console.print(table(found, 40, 280))
    text = console.file.getvalue()
    assert "8 x TPU v5 lite" in text and "43.2%" in text
    assert (
        "1.00 preemptions in an hour of work; 17.00 chip-hours so far, 17.00 to come; cost 25.50 so far, 25.50" in text
    )


def test_the_host_of_a_google_machine_has_its_zone(monkeypatch):
    with FakeMetadata() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.host)
        for failures, expected in ([], f"{platform.node()} in us-central1-a"), ([503], platform.node()):
            server.failures = failures
            zone.cache_clear()
            assert new_attempt().host == expected
    zone.cache_clear()


def test_causes_that_streams_share_are_said_once(tmp_path):
    storage = open_storage(str(tmp_path))
    make_run(storage, [[4]], stop_after=0)
    describe_streams(storage, *[1] * 8)
    for number in (1, 2, 3, 6, 7):
        message = "no space" if number == 7 else f"worker-{number:05d}/batches/00000000.safetensors: 12{number} bytes"
        with pytest.raises(DamagedData), note_failure(storage, number, checkpoint.Attempt()):
            raise DamagedData(message)
    found = read_status(str(tmp_path))
    first = "worker-00001/batches/00000000.safetensors: 121 bytes"
    assert found.causes == {first: (1, 2, 3, 6), "no space": (7,)}
    assert found.to_json()["causes"][0] == {"message": first, "streams": (1, 2, 3, 6)}
    for width, alone in ((280, False), (100, True)):
        console = Console(width=width, file=io.StringIO())
        console.print(table(found, 40, width))
        text = " ".join(console.file.getvalue().split())
        assert f"1-3, 6: {first} (and similar)" in text and ("7: no space" in text) == alone


def test_the_local_clock_is_not_asked(gcs, monkeypatch):
    """The store's clock is a day ahead of ours."""
    ahead = SimpleNamespace(**vars(time) | {"time": lambda: time.time() + 86_400})
    monkeypatch.setattr(fake_gcs, "time", ahead)
    date = lambda self, timestamp=None: formatdate(ahead.time(), usegmt=True)  # noqa: E731
    monkeypatch.setattr(fake_gcs.Handler, "date_time_string", date)
    make_fleet(open_storage("gs://bucket/run"))
    found = read_status("gs://bucket/run")
    assert [stream.state for stream in found.streams[:4]] == ["running", "finished", "failed", "fenced"]
    assert 0 <= found.streams[0].age < 60
    assert abs(found.time - time.time() - 86_400) < 60


@pytest.mark.slow
@pytest.mark.parametrize("length", [8 * 120, 8 * 4])
def test_a_stream_whose_first_commit_is_missing_hides_no_other(tmp_path, length):
    make_run(open_storage(str(tmp_path)), [[length], [8]])
    (tmp_path / "worker-00000/commits/00000000.json").unlink()
    bad, good = read_status(str(tmp_path)).streams
    assert (bad.state, good.state) == ("failed", "finished")
    assert "commits/00000000.json is not there, but later commits are: restore it" in bad.message


def test_a_commit_that_cannot_be_read_hides_no_other_stream(tmp_path):
    make_run(open_storage(str(tmp_path)), [[8 * 120], [8]])
    (tmp_path / "worker-00000/commits/00000019.json").unlink()
    os.mkfifo(tmp_path / "worker-00000/commits/00000019.json")
    bad, good = read_status(str(tmp_path)).streams
    assert (bad.state, good.state) == ("failed", "finished")
    assert "this is a pipe or a device" in bad.message


def test_requests_do_not_grow_with_the_chains(gcs):
    storage = open_storage("gs://bucket/run")
    make_run(storage, [[8] * 10, [8] * 90, [8] * 500])
    for number, batch, begun in ((0, 3, 0.0), (1, 44, 1.5)):
        storage.replace(f"worker-{number:05d}/progress.json", json.dumps({"batch": batch, "begun": begun}).encode())
    gcs.history.clear()
    read_status("gs://bucket/run")
    of_stream = [[what.split()[0] for _, _, what, _ in gcs.history if f"worker-0000{n}" in what] for n in range(3)]
    assert [sorted(operations) for operations in of_stream] == [
        ["get", "list", "read", "read"],
        ["get", "list", "read", "read"],
        ["get"] * 8 + ["list", "read", "read"],
    ]


@pytest.mark.slow
def test_the_pace_of_now_is_that_of_the_commits_that_were_looked_at(tmp_path):
    """250 batches in 250 s, of which only the last ones are listed."""
    make_run(open_storage(str(tmp_path)), [[8] * 600], stop_after=250)
    begin = time.time() - 250
    for number, path in enumerate(sorted((tmp_path / "worker-00000/commits").iterdir())):
        os.utime(path, times=(begin + number,) * 2)
    (tmp_path / "worker-00000/progress.json").write_text(json.dumps({"batch": 240, "begun": begin}))
    (stream,) = read_status(str(tmp_path)).streams
    assert stream.rate_now == pytest.approx(16, rel=0.15)
    assert stream.rate_mean == pytest.approx(16, rel=0.01)


def test_commits_within_the_second_that_the_clock_tells_have_a_pace_too():
    last = SimpleNamespace(totals=SimpleNamespace(tokens=1000))
    standing = SimpleNamespace(commit_times=(99.9, 100.2, 100.7), last=last, num_batches=10)
    assert _rate_now(standing, now=100.0) == pytest.approx(100 * 2 / 0.8)


def test_a_finished_run_is_finished_when_every_stream_is(tmp_path):
    storage = open_storage(str(tmp_path))
    make_run(storage, [[8] * 3, [5]])
    assert not read_status(str(tmp_path)).finished  # how many streams there are is not known
    describe_streams(storage, 3, 1)
    found = read_status(str(tmp_path))
    assert (found.finished, found.exit_code, found.seconds_left) == (True, 0, 0.0)


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(output):
    result = python("extract_activations.py", "status", output)
    assert result.returncode == 3, result.stderr
    assert "a bad file" in result.stdout
    text = " ".join(result.stdout.split())
    assert "1 failed, 1 fenced, 1 stuck, 1 running, 1 starting, 1 waiting, 1 finished" in text
    result = python("extract_activations.py", "status", output, "--json")
    found = json.loads(result.stdout)
    assert (result.returncode, found["tokens"], len(found["streams"])) == (3, read_status(output).total("tokens"), 7)
    result = python("extract_activations.py", "status", output + "-not-there")
    assert result.returncode == 2 and "holds no run: there is no run.json" in result.stderr


@pytest.mark.parametrize("width", [60, 80, 100, 140, 280])
def test_a_narrow_terminal_has_fewer_columns_and_whole_numbers(output, width):
    found = read_status(output)
    large = {"records": 98_765_432, "num_records": 123_456_789, "tokens": 98_765_432_109, "rate_now": 1_234_567.0}
    found = replace(found, streams=tuple(replace(stream, **large) for stream in found.streams))
    console = Console(width=width, file=io.StringIO())
    console.print(table(found, 40, width))
    text = console.file.getvalue()
    assert "…" not in text and text.count("1,234,567") == 7 and "80.0%" in text and "a bad file" in text
    assert ("98,765,432,109" in text, "time goes to" in text) == (width >= 80, width >= 280)


def test_every_look_is_shown_until_the_run_is_finished(tmp_path):
    storage, seen = open_storage(str(tmp_path)), []
    make_run(storage, STREAMS[:1], stop_after=2)
    describe_streams(storage, len(STREAMS[0]))

    def show(status):
        seen.append(status.finished)
        assert len(seen) < 4
        if len(seen) == 2:
            extract(chain_of(storage, 0), STREAMS[0], None)

    assert watch(partial(read_status, str(tmp_path)), 0.0, show).finished
    assert seen == [False, False, True]
    for arguments, told in ((["--json"], '"finished": true'), ([], "time goes to")):
        result = CliRunner().invoke(cli, ["status", str(tmp_path), "--watch", *arguments])
        assert (result.exit_code, result.stdout.count(told)) == (0, 1), result.output
        assert bool(arguments) == (result.stdout.count("\n") == 1)


def test_those_in_trouble_come_first_and_the_rest_is_counted(output):
    shown = table(read_status(output), most_rows=3)
    cells = [list(column.cells) for column in shown.columns]
    assert cells[0] == ["2", "3", "4", "...", "all"]
    assert cells[1][3] == "and 4 more"


@pytest.mark.parametrize(
    "seconds, text",
    [
        (None, ""),
        (4, "4 s"),
        (64, "1 min 4 s"),
        (3700, "1 h 1 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_times_are_written_for_people(seconds, text):
    assert format_seconds(seconds) == text


def test_sizes_are_written_for_people():
    assert [format_bytes(n) for n in (5, 2048, 5 << 40)] == ["5 B", "2.0 KiB", "5.0 TiB"]
