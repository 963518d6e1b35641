"""What a dataset tells the command line: a function that publishes its streams, and the flags that this takes.

In: the dataset's own flags, and what `--source` may be. Out: a `Dataset`, which `DATASETS` names and from which
`create_dataset_streams.py` makes a command. Cost: a dataset's file is imported for `--help`; what is heavy it imports
where that is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ..streams.build.publish import Published
from ..streams.build.sources import Choice

PLACES = "a folder, file or glob, gs://BUCKET/... or hf://datasets/OWNER/NAME[@REVISION]/..."


@dataclass(frozen=True)
class Dataset:
    """A dataset as the command line has it: the texts of its help, its flags, and what they go to.

    `create(storage, source, num_streams, **flags)` publishes the streams in `storage`. `why_empty` says why some have
    no record, where `{full}` is how many have some.
    """

    help: str
    source: str
    create: Callable[..., Published]
    flags: Sequence[click.Option] = ()
    why_empty: str = "there is too little to share out"


def flag(name: str, **settings: object) -> click.Option:
    """A click option that also reads `EXTRACT_<FLAG>`."""
    variable = "EXTRACT_" + name.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.Option([name], envvar=variable, show_envvar=True, **settings)


_SPLIT = "Split of the source, such as train or test, as its files or folders are named; all: every split."
_CONFIG = "Configuration (subset) of the source: one that its README.md lists, or else a folder."
_BAD = "A record that is damaged ends the command, or is left out, counted and named in the manifest."
CHOICE_FLAGS = [flag("--split", help=_SPLIT), flag("--config", help=_CONFIG)]
BAD_FLAG = flag("--on-bad-record", default="fail", show_default=True, type=click.Choice(["fail", "skip"]), help=_BAD)
SOURCE_FLAGS = [*CHOICE_FLAGS, BAD_FLAG]


def choice_of(flags: dict[str, Any]) -> Choice:
    """What `SOURCE_FLAGS` chose, taken out of the values of all flags."""
    return Choice(flags.pop("split"), flags.pop("config"), flags.pop("on_bad_record", "fail") == "skip")
