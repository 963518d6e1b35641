"""Find the special tokens, and the ids that begin each record.

In: the files of a tokenizer and its pipeline. Out: `SpecialTokens`, with a sentence for each disagreement of the files.
Guarantee: the pipeline has every id. Cost: none.

A record begins with the ids that the post-processor of tokenizer.json puts before a text. `add_bos_token` in
tokenizer_config.json changes them: true puts the beginning-of-text token first, false removes it.
"""

from dataclasses import dataclass
from typing import Any

from .files import PIPELINE, TokenizerFiles

_SHOWN = 3  # tokens that a sentence names


@dataclass(frozen=True)
class SpecialTokens:
    """`begin` is the beginning-of-text token, `prefix` the ids that a record begins with, `ids` all special tokens."""

    begin: int | None
    unknown: int | None
    prefix: list[int]
    ids: dict[str, int]
    disagreements: tuple[str, ...]


def find_special_tokens(files: TokenizerFiles, tokenizer: Any) -> SpecialTokens:
    """Return the special tokens. `tokenizer` is the pipeline, a `tokenizers.Tokenizer`."""
    added = tokenizer.get_added_tokens_decoder().items()
    ids = {token.content: number for number, token in added if token.special}
    named = {token: tokenizer.token_to_id(token) for token in [*files.named.values(), *files.extra]}
    ids |= {token: number for token, number in named.items() if number is not None}
    begin = _beginning(files, named, ids)
    prefix, said = _prefix(files, begin, _put_before(tokenizer))
    unknown = files.named.get("unk_token") or getattr(tokenizer.model, "unk_token", None)
    strange = {token for token, number in named.items() if number is None}
    strange |= {token for token, number in files.added if tokenizer.token_to_id(token) != number}
    return SpecialTokens(
        begin,
        None if unknown is None else tokenizer.token_to_id(unknown),
        prefix,
        ids,
        tuple(said + _strangers(files, sorted(strange))),
    )


def _beginning(files: TokenizerFiles, named: dict[str, int | None], ids: dict[str, int]) -> int | None:
    """Return the beginning-of-text id of the settings, else of config.json if a special token has that id."""
    if "bos_token" in files.settings:
        return named.get(files.named.get("bos_token", ""))
    number = files.model.get("bos_token_id", (files.model.get("text_config") or {}).get("bos_token_id"))
    return number if number in ids.values() else None


def _put_before(tokenizer: Any) -> list[int]:
    """Return the ids that the post-processor puts before a text."""
    from tokenizers import Tokenizer, models

    text = Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).encode("x")
    whole = tokenizer.post_process(text)
    return whole.ids[: whole.sequence_ids.index(0)]


def _prefix(files: TokenizerFiles, begin: int | None, before: list[int]) -> tuple[list[int], list[str]]:
    """Return the ids that begin a record, and a sentence if the files disagree."""
    wanted = files.settings.get("add_bos_token")
    if not isinstance(wanted, bool) or begin is None or wanted == (begin in before):
        return before, []
    prefix = [begin, *before] if wanted else [number for number in before if number != begin]
    puts = "does not put the beginning-of-text token before a text" if wanted else "puts it before a text"
    return prefix, [
        f"tokenizer_config.json says add_bos_token {str(wanted).lower()}, {files.source} {puts}: records begin "
        f"{'with' if wanted else 'without'} it, because tokenizer_config.json decides; --bos always or never chooses"
    ]


def _strangers(files: TokenizerFiles, tokens: list[str]) -> list[str]:
    if not tokens or files.source != PIPELINE:
        return []
    shown = ", ".join(map(repr, tokens[:_SHOWN])) + (f" and {len(tokens) - _SHOWN} more" if tokens[_SHOWN:] else "")
    return [
        f"other files name tokens that {PIPELINE} lacks or numbers differently: {shown}; the ids of {PIPELINE} are used"
    ]
