"""The records that were left out because they are damaged.

In: a name of each. Out: their part of a manifest's options, and sentences about it. Guarantee: all are counted, the
first `NAMED` are named. Cost: none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.count_of import count_of

SKIPPED = "skipped"
NAMED = 100


@dataclass
class Skipped:
    """The number of records that were left out, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one record."""
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(name)

    def to_json(self) -> dict[str, Any]:
        """Return the entry in the options of a manifest; nothing when no record was left out."""
        return {SKIPPED: {"count": self.count, "first": self.first}} if self.count else {}


def skipped_sentences(options: Mapping[str, Any]) -> list[str]:
    """Return sentences about the records that were left out, from the options of a manifest."""
    skipped = options.get(SKIPPED)
    if not skipped:
        return []
    skipped_records = count_of(skipped["count"], "record was", "records were")
    return [f"{skipped_records} skipped when the streams were made:", *skipped["first"]]
