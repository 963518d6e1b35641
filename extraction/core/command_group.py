"""A click group that shows whole summaries and suggests the nearest command.

In: click's commands. Out: their help, or an error of one line. Cost: only click is imported.
"""

import difflib
from typing import Any

import click

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class CommandGroup(click.Group):
    """A group whose help shows each summary whole, and that names the nearest command for one that it lacks."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first argument. Raises a usage error for a word that is no command."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], names, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}."
            ctx.fail(f"No such command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the name and the first sentence of each command."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def version_option(command: Any) -> Any:
    """Add `--version` to a group."""
    from .. import __version__

    return click.version_option(__version__, message="%(prog)s %(version)s")(command)
