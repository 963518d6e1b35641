"""Conditions on columns: tables, rows and footers agree with Python's own evaluation; what is no condition is refused."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.streams.row_filter import RowFilter, parse_part, parse_sample
from extraction.streams.where_conditions import Condition

rows = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.none() | st.integers(-3, 3),
            "x": st.none() | st.sampled_from([-1.0, 0.5, 2.0, float("nan")]),
            "s": st.none() | st.text("ab", max_size=2),
            "b": st.none() | st.booleans(),
        }
    ),
    max_size=8,
)
orders = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
leaves = st.one_of(
    st.builds("n {} {}".format, orders, st.integers(-3, 3)),
    st.builds("{} {} x".format, st.sampled_from([-1, 0.5, 3]), orders),
    st.builds("s {} {!r}".format, orders, st.text("ab", max_size=2)),
    st.sampled_from(["n in (1, 2)", "s not in ('a', 'b')", "'a' in s", "b == True", "n is None", "s is not None",
                     "-1 < n <= 2", "len(s) > 1"]),
)  # fmt: skip
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=6,
)
SCHEMA = pa.schema([("n", pa.int64()), ("x", pa.float64()), ("s", pa.string()), ("b", pa.bool_())])


def sql(condition, row):
    """The same by another path: the condition with its parts replaced by calls, on three truth values as numbers."""
    import ast

    def value(node):
        if isinstance(node, ast.BoolOp):
            parts = [value(part) for part in node.values]
            return min(parts) if isinstance(node.op, ast.And) else max(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return 1 - value(node.operand)
        text = ast.unparse(node)
        if " is " in text:
            return float(eval(text, {}, row))
        if any(row[name.id] is None for name in ast.walk(node) if isinstance(name, ast.Name) and name.id != "len"):
            return 0.5
        return float(eval(text, {"len": len}, row))

    return value(ast.parse(condition, mode="eval").body) == 1


@given(conditions, rows)
def test_tables_rows_and_bounds_agree_with_sql(text, some):
    condition = Condition(text)
    expected = [sql(text, row) for row in some]
    assert [condition.holds(row) for row in some] == expected
    table = pa.Table.from_pylist(some, schema=SCHEMA)
    assert condition.mask(table).to_pylist() == expected
    sink = io.BytesIO()
    pq.write_table(table, sink)
    metadata = pq.read_metadata(io.BytesIO(sink.getvalue()))
    if metadata.num_row_groups:
        decided = RowFilter(where=condition).by_statistics(metadata.row_group(0))
        assert decided is None or expected == [decided] * len(some)


def test_bounds_decide_where_they_can():
    sink = io.BytesIO()
    pq.write_table(pa.table({"n": range(10), "s": ["b"] * 10}), sink)
    group = pq.read_metadata(io.BytesIO(sink.getvalue())).row_group(0)
    for text, decided in {"n >= 0": True, "n > 9": False, "n > 4": None, "not n > 9": True, "s == 'b'": True,
                          "s in ('c', 'd') or n < 0": False, "s != 'b' and n > 4": False, "len(s) > 3": None}.items():  # fmt: skip
        assert RowFilter(where=Condition(text)).by_statistics(group) is decided, text


@pytest.mark.parametrize(
    "text",
    ["", "score", "score >=", "f(x) > 1", "a > b", "1 < 2", "x in ()", "__import__('os') == 1", "x == None", "x > 1 if y else z",
     "x is 3", "3 in x", "x[0] > 1", "lambda: 1"],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_an_example(text):
    with pytest.raises(InvalidRequest, match="--where .*; give comparisons such as"):
        Condition(text)


def test_fields_of_nested_columns():
    condition = Condition("meta.score > 1 and meta.lang.name == 'en'")
    assert condition.columns == ("meta",)
    some = [
        {"meta": {"score": 2, "lang": {"name": "en"}}},
        {"meta": {"score": 0, "lang": {"name": "en"}}},
        {"meta": None},
    ]
    assert (
        condition.mask(pa.Table.from_pylist(some)).to_pylist()
        == [condition.holds(row) for row in some]
        == [True, False, False]
    )


@pytest.mark.parametrize(
    "text, row", [("n > 1", {"n": "a"}), ("n == 'a'", {"n": 1}), ("'a' in n", {"n": 5}), ("n == 1", {"n": True})]
)
def test_a_column_of_another_type_is_refused(text, row):
    with pytest.raises(DamagedData, match="cannot be applied"):
        Condition(text).holds(row)
    with pytest.raises(InvalidRequest, match="cannot be applied, n is"):
        Condition(text).mask(pa.Table.from_pylist([row]))


def test_a_part_and_its_rest_share_no_id_and_have_their_sizes():
    train, test, sample = parse_part("0.9:train"), parse_part("0.9:test"), parse_sample(0.25)
    ids = [f"id {n}" for n in range(4000)]
    assert all(train.has(one) != test.has(one) for one in ids)
    assert 3500 < sum(map(train.has, ids)) < 3700
    assert 900 < sum(map(sample.has, ids)) < 1100
    both = sum(train.has(one) and sample.has(one) for one in ids)  # independent of each other
    assert 800 < both < 1000


@pytest.mark.parametrize("text", ["0.9", "0.9:dev", "train", "1.5:train", "0:train", "nan:train"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(InvalidRequest, match=f"--part {text}: give a fraction and train or test"):
        parse_part(text)
