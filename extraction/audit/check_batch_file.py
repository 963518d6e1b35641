"""One batch file, read and compared with its commit and the run config.

In: the bytes of a batch file, its commit, the facts of the run. Out: `Contents`: what is wrong, how wide its hook
points are, and how many of its values are NaN or infinite. Shapes are those of the format: N tokens, R records.

What is proven of an object without a problem: its bytes have the committed size and crc32c; header, arrays, shapes
and dtypes are those of the format and of `run.json`; its records have the committed ids, and its rows are of them
(`check_record_coverage`); and the sums are those of the values, to the rounding of float32 sums of at most T + B terms.

NaN and infinite values are no damage: a model may compute them, and then they are what was to be stored. Another number
of them than the commit says is damage. Cost: each byte is read once; memory is the object and blocks of 2 MiB.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..core.errors import DamagedData
from ..core.strict_json import loads
from ..format.batch_file import batch_arrays, ends_of_records
from ..format.chain import compare_data
from ..format.commit import Commit, data_name
from ..format.digests import digest_ids
from ..format.dtypes import LARGEST_CODE, LOSS_HOOK, dtype_named
from ..format.not_finite import KINDS, counted
from ..format.run_config import FORMAT
from ..format.safetensors import SafetensorsFile, decode
from ..format.statistics import COUNTS, MAX, MAX_AT, SCALE, SUMS, norm_counts, unscaled
from ..storage import ObjectInfo, crc32c_base64
from .audited_run import AuditedRun
from .check_record_coverage import check_records

_BLOCK = 1 << 18  # values that are in float64 at once
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Contents:
    """The findings in one batch file; see `StreamAudit` for the meaning of the fields."""

    problems: tuple[str, ...]
    widths: dict[str, int] = field(default_factory=dict)
    non_finite: Counter[tuple[str, str]] = field(default_factory=Counter)


def check_contents(data: bytes, commit: Commit, run: AuditedRun) -> Contents:
    """Check the batch file of a commit that has one. Damage is listed, not raised."""
    name = data_name(commit)
    try:
        compare_data(commit, ObjectInfo(name, len(data), crc32c_base64(data)))
        file = decode(data, name)
    except DamagedData as error:
        return Contents((str(error),))
    problems = list(_check_layout(file, commit, run))
    if problems:
        return Contents(tuple(f"{name}: {problem}" for problem in problems))
    found: Counter[tuple[str, str]] = Counter()
    problems += _check_header(file, commit)
    of_records = list(check_records(file.arrays, commit, run))
    problems += of_records
    for hook_point in run.config.hook_points:
        problems += _check_values(file, hook_point, run, found)
    if LOSS_HOOK in run.config.hook_points and not of_records:
        ends = ends_of_records(file.arrays, commit.cursor_before, commit.cursor_after)
        found[LOSS_HOOK, "nan"] -= int(ends.sum())
        if not np.isnan(file.arrays[LOSS_HOOK][ends]).all():
            problems.append(f"{LOSS_HOOK} is not NaN at the last token of each record")
    problems += _check_not_finite(found, commit)
    widths = {hook_point: file.arrays[hook_point].shape[1] for hook_point in run.config.hook_points}
    return Contents(tuple(f"{name}: {problem}" for problem in problems), widths, +found)


def _check_layout(file: SafetensorsFile, commit: Commit, run: AuditedRun) -> Iterator[str]:
    """Yield the arrays that are missing or have another shape or dtype; further ones are allowed."""
    shapes = {name: file.arrays[name].shape if name in file.arrays else () for name in run.config.hook_points}
    widths = {name: shape[-1] if shape else 0 for name, shape in shapes.items()}
    dtype = dtype_named(run.config.store_dtype)
    wanted = batch_arrays(widths, dtype, commit.num_rows, commit.num_records, run.selection.pools)
    for name, (shape, dtype) in wanted.items():
        array = file.arrays.get(name)
        if array is None:
            yield f"it has no array {name}"
        elif (array.shape, array.dtype) != (shape, dtype):
            yield f"{name} is {array.dtype}{list(array.shape)}, its commit and run.json say {dtype}{list(shape)}"


def _check_header(file: SafetensorsFile, commit: Commit) -> Iterator[str]:
    for key, value in (("format", FORMAT), ("stream", commit.stream), ("batch", commit.batch)):
        if file.metadata.get(key) != str(value):
            yield f"its header says {key} {file.metadata.get(key)!r}, not {value}"
    try:
        ids = _strings(file.metadata["record_ids"])
    except (KeyError, ValueError):
        yield "the record_ids of its header are not a JSON list of strings"
    else:
        if len(ids) != commit.num_records or digest_ids(ids) != commit.record_ids_digest:
            yield "the record ids of its header are not those of its commit"


def _strings(text: str) -> list[str]:
    values = loads(text.encode())
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("not a list of strings")
    return values


def _check_values(
    file: SafetensorsFile, hook_point: str, run: AuditedRun, found: Counter[tuple[str, str]]
) -> Iterator[str]:
    """Yield what is wrong with scales and statistics of the values; count what is not finite in `found`."""
    arrays, width = file.arrays, file.arrays[hook_point].shape[1]
    values, scale = arrays[hook_point], arrays.get(hook_point + SCALE)
    total, squares, norms, largest = *np.zeros((2, width)), np.zeros(len(values)), 0.0
    first = [0, 0]
    rows = max(1, _BLOCK // max(1, width))
    with np.errstate(all="ignore"):
        for start in range(0, len(values), rows):
            here = slice(start, start + rows)
            block = unscaled(values[here], None if scale is None else scale[here]).astype(np.float64)
            part = np.square(block)
            norms[here] = np.sqrt(part @ np.ones(width))
            if hook_point == LOSS_HOOK:  # NaN has no part in its sums
                found[hook_point, "nan"] += int(np.isnan(block).sum())
                block, part = (np.where(np.isnan(values), 0.0, values) for values in (block, part))
            ones = np.ones(len(block))
            total += ones @ block
            squares += (part := ones @ part)
            if not np.isfinite(part).all():
                found[hook_point, "nan"] += int(np.isnan(block).sum())
                found[hook_point, "inf"] += int(np.isinf(block).sum())
            most = np.fmax.reduce(np.abs(block, out=block), axis=None, initial=0.0)
            if most > largest:
                row, column = divmod(int(np.argmax(block == most)), width)
                largest, first = most, [start + row, column]
        yield from _check_sums(file, hook_point, (total, squares), run)
        if scale is not None:
            yield from _check_scale(values, scale, hook_point)
        yield from _check_norms(arrays[hook_point + COUNTS], norms, width, hook_point)
        yield from _check_maximum(file, hook_point, largest, first)


def _check_not_finite(found: Counter[tuple[str, str]], commit: Commit) -> Iterator[str]:
    for name in sorted({*commit.not_finite, *(hook_point for hook_point, _ in found)}):
        ours = {kind: found[name, kind] for kind in KINDS}
        theirs = commit.not_finite.get(name, dict.fromkeys(KINDS, 0))
        if ours != theirs:
            yield f"{name} has {counted(ours)}, its commit says {counted(theirs)}"


def _check_sums(
    file: SafetensorsFile, hook_point: str, ours: tuple[np.ndarray, np.ndarray], run: AuditedRun
) -> Iterator[str]:
    rows, squares = len(file.arrays[hook_point]), ours[1]
    # By Cauchy-Schwarz the absolute values sum up to no more than the root.
    slack = (run.config.seq_len + run.config.batch_size) * 2.0**-23
    for suffix, own, bound in zip(SUMS, ours, (slack * np.sqrt(rows * squares), slack * squares), strict=True):
        theirs = file.arrays[hook_point + suffix]
        # A column that is not finite, or that overflows float32, has no sum to compare.
        wrong = (squares < _FLOAT32_MAX) & ~(np.abs(theirs - own) <= bound + 1e-30)
        if wrong.any():
            column = int(np.argmax(wrong))
            yield f"{hook_point}{suffix}[{column}] is {theirs[column]:g}, its values sum up to {own[column]:g}"


def _check_scale(codes: np.ndarray, scale: np.ndarray, hook_point: str) -> Iterator[str]:
    """Yield what is wrong with codes: a row with a scale uses the whole range, one whose scale is 0 or NaN is zeros."""
    largest = np.abs(codes.astype(np.float32)).max(axis=1, initial=0.0)
    expected = np.where((scale > 0) & np.isfinite(scale), LARGEST_CODE[codes.dtype.name], 0.0)
    wrong = (largest != expected) | (scale < 0) | np.isinf(scale)
    if wrong.any():
        row = int(np.argmax(wrong))
        yield f"{hook_point}{SCALE}[{row}] is {scale[row]:g}, but the largest code of the row is {largest[row]:g}"


def _check_norms(counts: np.ndarray, norms: np.ndarray, width: int, hook_point: str) -> Iterator[str]:
    """Yield what is wrong with counts of norms; float32 may have put a norm across the edge of a bin."""
    if (counts < 0).any() or counts.sum() != len(norms) - np.isnan(norms).sum():
        yield f"{hook_point}{COUNTS} count {counts.sum():,} norms, its rows have {(~np.isnan(norms)).sum():,}"
        return
    slack, counted = (width + 8) * 2.0**-24, counts.cumsum()
    least, most = (norm_counts(norms * factor).cumsum() for factor in (1 + slack, 1 - slack))
    wrong = (counted < least) | (counted > most)
    if wrong.any():
        yield f"{hook_point}{COUNTS} differ from the norms of its rows at bin {int(np.argmax(wrong))}"


def _check_maximum(file: SafetensorsFile, hook_point: str, ours: float, first: list[int]) -> Iterator[str]:
    """Compare the largest |x| and its first place; NaN counts as 0, so that the place of a maximum of 0 is [0, 0]."""
    theirs, place = float(file.arrays[hook_point + MAX][0]), file.arrays[hook_point + MAX_AT]
    values, scale = file.arrays[hook_point], file.arrays.get(hook_point + SCALE)
    if theirs != ours:
        yield f"{hook_point}{MAX} is {theirs:g}, the largest of its values {ours:g}"
    elif not ((place >= 0) & (place < values.shape)).all():
        yield f"{hook_point}{MAX_AT} is {place.tolist()}, which is outside of {list(values.shape)}"
    elif place.tolist() != first:
        row, column = place.tolist()
        there = abs(float(unscaled(values[[row]], None if scale is None else scale[[row]])[0, column]))
        said = (
            f"where the value is {there:g} and not {ours:g}" if there != ours else f"but {ours:g} is at {first} before"
        )
        yield f"{hook_point}{MAX_AT} is {place.tolist()}, {said}"
