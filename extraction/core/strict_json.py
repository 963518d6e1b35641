"""JSON as this project writes it, from bytes that anybody may have changed.

In: bytes. Out: the value. Guarantee: what is not UTF-8, repeats a key, nests too deeply, or holds NaN, an infinity or
half a surrogate pair raises ValueError and nothing else, so no two readers see two things in one text. Cost: at most
64 bytes of memory for each byte of input.
"""

import json


def loads(data: bytes) -> object:
    """The value of one JSON text. Raises ValueError."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unrepeated, parse_constant=_refuse)
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
