"""The plain values that travel along the pipeline: records, tokenised records and the cursor.

In and out: immutable values, no I/O. A cursor orders like a position in the stream, so `before <= after` means what
it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int


@dataclass(frozen=True)
class Record:
    """One input item: `index` is its position in its stream, from 0; `id` a stable string; `meta` JSON text or None.

    `tokens`: int32 [n], the ids of a record that has no text.
    """

    index: int
    id: str
    text: str
    meta: str | None = None
    tokens: Int[np.ndarray, " n"] | None = None


@dataclass(frozen=True)
class TokenizedRecord:
    """A record as token ids: `tokens` is int32 of shape [n], n >= 0.

    `offsets`, where they were asked for: int64 [n, 2], which characters of the text each token is of, [first, last).
    `num_chars`: how many characters the text has, None for a record without text.
    """

    index: int
    id: str
    tokens: Int[np.ndarray, " n"]
    meta: str | None = None
    offsets: Int[np.ndarray, "n 2"] | None = None
    num_chars: int | None = None


@dataclass(frozen=True, order=True)
class Cursor:
    """Everything before token `token_offset` of record `record` is committed."""

    record: int
    token_offset: int

    def __str__(self) -> str:
        return f"record {self.record} token {self.token_offset}"
