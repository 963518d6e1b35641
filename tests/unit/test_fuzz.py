"""For any bytes in a store: each parser gives a value or a domain error, in bounded memory, and the audit an answer.

Inputs are random bytes, valid files with bytes changed, and valid JSON with values replaced by what JSON can hold at
its worst. Memory: at most `PER_BYTE` bytes for each byte of input, and `BASE` besides. The inputs of a run of the suite
are always the same; FUZZ_EXAMPLES=100000 makes a long run over further ones.
"""

import contextlib
import json
import os
import shutil
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extraction.audit.audited_run import AuditedRun
from extraction.audit.check_batch_file import check_contents
from extraction.audit.verify import audit_run
from extraction.batching.token_selection import Selection, Selector
from extraction.core.errors import ExtractionError
from extraction.format import run_config
from extraction.format.commit import parse_commit
from extraction.format.records import Cursor
from extraction.format.safetensors import decode, decode_header, entries_of
from extraction.format.stream_state import parse_ending, parse_progress
from extraction.storage import crc32c_base64
from extraction.streams.manifest import parse_manifest
from tests.helpers.stream_runs import COMMIT, DATA, batches_of, configure, describe, shard_of

pytestmark = pytest.mark.slow

PER_BYTE, BASE = 64, 1 << 20
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
SLOW = settings(FUZZ, max_examples=EXAMPLES // 10 or 60)

# As JSON text, since some of it no JSON writer would write.
NASTY = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "1.0",
    "-0.0",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "9" * 19,
    "9" * 400,
    "1" + "0" * 5000,
    str(2**63),
    str(2**31),
    "1e400",
    "[]",
    "{}",
    "[[]]",
    '[""]',
    '""',
    '"ä"',
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[2J"',
    '"../../x"',
    '"/etc/passwd"',
    '"a\\\\b"',
    '"gs://other/x"',
    '"\\u202e"',
    '{"a": 1, "a": 2}',
    "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    "[1, 2, 3, 4]",
    '"float32"',
    '"I64"',
    "[0, 0]",
    "[0, 18446744073709551616]",
    "[1, 0, 9223372036854775807]",
    str([1] * 100),
    '{"record": 1, "token_offset": 0}',
    '"x" ',
]


@pytest.fixture(scope="module")
def valid(run_streams, finished_run):
    """A valid file for each parser."""
    with open(f"{run_streams}/manifest.json", "rb") as file:
        manifest = file.read()
    ending = {"format": 4, "state": "failed", "message": "text", "attempt": "0a", "host": "machine"}
    return {
        "commit": finished_run[COMMIT],
        "run": finished_run["run.json"],
        "data object": finished_run[DATA],
        "manifest": manifest,
        "progress": b'{"batch": 120, "records": 4, "host": "machine"}',
        "ending": json.dumps(ending).encode(),
    }


def parse_run(data):
    return AuditedRun.of(run_config.parse_run(data, "name"), "name")


def parse_header(data):
    start, header = decode_header(data, "name")
    return entries_of(header, len(data) - start, "name")


PARSERS = [
    ("commit", lambda data: parse_commit(data, "name")),
    ("run", parse_run),
    ("manifest", lambda data: parse_manifest(data, "name")),
    ("data object", lambda data: decode(data, "name")),
    ("data object", parse_header),
    ("progress", parse_progress),
    ("ending", parse_ending),
]
each_parser = pytest.mark.parametrize("kind, parse", PARSERS, ids=lambda value: value if isinstance(value, str) else "")


def assert_answers(parse, data):
    """The parsed value, or None for a domain error that names the file; memory within the bound."""
    parse_quietly = contextlib.suppress(ExtractionError)
    with parse_quietly:  # once without, so that caches of libraries do not count
        parse(data)
    tracemalloc.start()
    try:
        value = parse(data)
    except ExtractionError as error:
        value = None
        assert "name" in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= BASE + PER_BYTE * len(data), f"{peak} bytes for an input of {len(data)}"
    return value


@st.composite
def changed_bytes(draw, data):
    """Valid bytes with a few places changed, cut out or put in, and perhaps an end missing."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["set", "flip", "cut", "put", "repeat", "end"]))
        if what == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif what == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif what == "put":
            data[at:at] = draw(st.binary(max_size=20))
        elif what == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif what == "end":
            del data[at:]
    return bytes(data)


def places_in(value, path=()):
    """Every place in a JSON value, as a path of keys and indices."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


@st.composite
def changed_json(draw, text):
    """A JSON text in which values are replaced by nasty ones, keys left out and keys added."""
    value, marks = json.loads(text), {}
    for number in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places_in(value))))
        mark = f"mark-{number}"
        marks[f'"{mark}"'] = draw(st.sampled_from(NASTY))
        if not path:
            value = mark
            continue
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if what == "remove":
            del inner[path[-1]]
        elif what == "add" and isinstance(inner, dict):
            inner[draw(st.sampled_from(["x", "", "__metadata__", "format", "\u001b"]))] = mark
        else:
            inner[path[-1]] = mark
    text = json.dumps(value)
    for mark, nasty in marks.items():
        text = text.replace(mark, nasty)
    return text.encode()


