"""What `benchmarks/kept_bytes.py` takes for a difference."""

import pytest

from benchmarks.kept_bytes import differences

OLD = {"one": {"said": {"verify": ["exit 0", "proven"]}, "stored": {"run.json": {"a": {"b": 1, "c": 2}}}}}


def kept(lines=("exit 0", "proven"), **stored):
    return {"one": {"said": {"verify": list(lines)}, "stored": stored or OLD["one"]["stored"]}}


@pytest.mark.parametrize(
    "new, lines",
    [
        (kept(), []),
        (kept(("exit 0", "damaged")), ["one: said: verify: line 1: proven -> damaged"]),
        (kept(("exit 0",)), ["one: said: verify: line 1: proven -> nothing"]),
        (kept(**{"run.json": {"a": {"b": 3, "c": 2}}}), ["one: stored: run.json: a: b: 1 -> 3"]),
        (kept(**{"run.json": {"a": {"b": 1}}}), ['one: stored: run.json: a: c: 2 -> "nothing"']),
        (
            kept(**{"run.json": {"a": {"c": 2, "b": 1}}}),
            ["one: stored: run.json: a: b: the same values in another order"],
        ),
        (kept(**OLD["one"]["stored"], more={}), ['one: stored: more: "nothing" -> {}']),
    ],
)
def test_each_difference_is_a_line(new, lines):
    assert list(differences(OLD, new)) == lines
