"""Grids as text: what an encoder writes has one reading, the grammar takes what it names and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction.core.errors import InvalidRequest
from extraction.datasets.arc_agi.augmentation import SYMMETRIES, Augmentation, augmentation, unchanged
from extraction.datasets.arc_agi.grids import MAX_SIDE, parse_encoder
from tests.helpers.arc_grids import decode, undo

GRID = [[0, 7, 7], [7, 7, 7]]
sides = st.integers(1, MAX_SIDE)
grids = st.tuples(sides, sides).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 9), min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
    )
)
leaves = st.sampled_from(["minimal", "separated", "separated('|')", 'separated(", ")', "repeated", "repeated(3)"])
expressions = st.recursive(
    leaves,
    lambda inner: st.builds("{}({})".format, st.sampled_from(["rows", "shape", "fenced", "fenced_shape"]), inner),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(grid=grids, expression=expressions)
def test_what_an_encoder_writes_can_be_read_back(grid, expression):
    assert decode(expression, parse_encoder(expression)(grid)) == grid


@pytest.mark.parametrize("expression, said", [
    ("", "one of minimal, separated, repeated, rows, shape, fenced, fenced_shape was expected at 'the end'"),
    ("tiny", "one of minimal"), ("rows", "'(' was expected"), ("rows()", "one of minimal"),
    ("rows(minimal", "')' was expected"),
    ("minimal)", "nothing more was expected at ')'"), ("minimal()", "nothing more"),
    ("repeated(0)", "a number from 1 to 9"),
    ("repeated(10)", "a number from 1 to 9"), ("repeated('2')", "a number"),
    ("separated('1')", "a string in quotes, without digits"),
    ("separated('')", "a string in quotes"), ("separated(2)", "a string in quotes"),
    ("__import__('os')", "one of minimal"),
    ("rows(" * 100 + "minimal" + ")" * 100, "607 characters long"),
])  # fmt: skip
def test_an_expression_that_is_none_says_where(expression, said):
    with pytest.raises(InvalidRequest, match="--grid-encoding") as error:
        parse_encoder(expression)
    assert said in str(error.value)


# ---------------------------------------------------------------------------------------------- augmentation


@settings(max_examples=50, deadline=None)
@given(grid=grids, number=st.integers(0, 20), seed=st.integers(0, 3), background=st.booleans())
def test_what_was_done_to_a_grid_can_be_undone(grid, number, seed, background):
    how = augmentation("task", number, 3, seed, background)
    assert undo(how, how.apply(grid)) == grid


def test_the_eight_symmetries_of_the_square_are_different():
    shown = {name: str(Augmentation(name, tuple(range(10)), ()).apply(GRID)) for name in SYMMETRIES}
    assert len(set(shown.values())) == 8
    assert shown["rotate_90"] == "[[7, 0], [7, 7], [7, 7]]" and shown["mirror"] == "[[7, 7, 0], [7, 7, 7]]"


def test_an_augmentation_is_a_function_of_seed_task_and_number():
    made = augmentation("a", 5, 4, 0, False)
    assert made == augmentation("a", 5, 4, 0, False)
    assert sorted(made.colors) == list(range(10)) and sorted(made.order) == [0, 1, 2, 3] and made.colors[0] == 0
    others = [augmentation("b", 5, 4, 0, False), augmentation("a", 13, 4, 0, False), augmentation("a", 5, 4, 1, False)]
    assert all(other.colors != made.colors for other in others)
    assert any(augmentation("a", number, 4, 0, True).colors[0] != 0 for number in range(8))
    assert unchanged(2).apply(GRID) == GRID


def test_augmentations_do_not_change_with_the_version():
    """Their values are part of what a published stream means."""
    assert augmentation("007bbfb7", 1, 5, 0, False).to_json() == {
        "symmetry": "rotate_90", "colors": [0, 6, 5, 7, 3, 8, 9, 1, 2, 4], "order": [0, 3, 1, 2, 4],
    }  # fmt: skip
