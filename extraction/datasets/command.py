"""What a dataset tells the command line: a function that publishes its streams, and the flags that this takes.

In: the dataset's own flags, and what `--source` may be. Out: a `Dataset`, which `DATASETS` names and from which
`create_dataset_streams.py` makes a command. Cost: a dataset's file is imported for `--help`; what is heavy it imports
where that is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from .publish import Published

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
