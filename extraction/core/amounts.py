"""Times, sizes and lists of numbers written for people.

In: seconds, bytes, ascending numbers. Out: short text with units, or the runs of consecutive numbers. Guarantee: any
number is written, however large. Cost: none.
"""

from collections.abc import Iterable

_MILLENNIUM = 1000 * 365.25 * 86400


def format_seconds(seconds: float | None) -> str:
    """Return text such as `3 h 20 min` or `45 s`, none for None, `over 1,000 years` for more than that."""
    if seconds is None:
        return ""
    if not seconds < _MILLENNIUM:
        return "over 1,000 years"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_bytes(count: float) -> str:
    """Return text such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def consecutive(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive numbers among ascending ones, the first and the last of each."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
