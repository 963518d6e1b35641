"""A picture of a run: one HTML file that needs nothing else, to be looked at by a person.

In: OUTPUT and a file name. Out: that file: progress and pace with interruptions marked, norms of every hook point, the
tokens that stand out, positions, lengths, padding, where the time went, the configuration, and the proof from `verify`.

Guarantee: the page asks for nothing from any network and runs no script. Cost: as in `facts`, and one audit.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ...batching.tokenizer import load_pipeline
from ...core.errors import InvalidRequest
from .facts import ReportFacts, gather
from .page import render

__all__ = ["ReportFacts", "gather", "render", "write_report"]


def write_report(output: str, file: str, streams: str | None = None, tokenizer: str | None = None) -> ReportFacts:
    """Write the page; `tokenizer` is a folder or tokenizer.json that tells what tokens say.

    Raises InvalidRequest for a file that is not readable or writable, and what reading the run raises.
    """
    words = _load_words(tokenizer) if tokenizer else None
    facts = gather(output, streams)
    try:
        Path(file).write_text(render(facts, words), encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"--html {file}: {error.strerror}") from error
    return facts


def _load_words(location: str) -> Callable[[int], str]:
    tokenizer = load_pipeline(Path(os.path.expanduser(location)))
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)
