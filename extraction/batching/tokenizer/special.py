"""Find the tokens that are no text, and what a record begins with.

In: the files of a tokenizer and its pipeline. Out: `SpecialTokens`, with a sentence for each thing on which the files
disagree. Guarantee: every id is one that the pipeline has. Cost: none.

What a record begins with is what the post-processor of tokenizer.json puts before a text, unless tokenizer_config.json
says `add_bos_token`: true puts the beginning-of-text token before it, false takes that token away.
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
    """`tokenizer` is the pipeline, a `tokenizers.Tokenizer`."""
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
    """What the settings name; where they are silent the model's own configuration, if its id is a special token's."""
    if "bos_token" in files.settings:
        return named.get(files.named.get("bos_token", ""))
    number = files.model.get("bos_token_id", files.model.get("text_config", {}).get("bos_token_id"))
    return number if number in ids.values() else None


def _put_before(tokenizer: Any) -> list[int]:
    """The ids that the post-processor puts before a text."""
    from tokenizers import Tokenizer, models

    text = Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).encode("x")
    whole = tokenizer.post_process(text)
    return whole.ids[: whole.sequence_ids.index(0)]


def _prefix(files: TokenizerFiles, begin: int | None, before: list[int]) -> tuple[list[int], list[str]]:
    """What a record begins with, and what to say of it."""
    wanted = files.settings.get("add_bos_token")
    if not isinstance(wanted, bool) or begin is None or wanted == (begin in before):
        return before, []
    prefix = [begin, *before] if wanted else [number for number in before if number != begin]
    puts = "does not put the beginning-of-text token before a text" if wanted else "puts it before a text"
    return prefix, [
        f"tokenizer_config.json says add_bos_token {str(wanted).lower()}, {files.source} {puts}: records begin "
        f"{'with' if wanted else 'without'} it, as the first says; --bos always or never chooses"
    ]


def _strangers(files: TokenizerFiles, tokens: list[str]) -> list[str]:
    if not tokens or files.source != PIPELINE:
        return []
    shown = ", ".join(map(repr, tokens[:_SHOWN])) + (f" and {len(tokens) - _SHOWN} more" if tokens[_SHOWN:] else "")
    return [f"files beside {PIPELINE} name tokens that it has not, or with other ids: {shown}; its own ids are used"]
