"""The text of records, and of their tokens.

In: a run, and the streams that it was made from. Out: the text of a record, or the text of each of its tokens.
Guarantee: tokens are those that the model read: where a row is stored, its id is compared with the record's. Cost: the
tokenizer's files, once; a row group of the streams for each record.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InvalidRequest
from ..format.records import Record
from ..format.run_config import RunDescription
from ..streams.extensions import load_manifest
from ..streams.manifest import Manifest
from ..streams.stream import open_stream

if TYPE_CHECKING:
    from jaxtyping import Int

    from ..batching.tokenizer import RecordTokenizer
    from .row_types import RecordActivations


class Texts:
    """The texts of a run's records.

    `streams` and `tokenizer` are other places of the streams and of the model's folder than those in run.json. Raises
    InvalidRequest, when a text is asked for, if they are not those of the run.
    """

    def __init__(self, run: RunDescription, streams: str | None = None, tokenizer: str | None = None):
        self._run, self._location, self._folder = run, streams or run.streams, tokenizer

    @cached_property
    def _manifest(self) -> Manifest:
        manifest = load_manifest(self._location)
        if self._run.manifest_digests[-1] not in manifest.digests:
            raise InvalidRequest(f"{self._location}: not the streams of this run; give their place as streams")
        return manifest

    @cached_property
    def _tokenizer(self) -> RecordTokenizer:
        from ..batching.tokenizer import RecordTokenizer
        from ..models.location import locate_model

        config, place = self._run.config, self._run.model_location
        if self._folder is not None:
            folder = Path(os.path.expanduser(self._folder))
        else:
            try:
                folder = locate_model(place, config.revision, weights=False).path
            except InvalidRequest as error:
                raise InvalidRequest(f"{error}; run.json names it: give the model's folder as the tokenizer") from None
        tokenizer = RecordTokenizer(folder, config.bos, config.vocab_size)
        if tokenizer.digest != config.tokenizer_digest:
            raise InvalidRequest(f"{folder}: not the tokenizer of this run; give its folder as the tokenizer")
        return tokenizer

    def record(self, stream: int, index: int) -> Record:
        """Return a record as the streams have it."""
        return next(iter(open_stream(self._manifest, self._location, stream).read_records(index)))

    def text(self, stream: int, index: int) -> str:
        """Return the text of a record; of a record of token ids what these say."""
        record = self.record(stream, index)
        return record.text if record.tokens is None else "".join(self.pieces(record.tokens))

    def ids(self, stream: int, index: int) -> Int[np.ndarray, " n"]:
        """Return the ids of all tokens of a record, as the streams have it: int32 [n]."""
        (found,) = self._tokenizer.tokenize([self.record(stream, index)])
        return found.tokens

    def tokens(self, record: RecordActivations) -> Int[np.ndarray, " n"]:
        """Return the ids of all tokens of a record, stored or not: int32 [n].

        Raises InvalidRequest if a stored id is another.
        """
        ids, positions = self.ids(record.stream, record.index), record.positions
        if len(positions) and (positions.max() >= len(ids) or not np.array_equal(ids[positions], record.tokens)):
            raise InvalidRequest(f"record {record.id}: its stored token ids are not those of its text in the streams")
        return ids

    def pieces(self, tokens: Sequence[int] | np.ndarray) -> list[str]:
        """Return the text of each token; a character of several tokens is in the last of them."""
        return self._tokenizer.pieces(np.asarray(tokens).tolist())
