"""Strict JSON: what is refused, what is read, and the memory that large values take."""

import contextlib
import json
import tracemalloc

import pytest

from extraction.core.strict_json import MOST_NESTED, dumps, loads

PER_BYTE, BASE = 64, 1 << 20  # bytes: of memory for each byte of input, and besides


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "[" * 400_000,
        '{"a":' * 200_000,
        "[" + "[]," * 200_000 + "[]]",
        "[" + "{}," * 200_000 + "{}]",
        "[" + "0.5," * 200_000 + "1]",
        '{"a": [' + '"\\u00e4",' * 100_000 + '""]}',
        json.dumps({str(n): n for n in range(50_000)}),
        '"' + "\\ud83d\\ude00" * 50_000 + '"',
    ],
    ids=range(8),
)
def test_large_json_stays_within_the_bound(text):
    data, value = text.encode(), None
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        value = loads(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= BASE + PER_BYTE * len(data)
    assert value is None or value == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "a": 2}',
        b"NaN",
        b"[Infinity]",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b"\xff",
        b'"\xed\xa0\x80"',
        b"{",
        b"",
        "{}".encode("utf-16"),
        b"[" * 100_000 + b"]" * 100_000,
        b"1" * 5000,
    ],
)
def test_what_is_not_strict_json_is_refused(text):
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"😀"', '{"a": {"a": 1}}', "-1.5e3", '"\\u00e4"'])
def test_what_is_strict_json_is_read(text):
    assert loads(text.encode()) == json.loads(text)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": "\udce9"}, {"\udce9": 1}])
def test_what_could_not_be_read_is_not_written(value):
    with pytest.raises(ValueError):
        dumps(value)


@pytest.mark.parametrize("value", ["\N{GRINNING FACE}", {"b": [0.1, None], "a": "\\udce9"}, "\n"])
def test_what_is_written_is_read(value):
    data = dumps(value)
    assert loads(data) == value and data.endswith(b"\n") and data.count(b"\n") == 1


@pytest.mark.parametrize("open_, close", ["[]", ('{"a":', "}")])
def test_nesting_has_one_limit_on_every_python(open_, close):
    fits, deep = (f"{open_ * depth}0{close * depth}" for depth in (MOST_NESTED, MOST_NESTED + 1))
    assert loads(dumps(loads(fits.encode()))) == json.loads(fits)
    for act in (lambda: loads(deep.encode()), lambda: dumps(json.loads(deep))):
        with pytest.raises(ValueError, match="nested too deeply"):
            act()
