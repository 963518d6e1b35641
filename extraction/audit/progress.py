"""How far an audit has come: a bar on a terminal, for people.

In: how many commits were listed, and each that was looked at. Out: a bar on stderr that goes away at the end; nothing
unless `visible`. Cost: some microseconds for each commit.
"""


class Meter:
    """Counts commits; may be told from several threads. Use as a context manager."""

    def __init__(self, title: str, visible: bool):
        self._bar, self._title = None, title
        if visible:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(f"verify {title}", total=0)

    def __enter__(self) -> "Meter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def expect(self, count: int) -> None:
        """So many more commits will be looked at."""
        if self._bar:
            self._bar.update(self._task, total=(self._bar.tasks[0].total or 0) + count)

    def advance(self, count: int) -> None:
        """So many more commits were looked at."""
        if self._bar:
            self._bar.update(self._task, advance=count)