def header_of(data):
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def with_header(data, header):
    return len(header).to_bytes(8, "little") + header + data[8 + len(header_of(data)) :]


@each_parser
@FUZZ
@given(data=st.binary(max_size=400))
def test_random_bytes(kind, parse, data):
    assert_answers(parse, data)


@each_parser
@FUZZ
@given(choice=st.data())
def test_valid_files_with_changed_bytes(valid, kind, parse, choice):
    assert_answers(parse, choice.draw(changed_bytes(valid[kind])))


def put_at(text, path, mark):
    value = json.loads(text)
    if not path:
        return json.dumps(mark)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = mark
    return json.dumps(value)


@each_parser
def test_each_assert_answers_a_valid_file_replaced_by_each_nasty_one(valid, kind, parse):
    """One at a time, all of them."""
    data = valid[kind]
    text = header_of(data) if kind == "data object" else data
    for path in places_in(json.loads(text)):
        with_mark = put_at(text, path, "mark")
        for nasty in NASTY:
            changed = with_mark.replace('"mark"', nasty).encode()
            assert_answers(parse, with_header(data, changed) if kind == "data object" else changed)


@each_parser
@FUZZ
@given(choice=st.data())
def test_valid_files_with_changed_values(valid, kind, parse, choice):
    data = valid[kind]
    if kind == "data object":
        assert_answers(parse, with_header(data, choice.draw(changed_json(header_of(data)))))
    else:
        assert_answers(parse, choice.draw(changed_json(data)))


@pytest.mark.parametrize("kind, parse", [parser for parser in PARSERS if parser[0] not in ("progress", "ending")])
def test_the_valid_files_are_valid(valid, kind, parse):
    assert assert_answers(parse, valid[kind]) is not None


# ---------------------------------------------------------------------------------------- what reads parsed values


@pytest.fixture(scope="module", params=["all", "mean", "-12,-3,2"])
def placed(request, run_streams):
    """A data object, how many rows it has, and the facts of its run."""
    config = configure(run_streams, positions=request.param)
    run = AuditedRun.of(describe(config, run_streams), "run.json")
    selector = Selector(Selection.parse(request.param))
    batch = batches_of(run_streams, 0, Cursor(2, 8), selector=selector)[0]
    return bytes(shard_of(batch, 0, 1).data), batch.num_rows, run


@SLOW
@given(choice=st.data())
def test_contents_that_were_committed_so_are_checked_without_a_crash(placed, finished_run, choice):
    """Size and crc32c fit, as of a worker that went wrong: what is inside is named or right."""
    data, num_rows, facts = placed
    headers = changed_json(header_of(data)).map(lambda header: with_header(data, header))
    changed = choice.draw(st.one_of(changed_bytes(data), headers))
    commit = json.loads(finished_run[COMMIT])
    commit["data"] |= {"size": len(changed), "crc32c": crc32c_base64(changed)}
    commit["num_rows"] = num_rows
    contents = check_contents(changed, parse_commit(json.dumps(commit).encode(), COMMIT), facts)
    assert changed != data or not contents.problems
    assert all(problem.startswith(f"{DATA}: ") for problem in contents.problems)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, finished_run):
    """A finished run in a folder, to be changed and put right again."""
    folder = tmp_path_factory.mktemp("fuzzed")
    for name, data in finished_run.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def meaning(commit):
    """What a commit says, without what tells of its making."""
    value = json.loads(commit)
    keys = (
        "stream",
        "batch",
        "cursor_before",
        "cursor_after",
        "num_records",
        "num_rows",
        "end_of_stream",
        "fingerprint",
        "record_ids_digest",
    )
    return [value[key] for key in keys] + [value["data"][key] for key in ("name", "size", "crc32c")]


@SLOW
@given(choice=st.data())
def test_a_run_with_any_object_changed_is_audited(folder, finished_run, choice):
    """The audit ends with a verdict or a domain error, its lines can be printed, and what it proves is so."""
    name = choice.draw(st.sampled_from([COMMIT, DATA, "run.json"]))
    data = finished_run[name]
    inner = changed_bytes(data) if name == DATA else st.one_of(changed_bytes(data), changed_json(data))
    changed = choice.draw(inner)
    (folder / name).write_bytes(changed)
    try:
        audit = audit_run(str(folder), deep=choice.draw(st.booleans()))
    except ExtractionError as error:
        assert name == "run.json", error
        return
    finally:
        (folder / name).write_bytes(data)
    assert all(line.isprintable() for line in audit.to_text().split("\n"))
    json.dumps(audit.to_json(), allow_nan=False).encode()
    if audit.verdict == "proven" and name == COMMIT:
        assert meaning(changed) == meaning(data)
    elif audit.verdict == "proven":
        assert changed == data or name == "run.json"


def test_names_that_would_steer_a_terminal_are_shown_plainly(tmp_path, finished_run, folder):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/worker-00000/commits/\x1b[2J\udcff\n.json").write_bytes(b"{}")
    text = audit_run(str(tmp_path / "run")).to_text()
    assert text.startswith("wrong: worker-00000/commits/\\x1b[2J\\udcff\\n.json: no commit has such a name")
