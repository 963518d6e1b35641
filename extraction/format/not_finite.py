"""Counts of values that are not finite, as commits hold them and as messages show them.

In and out: `NotFinite`, {hook point: {"nan": n, "inf": n}}, without the hook points that have none. Guarantee: counts
are of values as a reader sees them, so a row of int8 or float8 whose scale is NaN counts with its whole width. Cost:
none to speak of.
"""

NotFinite = dict[str, dict[str, int]]
KINDS = ("nan", "inf")
_NAMED = 3  # hook points that a sentence names


def added(one: NotFinite, other: NotFinite) -> NotFinite:
    """Return the sums of both."""
    none = dict.fromkeys(KINDS, 0)
    return {
        name: {kind: one.get(name, none)[kind] + other.get(name, none)[kind] for kind in KINDS}
        for name in sorted({*one, *other})
    }


def total(found: NotFinite) -> int:
    """Return the number of values, of both kinds and of all hook points."""
    return sum(counts[kind] for counts in found.values() for kind in KINDS)


def counted(counts: dict[str, int]) -> str:
    """Return text such as `1 NaN and 2,000 infinite values`."""
    return f"{counts['nan']:,} NaN and {counts['inf']:,} infinite values"


def described(found: NotFinite) -> str:
    """Return how many values and where, the hook points with most of them first."""
    names = sorted(found, key=lambda name: -sum(found[name].values()))
    more = f" and {len(names) - _NAMED:,} more hook points" if len(names) > _NAMED else ""
    sums = {kind: sum(counts[kind] for counts in found.values()) for kind in KINDS}
    return f"{counted(sums)} at {', '.join(names[:_NAMED])}{more}"
