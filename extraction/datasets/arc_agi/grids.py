"""Grids as text: encoders by name, composed by a small grammar.

    encoder   = leaf | wrapper "(" encoder ")"
    leaf      = "minimal" | "separated" [ "(" string ")" ] | "repeated" [ "(" number ")" ]
    wrapper   = "rows" | "shape" | "fenced" | "fenced_shape"
    string    = "'" characters "'" | '"' characters '"'

In: such an expression and grids. Out: an `Encoder`, a function of a grid. Guarantee: no two grids have the same text.
Cost: one pass over the cells. `shape(rows(minimal))` of a grid of 2 rows and 3 columns:

    2x3
    1 077
    2 777
"""

import re
from collections.abc import Callable
from typing import Any

from ...core.errors import DamagedData, InvalidRequest

MAX_SIDE = 30
DEFAULT_ENCODING = "shape(rows(minimal))"
LONGEST_EXPRESSION = 200
MAX_REPEATS = 9
FENCE = "```"

Grid = list[list[int]]


Encoder = Callable[[Grid], str]


# ---------------------------------------------------------------------------------------------- leaves


def minimal() -> Encoder:
    """Return the encoder with one line for each row, one digit for each cell."""
    return separated("")


def separated(separator: str = " ") -> Encoder:
    """Return the encoder with a separator between digits: `0|7|7`."""
    return lambda grid: "\n".join(separator.join(map(str, row)) for row in grid)


def repeated(times: int = 2) -> Encoder:
    """Return the encoder that repeats each digit: `007777`."""
    return lambda grid: "\n".join("".join(str(cell) * times for cell in row) for row in grid)


# ---------------------------------------------------------------------------------------------- wrappers


def rows(inner: Encoder) -> Encoder:
    """Number the lines of another encoding, from 1."""
    return lambda grid: "\n".join(f"{n} {line}" for n, line in enumerate(inner(grid).split("\n"), 1))


def shape(inner: Encoder) -> Encoder:
    """Put a line with rows x columns before another encoding."""
    return lambda grid: f"{_shape_of(grid)}\n{inner(grid)}"


def fenced(inner: Encoder) -> Encoder:
    """Put another encoding into a block of code."""
    return lambda grid: f"{FENCE}grid\n{inner(grid)}\n{FENCE}"


def fenced_shape(inner: Encoder) -> Encoder:
    """Put another encoding into a block of code that says rows x columns."""
    return lambda grid: f"{FENCE}grid {_shape_of(grid)}\n{inner(grid)}\n{FENCE}"


def _shape_of(grid: Grid) -> str:
    return f"{len(grid)}x{len(grid[0])}"


# ---------------------------------------------------------------------------------------------- the grammar

LEAVES = {"minimal": (minimal, None), "separated": (separated, str), "repeated": (repeated, int)}
WRAPPERS = {"rows": rows, "shape": shape, "fenced": fenced, "fenced_shape": fenced_shape}
_TOKEN = re.compile(r"""\s*(?:(?P<name>[a-z_]+)|(?P<number>\d+)|(?P<string>'[^'\n]*'|"[^"\n]*")|(?P<mark>[()]))""")


def parse_encoder(text: str) -> Encoder:
    """Return the encoder that an expression names. Raises InvalidRequest that says where it is wrong."""
    if len(text) > LONGEST_EXPRESSION:
        raise InvalidRequest(f"--grid-encoding is {len(text)} characters long, over {LONGEST_EXPRESSION}")
    return _Parser(text).parse()


class _Parser:
    """Reads one expression, from left to right."""

    def __init__(self, text: str):
        self._text, self._at = text, 0

    def parse(self) -> Encoder:
        encoder = self._encoder()
        if self._text[self._at :].strip():
            raise self._wrong("nothing more was expected")
        return encoder

    def _wrong(self, what: str) -> InvalidRequest:
        return InvalidRequest(
            f"--grid-encoding {self._text!r}: {what} at {self._text[self._at :].strip() or 'the end'!r}"
        )

    def _take(self, kind: str) -> str | None:
        """Return the next token if it is of this kind."""
        match = _TOKEN.match(self._text, self._at)
        if not match or match[kind] is None:
            return None
        self._at = match.end()
        return match[kind]

    def _mark(self, mark: str) -> None:
        before = self._at
        if self._take("mark") != mark:
            self._at = before
            raise self._wrong(f"{mark!r} was expected")

    def _encoder(self) -> Encoder:
        before = self._at
        name = self._take("name")
        if name in WRAPPERS:
            self._mark("(")
            inner = self._encoder()
            self._mark(")")
            return WRAPPERS[name](inner)
        if name not in LEAVES:
            self._at = before
            raise self._wrong(f"one of {', '.join([*LEAVES, *WRAPPERS])} was expected")
        make, kind = LEAVES[name]
        if kind is None or not self._text[self._at :].lstrip().startswith("("):
            return make()
        self._mark("(")
        argument = self._argument(kind)
        self._mark(")")
        return make(argument)

    def _argument(self, kind: type) -> str | int:
        before = self._at
        if kind is int:
            number = self._take("number")
            if number is not None and 1 <= int(number) <= MAX_REPEATS:
                return int(number)
            self._at = before
            raise self._wrong(f"a number from 1 to {MAX_REPEATS} was expected")
        string = self._take("string")
        if string is None or not string[1:-1] or any(character.isdigit() for character in string):
            self._at = before
            raise self._wrong("a string in quotes, without digits, was expected")
        return string[1:-1]


# ---------------------------------------------------------------------------------------------- checking


def check_grid(grid: Any, where: str) -> None:
    """Raise DamagedData unless this is a rectangle of 1 to 30 rows and columns of colours 0 to 9."""
    if not isinstance(grid, list) or not all(isinstance(row, list) for row in grid):
        raise DamagedData(f"{where} is missing or not a list of rows")
    widths = sorted({len(row) for row in grid})
    if len(widths) > 1:
        raise DamagedData(f"{where} is ragged: rows of {widths[0]} to {widths[-1]} cells")
    if not grid or not 1 <= widths[0] <= MAX_SIDE or len(grid) > MAX_SIDE:
        raise DamagedData(f"{where} is {len(grid)}x{widths[0] if widths else 0}, not 1x1 to {MAX_SIDE}x{MAX_SIDE}")
    for row in grid:
        for cell in row:
            if type(cell) is not int or not 0 <= cell <= 9:
                raise DamagedData(f"{where} has {cell!r}, not a colour from 0 to 9")
