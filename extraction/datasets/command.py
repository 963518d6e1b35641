"""The interface of a dataset to the command line: a function that publishes its streams, and the options that it takes.

In: a frozen dataclass of flags (`core.flags`), and the text of `--source`. Out: a `Dataset`, which `DATASETS` names and
from which `create_dataset_streams.py` makes a command. Cost: `--help` imports a dataset's file; a dataset imports
heavy libraries inside its functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from ..core.flags import flag
from ..storage import Storage
from ..streams.build.publish import Published
from ..streams.build.sources import Choice, Known
from ..streams.row_filter import RowFilter, parse_part, parse_sample
from ..streams.where_conditions import Condition

META_COLUMNS = "Columns, separated by commas, that are stored with the activations as the meta."
PLACES = "a folder, file or glob, gs://BUCKET/... or hf://datasets/OWNER/NAME[@REVISION]/..."


class Names(click.ParamType):
    """Names of columns, separated by commas."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names; a tuple of names, which the default is, as it is."""
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


@dataclass(frozen=True)
class Dataset:
    """A dataset as the command line has it: help texts, a function and its options.

    `create(storage, source, num_streams, options)` publishes the streams in `storage`; `options` is an instance of the
    dataclass `options`, whose fields are flags. `have` is what a person has who needs it, for `--help`. `why_empty`
    explains empty streams; `{full}` in it becomes the number of streams with records.
    """

    help: str
    source: str
    create: Callable[[Storage, str, int, Any], Published]
    options: type
    have: str = ""
    why_empty: str = "the source has fewer records than streams"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The flags of a dataset that reads files: which of them, and what happens to damaged records.

    `known` is what the streams have that are extended.
    """

    split: str | None = flag(
        None, help="Split of the source, such as train or test, as its files or folders are named; all: every split."
    )
    config: str | None = flag(
        None, help="Configuration (subset) of the source: one that its README.md lists, or else a folder."
    )
    on_bad_record: str = flag(
        "fail",
        type=click.Choice(["fail", "skip"]),
        help="fail: a damaged record ends the command; skip: it is left out, and the manifest counts and names it.",
    )

    known: Known = Known()

    @property
    def choice(self) -> Choice:
        """The part of the source to read."""
        return Choice(self.split, self.config, self.known)

    @property
    def skip_bad(self) -> bool:
        """Whether damaged records are left out."""
        return self.on_bad_record == "skip"


@dataclass(frozen=True, kw_only=True)
class SelectOptions(SourceOptions):
    """The flags of a dataset that reads rows: which of them are records, and in which order."""

    where: str | None = flag(
        None, help="Only rows for which this is true, such as \"score >= 3 and language in ('en', 'de')\"."
    )
    part: str | None = flag(
        None, help="A share of the ids by their hash, as 0.98:train; 0.98:test is the rest, and they share no id."
    )
    sample: float | None = flag(
        None, type=click.FloatRange(0, 1, min_open=True), help="This share of the rows, by the hash of their ids."
    )
    shuffle: int | None = flag(None, type=click.IntRange(0), help="Another order of the records, by this seed.")
    max_tokens: int | None = flag(
        None, type=click.IntRange(1), help="Only the first records that together have this many tokens of --model."
    )

    @property
    def row_filter(self) -> RowFilter:
        """The rows that become records. Raises InvalidRequest for a condition or part that is none."""
        shares = (parse_part(self.part),) if self.part else ()
        shares += (parse_sample(self.sample),) if self.sample is not None else ()
        return RowFilter(where=Condition(self.where) if self.where else None, shares=shares)

    def selected(self) -> dict[str, Any]:
        """Return what the manifest records of these flags, but for the row filter."""
        asked = {"shuffle": self.shuffle, "max_tokens": self.max_tokens}
        return {name: value for name, value in asked.items() if value is not None}
