"""Strict JSON: one text has one meaning, and no text harms its reader.

In: bytes from any source, or a value. Out: the value, or its bytes. Guarantee: bytes that are not UTF-8, a repeated
key, too deep nesting, NaN, an infinity or half a surrogate pair raise ValueError, when they are read and before they
are written. No other error is raised. Cost: reading takes at most 64 bytes of memory for each byte of input.
"""

import json

MOST_NESTED = 200  # Python's own limit differs between versions, and others that recurse over a value have theirs


def loads(data: bytes) -> object:
    """Return the value of one JSON text. Raises ValueError."""
    try:
        value = _DECODER.decode(data.decode())
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_nesting(value, data.count(b"[") + data.count(b"{"))
    return value


def dumps(value: object, indent: int | None = None) -> bytes:
    """Return a line of JSON that `loads` accepts, with sorted keys. Raises ValueError."""
    try:
        text = json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_nesting(value, text.count("[") + text.count("{"))
    if "\\ud" in text:
        json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    return f"{text}\n".encode()


def _check_nesting(value: object, most: int) -> None:
    """Raise ValueError for a value in more than `MOST_NESTED` others; there are at most `most` others."""
    level = [value] if most > MOST_NESTED else []
    for _ in range(MOST_NESTED + 1):
        inner = (
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list | tuple)
        )
        level = [value for values in inner for value in values]
    if level:
        raise ValueError("nested too deeply")


def _unrepeated(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_constant=_refuse)
