"""Compare the records and tokens of the rows of a batch file with its commit and the flags.

In: the arrays of a batch file whose shapes are right, its commit, the facts of the run. Out: a sentence for each thing
that is wrong.

Of a commit alone, with data or without: its cursors give the number of tokens that it covers if both are in one record,
and bound that number elsewhere. One without rows is refused where any records between its cursors, of as many tokens,
would have a row.

What is proven without one: the records are those from `cursor_before` to `cursor_after`, one after the other; their
lengths sum up to the tokens that the commit covers; a record that began in an earlier batch continues at its end,
one that goes on in the next ends at its cursor. The rows of each are those that `--positions` names by the record's
length, no more and no fewer. Where a length does not tell, rows are proven to be of tokens that may be stored, each
once and in order: with `--drop-special`, for spans, and for positions that count from the end of a record that goes on
in the next batch.

Cost: a pass over the positions of each record; 8 bytes for each token of the longest.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..batching.token_selection import Selection
from ..format.commit import Commit
from .audited_run import AuditedRun

Arrays = Mapping[str, np.ndarray]


class _RecordPart(NamedTuple):
    """Tokens [first, last) of a record; `length` is None if it goes on in the next batch."""

    first: int
    last: int
    length: int | None


def check_cover(commit: Commit, run: AuditedRun) -> Iterator[str]:
    """Yield what is wrong with the number of tokens and rows of a commit, without a look at its records."""
    before, after, read = commit.cursor_before, commit.cursor_after, commit.num_tokens
    num_ended = after.record - before.record
    if after <= before:
        return
    first_open = 0 if num_ended else before.token_offset
    going_on = after.token_offset - first_open if after.token_offset else 0
    ended, least = read - going_on, int(num_ended > 0 and before.token_offset > 0)
    longest = min(read, run.config.seq_len) if run.config.truncates else read
    if not least <= ended <= num_ended * longest:
        yield f"counts {read:,} tokens, which does not fit its cursors {before} and {after}"
    elif commit.num_rows == 0:
        most = run.selection.most_without_row
        first, others = (min(longest, most(offset, True)) for offset in (before.token_offset, 0))
        without = first + (num_ended - 1) * others if num_ended else 0
        if first < least or ended > without or going_on > most(first_open, False):
            yield f"stores no rows, and --positions {run.selection} names some of the {read:,} tokens it covers"


def check_records(arrays: Arrays, commit: Commit, run: AuditedRun) -> Iterator[str]:
    """Yield what is wrong with the records of a batch file."""
    before, after, n = commit.cursor_before, commit.cursor_after, commit.num_rows
    index, offsets = arrays["record_index"], arrays["record_offsets"]
    if not np.array_equal(index, np.arange(before.record, before.record + commit.num_records)):
        yield f"its record_index does not count from {before.record}"
    if commit.num_records == 0 or offsets[0] != 0 or offsets[-1] != n or (offsets[1:] < offsets[:-1]).any():
        yield f"its record_offsets do not rise from 0 to its {n:,} rows"
        return
    lengths = arrays["record_lengths"]
    room = min(commit.num_tokens, run.config.num_slots)
    if (lengths < 0).any() or (lengths > room).any() or lengths.sum() != commit.num_tokens:
        yield f"its record_lengths do not sum up to the {commit.num_tokens:,} tokens of its commit"
        return
    if before.token_offset and lengths[0] == 0:
        yield f"record {before.record} does not go on at token {before.token_offset}, where the batch before it ended"
    start = before.token_offset if commit.num_records == 1 else 0
    if after.token_offset and start + lengths[-1] != after.token_offset:
        yield f"record {after.record} ends at token {start + lengths[-1]}, its commit says {after.token_offset}"
    if run.config.truncates and (lengths > run.config.seq_len).any():
        yield f"a record has more than {run.config.seq_len} tokens, after which --long-documents truncate cuts"
    yield from _check_rows(arrays, lengths, commit, run)
    yield from _check_tokens(arrays, run)


def _check_rows(arrays: Arrays, lengths: np.ndarray, commit: Commit, run: AuditedRun) -> Iterator[str]:
    """Yield what is wrong with the choice of tokens that have a row."""
    offsets, positions, selection = arrays["record_offsets"], arrays["positions"], run.selection
    if selection.is_everything:
        if not np.array_equal(np.diff(offsets), lengths):
            yield "its record_offsets are not those of its record_lengths, and all tokens were to be stored"
            return
        places = np.arange(len(positions)) - np.repeat(offsets[:-1], lengths)
        places[: lengths[0]] += commit.cursor_before.token_offset
        if not np.array_equal(positions, places):
            yield "its positions do not count from 0 in each record, or from where the batch before it ended"
        return
    last = len(lengths) - 1
    for number, length in enumerate(lengths.tolist()):
        first = commit.cursor_before.token_offset if number == 0 else 0
        goes_on = number == last and commit.cursor_after.token_offset > 0
        part = _RecordPart(first, first + length, None if goes_on else first + length)
        if not _fits_selection(positions[offsets[number] : offsets[number + 1]], part, selection, run.config.seq_len):
            record = commit.cursor_before.record + number
            yield f"the rows of record {record} are not those that --positions {selection} stores of its tokens"
            return


def _fits_selection(positions: np.ndarray, part: _RecordPart, selection: Selection, seq_len: int) -> bool:
    """Return whether these are the positions of the rows of a part of a record."""
    if selection.pools:
        places = np.minimum(np.arange(part.first + seq_len, part.last + seq_len, seq_len), part.last) - 1
    else:
        places = selection.named(*part)
    if part.length is None and selection.reach > 1:
        some = places if selection.needs_only_lengths else places[:0]
        late = np.arange(max(part.first, part.last + 1 - selection.reach), part.last)
        return _rises_within(some, positions) and _rises_within(positions, np.union1d(places, late))
    if selection.needs_only_lengths:
        return np.array_equal(positions, places)
    return _rises_within(positions, places)


def _rises_within(some: np.ndarray, all_of_them: np.ndarray) -> bool:
    """Return whether the positions `some` rise and are all in `all_of_them`."""
    return bool((np.diff(some) > 0).all() and np.isin(some, all_of_them).all())


def _check_tokens(arrays: Arrays, run: AuditedRun) -> Iterator[str]:
    tokens, selection = arrays["tokens"], run.selection
    if len(tokens) and tokens.min() < 0:
        yield "it holds a token below 0"
    elif len(tokens) and tokens.max() >= run.config.vocab_size:
        yield f"it holds the token id {tokens.max():,}, but those of the model are below {run.config.vocab_size:,}"
    if selection.pools:
        over, whole = arrays["mean_over"], arrays["positions"] % run.config.seq_len + 1
        if (over != whole).any() if selection.needs_only_lengths else ((over < 1) | (over > whole)).any():
            yield "its mean_over are not numbers of tokens in its windows"
    elif selection.drop_special and np.isin(tokens, run.special_ids).any():
        yield "it holds a special token, which --drop-special leaves out"
