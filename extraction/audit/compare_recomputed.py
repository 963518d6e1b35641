"""Compute some batches of a run again and say what the result proves.

In: the commits of a run, and a function that computes the batch file of one. Out: a `Recomputation`: how many batches
have the committed bytes, how many are close, what is wrong, and a sentence on what that proves. Guarantee: where
software and chips are those of the commit, other bytes are damage; elsewhere every number that is no activation must
be equal, and each row within `TOLERANCES`. Cost: that of the batches in the run.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import comb
from typing import Protocol

import numpy as np

from ..core.errors import DamagedData, ObjectNotFound
from ..core.versions import version_differences
from ..format.chain import commit_objects
from ..format.commit import Commit, data_name, read_commit
from ..format.dtypes import LEAST_LOSS, LOSS_HOOK
from ..format.run_config import RunConfig
from ..format.safetensors import SafetensorsFile, decode
from ..format.statistics import SCALE, unscaled
from ..models.hooks import EXPERT_INDICES, suffix_of
from ..storage import Storage, crc32c_base64

# Of the difference of a row, relative to the larger norm of the row: by the coarser of the dtypes of compute and store.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 6e-2, "int8": 6e-2, "float8_e4m3fn": 1.5e-1}
_STATISTICS = (".sum", ".sum_of_squares", ".norm_counts", ".max", ".max_at", SCALE)  # follow from the rows


class Computer(Protocol):
    """Computes batch files of a run with the software and the chips that `versions` names."""

    @property
    def versions(self) -> dict[str, str]:
        """As commits name them."""
        ...

    def compute(self, commit: Commit) -> memoryview:
        """Return the batch file of a commit."""
        ...


@dataclass(frozen=True)
class Draw:
    """The batches to compute again: `count`, drawn by `seed`, or all if None; of one stream if `stream` is given."""

    count: int | None
    seed: int
    stream: int | None = None


@dataclass
class Recomputation:
    """The findings. `total` is the number of batches with rows that the draw was made from."""

    draw: Draw
    total: int
    equal: int = 0
    close: int = 0
    problems: list[str] = field(default_factory=list)
    worst: float = 0.0
    worst_row: str = ""

    @property
    def count(self) -> int:
        """The number of batches that were computed again."""
        return self.equal + self.close + len(self.problems)

    def to_text(self) -> str:
        """Return what was done, and in one sentence what it proves."""
        where = "" if self.draw.stream is None else f" of stream {self.draw.stream}"
        text = f"recomputed {self.count:,} of {self.total:,} batches{where} (seed {self.draw.seed}): "
        text += f"{self.equal:,} with the same bytes, {self.close:,} within the tolerance, {len(self.problems):,} wrong"
        if self.close:
            text += f"; worst row {self.worst_row}, off by {self.worst:.2g} of its norm"
        return f"{text}. {self._proof()}"

    def _proof(self) -> str:
        if self.problems or not self.count:
            return "This proves nothing of the other batches."
        if self.count == self.total:
            return "Every batch was computed again: none of them holds other activations."
        part = max(1, -(-self.total // 100))
        return (
            f"If {part:,} of the {self.total:,} batches were wrong, a draw of {self.count:,} would have missed all of "
            f"them with a chance of {missed(self.total, part, self.count):.2g}."
        )

    def to_json(self) -> dict:
        """Return the same for `verify --json`."""
        return {"seed": self.draw.seed, "total": self.total, "recomputed": self.count, "equal": self.equal,
                "close": self.close, "wrong": len(self.problems), "worst": self.worst, "worst_row": self.worst_row,
                "says": self.to_text()}  # fmt: skip


def missed(total: int, wrong: int, drawn: int) -> float:
    """Return the chance that none of `wrong` batches of `total` is among `drawn` of them."""
    return comb(total - wrong, drawn) / comb(total, drawn)


def recompute(
    storage: Storage, streams: Iterable[int], config: RunConfig, draw: Draw, computer: Computer
) -> Recomputation:
    """Compute the drawn batches again and compare them."""
    names = [name for stream in streams for name in _names(storage, stream)]
    chosen = names if draw.count is None else random.Random(draw.seed).sample(names, min(draw.count, len(names)))
    found = Recomputation(draw, len(names))
    for name in sorted(chosen):
        try:
            commit = read_commit(storage, name).commit
            if commit.data is None:
                found.total -= 1
                continue
            _compare(storage, commit, computer.compute(commit), (config, computer.versions), found)
        except (DamagedData, ObjectNotFound) as error:
            found.problems.append(str(error))
    return found


def _names(storage: Storage, stream: int) -> list[str]:
    try:
        return [info.name for info in commit_objects(storage, stream)]
    except DamagedData:  # named by the audit of the chain
        return []


def _compare(
    storage: Storage, commit: Commit, data: memoryview, run: tuple[RunConfig, dict[str, str]], found: Recomputation
) -> None:
    """Note down whether a batch file is what was computed. Raises DamagedData for another."""
    config, versions = run
    assert commit.data is not None
    if (len(data), crc32c_base64(data)) == (commit.data.size, commit.data.crc32c):
        found.equal += 1
        return
    name = data_name(commit)
    stored, ours = decode(storage.read(name), name), decode(data)
    odd = next(_exact_differences(stored, ours, config), None)
    if odd:
        raise DamagedData(f"{name}: computed again, {odd}")
    worst, hook_point, row = worst_row(stored, ours, config)
    tolerance = max(TOLERANCES[config.compute_dtype], TOLERANCES[config.store_dtype])
    place = f"{row} ({hook_point}) of {name}"
    others = version_differences(commit.versions, versions)
    what = f"{name}: computed again, row {row} of {hook_point} is off by {worst:.2g} of its norm"
    if not worst <= tolerance:
        raise DamagedData(f"{what}; rounding explains at most {tolerance:g}")
    if not others:
        raise DamagedData(f"{what}, though software and chips are those of the commit")
    found.close += 1
    if worst >= found.worst:
        found.worst, found.worst_row = worst, place


def _exact_differences(stored: SafetensorsFile, ours: SafetensorsFile, config: RunConfig) -> Iterator[str]:
    """Yield what differs though no rounding can be the reason."""
    if stored.metadata != ours.metadata:
        yield "its header differs"
    if stored.arrays.keys() != ours.arrays.keys():
        yield "it has other arrays"
        return
    rounded = {*config.hook_points, *(f"{name}{end}" for name in config.hook_points for end in _STATISTICS)}
    for name, array in ours.arrays.items():
        if stored.arrays[name].shape != array.shape or stored.arrays[name].dtype != array.dtype:
            yield f"{name} has another shape or dtype"
        elif name not in rounded and not np.array_equal(stored.arrays[name], array):
            yield f"{name} differs"


def worst_row(stored: SafetensorsFile, ours: SafetensorsFile, config: RunConfig) -> tuple[float, str, int]:
    """Return the largest relative difference of a row, its hook point and its number; infinite for NaN in one only."""
    worst = (0.0, config.hook_points[0], 0)
    for name in config.hook_points:
        one, other = (_values(file, name) for file in (stored, ours))
        if suffix_of(name) == EXPERT_INDICES:
            relative = _expert_differences(one, other)
        else:
            relative = _relative_differences(one, other, LEAST_LOSS if name == LOSS_HOOK else 1e-30)
        row = int(np.argmax(relative))
        worst = max(worst, (float(relative[row]), name, row))
    return worst


def _relative_differences(one: np.ndarray, other: np.ndarray, least: float) -> np.ndarray:
    """Return float64 [N], the norm of the difference of each row over the larger of their norms and `least`."""
    with np.errstate(all="ignore"):
        alike = (one == other) | (np.isnan(one) & np.isnan(other))
        error = np.sqrt(np.square(np.where(alike, 0.0, one - other)).sum(axis=1))
        norms = [np.sqrt(np.square(np.nan_to_num(part)).sum(axis=1)) for part in (one, other)]
        relative = np.where(error == 0, 0.0, error / np.maximum(np.maximum(*norms), least))
    return np.nan_to_num(relative, nan=np.inf)


def _expert_differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return float64 [N]: for rows with another set of experts, a fifth of their share of all rows; 0 for the others.

    Rounding decides between experts whose scores are nearly equal, in any order; one row in a batch always may.
    """
    others = (np.sort(one, axis=1) != np.sort(other, axis=1)).any(axis=1)
    return others * max(int(others.sum()) - 1, 0) / max(len(others), 1) / 5


def _values(file: SafetensorsFile, name: str) -> np.ndarray:
    return unscaled(file.arrays[name], file.arrays.get(name + SCALE)).astype(np.float64)
