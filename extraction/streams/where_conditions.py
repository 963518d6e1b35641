"""Conditions on the columns of rows: `score >= 3 and language in ('en', 'de')`.

In: the text of `--where`: comparisons, `in`, `is None`, `and`, `or`, `not`, parentheses, `len(column)`, fields of a
nested column as `metadata.score`, `'part' in column` for strings. Out: a mask of an Arrow table, a verdict on a row of
Python values, or on the bounds in a footer. Guarantee: the three agree; a comparison with null is neither true nor
false, and a row is kept only if the whole is true. The text is parsed, never run. Cost: Arrow's passes over columns.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

from ..core.errors import DamagedData, InvalidRequest
from .columns import is_string

if TYPE_CHECKING:
    import pyarrow

ORDERS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("equal", operator.eq), ast.NotEq: ("not_equal", operator.ne),
    ast.Lt: ("less", operator.lt), ast.LtE: ("less_equal", operator.le),
    ast.Gt: ("greater", operator.gt), ast.GtE: ("greater_equal", operator.ge),
}  # fmt: skip
_MIRRORED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq}
Verdict = bool | None  # None: neither true nor false
Possible = frozenset[Verdict]
ANYTHING: Possible = frozenset({True, False, None})


@dataclass(frozen=True)
class Bounds:
    """The facts in a footer about a column of a row group: smallest and largest value, whether there may be nulls."""

    smallest: Any
    largest: Any
    has_nulls: bool


@dataclass(frozen=True)
class Condition:
    """A condition by its text. Raises InvalidRequest for a text that is none."""

    text: str

    def __post_init__(self) -> None:
        _ = self._root

    @cached_property
    def _root(self) -> "_Node":
        try:
            return _parsed(ast.parse(self.text.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, SyntaxError) else str(error)
            raise InvalidRequest(
                f"--where {self.text}: {what}; give comparisons such as \"score >= 3 and language in ('en', 'de')\""
            ) from error

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, without the names of fields in them."""
        return tuple(dict.fromkeys(self._root.columns()))

    def mask(self, table: "pyarrow.Table") -> "pyarrow.ChunkedArray":
        """Return a boolean for each row of a table. Raises InvalidRequest for a column of another type."""
        import pyarrow
        import pyarrow.compute

        compute: Any = pyarrow.compute
        try:
            found = compute.fill_null(self._root.mask(table, compute), False)
        except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, KeyError) as error:
            kinds = ", ".join(f"{name} is {table[name].type}" for name in self.columns if name in table.column_names)
            raise InvalidRequest(f"--where {self.text}: it cannot be applied, {kinds}: {error}") from error
        return pyarrow.chunked_array([found]) if isinstance(found, pyarrow.Array) else found

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether it is true of a row. Raises KeyError for a missing column, DamagedData for another type."""
        try:
            return self._root.verdict(row) is True
        except TypeError as error:
            raise DamagedData(f"--where {self.text}: it cannot be applied ({error})") from error

    def by_bounds(self, bounds_of: Callable[[str], Bounds | None]) -> bool | None:
        """Return True if it is true of all rows of a row group, False if of none, None if their values decide."""
        possible = self._root.possible(bounds_of)
        return True if possible == {True} else None if True in possible else False


class _Node:
    """A part of a condition."""

    def columns(self) -> Sequence[str]:
        raise NotImplementedError

    def mask(self, table: Any, compute: Any) -> Any:
        raise NotImplementedError

    def verdict(self, row: Mapping[str, Any]) -> Verdict:
        raise NotImplementedError

    def possible(self, bounds_of: Callable[[str], Bounds | None]) -> Possible:
        return ANYTHING


@dataclass(frozen=True)
class _Field:
    """A column, or a field in a nested one; or its length."""

    path: tuple[str, ...]
    is_length: bool = False

    def array(self, table: Any, compute: Any) -> Any:
        from pyarrow import types

        found = table[self.path[0]]
        found = compute.struct_field(found, list(self.path[1:])) if self.path[1:] else found
        found = found.cast(found.type.value_type) if types.is_dictionary(found.type) else found
        if not self.is_length:
            return found
        is_list = types.is_list(found.type) or types.is_large_list(found.type) or types.is_fixed_size_list(found.type)
        return compute.list_value_length(found) if is_list else compute.utf8_length(found)

    def value(self, row: Mapping[str, Any]) -> Any:
        found: Any = row[self.path[0]]
        for name in self.path[1:]:
            found = None if found is None else found[name]
        return len(found) if self.is_length and found is not None else found


@dataclass(frozen=True)
class _OfField(_Node):
    """A condition on one field."""

    field: _Field

    def columns(self) -> Sequence[str]:
        return self.field.path[:1]


@dataclass(frozen=True)
class _Compared(_OfField):
    """`field order constant`."""

    order: type
    constant: Any

    def mask(self, table: Any, compute: Any) -> Any:
        import pyarrow

        array, constant = self.field.array(table, compute), pyarrow.scalar(self.constant)
        kinds = {bool: "is_boolean", str: "is_string", float: "is_number"}
        if not _is_of(array.type, kinds[_kind(self.constant)]):
            raise pyarrow.ArrowInvalid(f"{'.'.join(self.field.path)} is compared with {self.constant!r}")
        return getattr(compute, ORDERS[self.order][0])(array, constant)

    def verdict(self, row: Mapping[str, Any]) -> Verdict:
        value = self.field.value(row)
        if value is None:
            return None
        if _kind(value) is not _kind(self.constant):
            raise TypeError(f"{'.'.join(self.field.path)} is {type(value).__name__}, compared with {self.constant!r}")
        return bool(ORDERS[self.order][1](value, self.constant))

    def possible(self, bounds_of: Callable[[str], Bounds | None]) -> Possible:
        bounds = None if self.field.is_length or self.field.path[1:] else bounds_of(self.field.path[0])
        if bounds is None or not all(_kind(end) is _kind(self.constant) for end in (bounds.smallest, bounds.largest)):
            return ANYTHING
        holds, low, high = ORDERS[self.order][1], bounds.smallest, bounds.largest
        found: set[Verdict] = {None} if bounds.has_nulls else set()
        if self.order in (ast.Eq, ast.NotEq):
            inside, alike = low <= self.constant <= high, low == high
            equal = {True, False} if inside and not alike else {inside}
            found |= equal if self.order is ast.Eq else {not one for one in equal}
        else:
            found |= {holds(low, self.constant), holds(high, self.constant)}
        if isinstance(low, float) or isinstance(high, float):  # a NaN is not in the bounds
            found.add(self.order is ast.NotEq)
        return frozenset(found)


@dataclass(frozen=True)
class _Null(_OfField):
    """`field is None`."""

    def mask(self, table: Any, compute: Any) -> Any:
        return compute.is_null(self.field.array(table, compute))

    def verdict(self, row: Mapping[str, Any]) -> Verdict:
        return self.field.value(row) is None


@dataclass(frozen=True)
class _Contains(_OfField):
    """`'part' in field`."""

    part: str

    def mask(self, table: Any, compute: Any) -> Any:
        return compute.match_substring(self.field.array(table, compute), self.part)

    def verdict(self, row: Mapping[str, Any]) -> Verdict:
        value = self.field.value(row)
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{'.'.join(self.field.path)} is {type(value).__name__}, not a string")
        return None if value is None else self.part in value


@dataclass(frozen=True)
class _Joined(_Node):
    """Parts joined by `and`, or by `or`."""

    parts: tuple[_Node, ...]
    is_and: bool

    def columns(self) -> Sequence[str]:
        return [name for part in self.parts for name in part.columns()]

    def mask(self, table: Any, compute: Any) -> Any:
        join = compute.and_kleene if self.is_and else compute.or_kleene
        return reduce(join, (part.mask(table, compute) for part in self.parts))

    def verdict(self, row: Mapping[str, Any]) -> Verdict:
        return reduce(self._join, (part.verdict(row) for part in self.parts))

    def possible(self, bounds_of: Callable[[str], Bounds | None]) -> Possible:
        sets = [part.possible(bounds_of) for part in self.parts]
        return reduce(lambda some, more: frozenset(self._join(a, b) for a in some for b in more), sets)

    def _join(self, one: Verdict, other: Verdict) -> Verdict:
        decides = not self.is_and
        if decides in (one, other):
            return decides
        return None if None in (one, other) else self.is_and


@dataclass(frozen=True)
class _Not(_Node):
    part: _Node

    def columns(self) -> Sequence[str]:
        return self.part.columns()

    def mask(self, table: Any, compute: Any) -> Any:
        return compute.invert(self.part.mask(table, compute))

    def verdict(self, row: Mapping[str, Any]) -> Verdict:
        found = self.part.verdict(row)
        return None if found is None else not found

    def possible(self, bounds_of: Callable[[str], Bounds | None]) -> Possible:
        return frozenset(None if one is None else not one for one in self.part.possible(bounds_of))


# ---------------------------------------------------------------------------------------------- parsing


def _parsed(node: ast.expr) -> _Node:
    """Return the node of an expression. Raises ValueError for one that is no condition."""
    if isinstance(node, ast.BoolOp):
        return _Joined(tuple(map(_parsed, node.values)), isinstance(node.op, ast.And))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _Not(_parsed(node.operand))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        parts = [_comparison(*part) for part in zip(sides, node.ops, sides[1:], strict=False)]
        return parts[0] if len(parts) == 1 else _Joined(tuple(parts), True)
    raise ValueError(f"{ast.unparse(node)!r} is not a comparison")


def _comparison(left: ast.expr, order: ast.cmpop, right: ast.expr) -> _Node:
    if isinstance(order, ast.In | ast.NotIn):
        found = _member(left, right)
        return found if isinstance(order, ast.In) else _Not(found)
    if isinstance(order, ast.Is | ast.IsNot) and isinstance(right, ast.Constant) and right.value is None:
        found = _Null(_field(left))
        return found if isinstance(order, ast.Is) else _Not(found)
    if type(order) not in ORDERS:
        raise ValueError(f"{ast.unparse(left)!r} uses an operator that is not supported (== != < <= > >= in, is None)")
    if _is_constant(left):
        return _Compared(_field(right), _MIRRORED[type(order)], _constant(left))
    return _Compared(_field(left), type(order), _constant(right))


def _member(left: ast.expr, right: ast.expr) -> _Node:
    if isinstance(right, ast.Tuple | ast.List | ast.Set):
        if not right.elts:
            raise ValueError("a list behind `in` is empty")
        field = _field(left)
        return _Joined(tuple(_Compared(field, ast.Eq, _constant(one)) for one in right.elts), False)
    part = _constant(left)
    if not isinstance(part, str):
        raise ValueError(
            f"{ast.unparse(left)!r} is not a string: `in` needs a list of values in parentheses, or a string"
        )
    return _Contains(_field(right), part)


def _field(node: ast.expr) -> _Field:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len" and len(node.args) == 1:
        return _Field(_field(node.args[0]).path, is_length=True)
    if isinstance(node, ast.Name):
        return _Field((node.id,))
    if isinstance(node, ast.Attribute):
        return _Field((*_field(node.value).path, node.attr))
    raise ValueError(f"{ast.unparse(node)!r} is not a column")


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) or (isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant))


def _constant(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)!r} is not a number, string, True or False") from None
    if not isinstance(value, str | int | float):
        raise ValueError(f"{ast.unparse(node)!r} is not a number, string, True or False")
    return value


def _is_of(kind: "pyarrow.DataType", what: str) -> bool:
    """Return whether an Arrow type is one of numbers, strings or truth values."""
    from pyarrow import types

    if what == "is_string":
        return is_string(kind)
    return types.is_boolean(kind) if what == "is_boolean" else types.is_integer(kind) or types.is_floating(kind)


def _kind(value: Any) -> type:
    """Return what a value may be compared with: bool, float for all numbers, str, or its own type."""
    return bool if isinstance(value, bool) else float if isinstance(value, int | float) else type(value)
