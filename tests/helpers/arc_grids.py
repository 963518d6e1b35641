"""The way back of ARC-AGI's records: from text to grids, from a record's meta to the task."""

import ast
import re

from extraction.datasets.arc_agi.augmentation import SYMMETRIES, Augmentation

# A mirror image is its own inverse, with any turn; the inverse of a turn completes the circle.
INVERSES = {name: name for name in SYMMETRIES} | {"rotate_90": "rotate_270", "rotate_270": "rotate_90"}


def decode(expression, text):
    """The grid that an encoder wrote; AssertionError for text that it does not write."""
    name, _, inner = re.fullmatch(r"\s*(\w+)\s*(\((.*)\))?\s*", expression).groups()
    if name == "rows":
        lines = [line.partition(" ") for line in text.split("\n")]
        assert [number for number, _, _ in lines] == [str(number) for number in range(1, len(lines) + 1)]
        return decode(inner, "\n".join(line for _, _, line in lines))
    if name in ("shape", "fenced", "fenced_shape"):
        first, _, rest = text.partition("\n")
        assert name == "shape" or rest.endswith("\n```")
        grid = decode(inner, rest if name == "shape" else rest[:-4])
        size = f"{len(grid)}x{len(grid[0])}"
        assert first == {"shape": size, "fenced": "```grid", "fenced_shape": f"```grid {size}"}[name]
        return grid
    times = int(inner or 2) if name == "repeated" else 1
    separator = (ast.literal_eval(inner) if inner else " ") if name == "separated" else ""
    cells = [line.split(separator) if separator else list(line)[::times] for line in text.split("\n")]
    assert text == "\n".join(separator.join(cell * times for cell in row) for row in cells)
    return [[int(cell) for cell in row] for row in cells]


def undo(how, grid):
    """The grid before an augmentation."""
    return SYMMETRIES[INVERSES[how.symmetry]]([[how.colors.index(cell) for cell in row] for row in grid])


def original_of(meta):
    """The task of a record, with the one test input that the record is about."""
    given, answer = meta["original"]["test"]
    test = {"input": _unpacked(given)} | ({"output": _unpacked(answer)} if answer is not None else {})
    train = [{"input": _unpacked(one), "output": _unpacked(other)} for one, other in meta["original"]["train"]]
    return {"train": train, "test": [test]}


def augmentation_of(meta):
    """The augmentation of a record."""
    value = meta["augmentation"]
    return Augmentation(value["symmetry"], tuple(value["colors"]), tuple(value["order"]))


def _unpacked(text):
    return [[int(cell) for cell in row] for row in text.split("/")]
