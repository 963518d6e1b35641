"""Numbers in sentences.

In: a number and the word for what it counts. Out: both, with the word in singular or plural. Cost: none.
"""


def count_of(number: int, one: str, many: str = "") -> str:
    """Return a number with what it counts, as `1 file` or `2,000 files`; `many` is the plural if it is not one + s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
