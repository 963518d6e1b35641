"""Strict JSON: one text has one meaning, and no text harms its reader.

In: bytes from any source, or a value. Out: the value, or its bytes. Guarantee: bytes that are not UTF-8, a repeated
key, too deep nesting, NaN, an infinity or half a surrogate pair raise ValueError, when they are read and before they
are written. No other error is raised. Cost: reading takes at most 64 bytes of memory for each byte of input.
"""

import json


def loads(data: bytes) -> object:
    """Return the value of one JSON text. Raises ValueError."""
    try:
        value = _DECODER.decode(data.decode())
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def dumps(value: object, indent: int | None = None) -> bytes:
    """Return a line of JSON that `loads` accepts, with sorted keys. Raises ValueError."""
    try:
        text = json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text:
        json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    return f"{text}\n".encode()


def _unrepeated(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_constant=_refuse)
