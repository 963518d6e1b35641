"""Convert a SentencePiece model into the pipeline of a tokenizer.json, and compare it with the original.

In: a `tokenizer.model`, with the files beside it. Out: the bytes of a tokenizer.json. Guarantee: on a battery of odd
texts the ids equal those of the sentencepiece package, otherwise InvalidRequest is raised. Cost: some seconds for
256,000 pieces.
"""

from pathlib import Path
from typing import Any

from ...core.errors import DamagedData, InvalidRequest
from ...core.logs import say

_BATTERY = (
    "",
    " ",
    "  ",
    "a",
    " a",
    "a ",
    "  two  blanks  inside ",
    "\n",
    "\n\n1. Do\n\n\t- this",
    "\r\n\t \v",
    "Hello, World!",
    "1234567890 3.14 1,000 ½ ² Ⅷ",
    "def f(x):\n    if x:\n        return x ** 2  # why\n",
    "naïve café e\u0301 Å ﬁ ＡＢＣ",
    "привет мир",
    "你好，世界。",
    "こんにちは ｶﾀｶﾅ",
    "안녕하세요",
    "שלום עולם",
    "नमस्ते",
    "👩‍👩‍👧‍👦 🇫🇷 𝒳 𐍈",
    "\u00a0\u2003\u3000x\u200b\u200d\ufeff",
    "▁ ▁▁a",
    "<0x0A> <0xFF>",
    "\x01\x7f\x85",
    "a" * 40,
    "don't I'LL we've",
    "https://a.b/c?d=e&f#g",
)


def open_original(path: Path) -> Any:
    """Return sentencepiece's processor. Raises InvalidRequest (not installed) and DamagedData (no model)."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise InvalidRequest(
            f"{path.parent}: no tokenizer.json here, and to convert {path.name} the sentencepiece package is needed: "
            "pip install sentencepiece"
        ) from error
    try:
        return SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise DamagedData(
            f"{path}: not a SentencePiece model ({error}); if it is one of tiktoken, take the tokenizer.json that "
            "belongs to the model"
        ) from error


def convert(path: Path) -> bytes:
    """Return the bytes of a tokenizer.json. Raises InvalidRequest if the conversion fails or changes ids."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    original = open_original(path)
    try:  # this class reads the pipeline from the model's own settings, for any class in tokenizer_config.json
        converted = PreTrainedTokenizerFast.from_pretrained(path.parent).backend_tokenizer
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise InvalidRequest(_refusal(path, f"transformers cannot convert it ({error})")) from error
    for text in _BATTERY:
        ours, theirs = converted.encode(text, add_special_tokens=False).ids, original.encode(text)
        if ours != theirs:
            raise InvalidRequest(_refusal(path, f"converted, {text!r} gives the ids {ours} and not {theirs}"))
    begin = original.bos_id()
    mark = [(original.id_to_piece(begin), begin)] if begin >= 0 else []
    single = " ".join([f"{piece}:0" for piece, _ in mark] + ["$A:0"])
    converted.post_processor = processors.TemplateProcessing(single=single, special_tokens=mark)
    say(f"{path.parent}: no tokenizer.json here; {path.name} is converted, equal to it on {len(_BATTERY)} odd texts")
    return converted.to_str().encode()


def _refusal(path: Path, why: str) -> str:
    return f"{path}: {why}; --model needs the tokenizer.json that belongs to the model"
