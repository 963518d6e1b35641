"""Escape control characters of untrusted text: a name or a message in a bucket may hold any character.

In: text. Out: text without the characters that steer a terminal. Guarantee: the result has no control character but
the line breaks that `shown_lines` keeps. Cost: a look at each character.
"""

import io
import os
import sys


def printable(text: str) -> str:
    """Return the text on one line, each character that cannot be printed written as its escape."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shown_lines(text: str) -> str:
    """Return the text with its line breaks, and each line made printable."""
    return "\n".join(map(printable, text.split("\n")))


def prepare_stdout_and_stderr() -> None:
    """Make stdout and stderr usable for any text.

    A character that the locale cannot encode is written as its escape. A closed descriptor is opened on /dev/null:
    otherwise the next file that is opened would get its number, and what libraries say on stderr.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or os.fdopen(os.dup(1), "w")
    sys.stderr = sys.stderr or os.fdopen(os.dup(2), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
