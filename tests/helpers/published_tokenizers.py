"""Small tokenizers built as published ones are: their parts in order, and what their folders say beside them."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "",
    " ",
    "Steps:\n\n1. Do",
    "    1,",
    "def f(x):\n    if x > 10:\n\t\treturn x ** 2  # don't\n\n\n",
    "a  b   c    d",
    'In 1984, 1,234.5 people (3.7%) said: "I\'ll see 100000 of them"!',
    "naïve cafe\u0301 ﬁ Å ½",
    "你好，世界。 привет שלום",
    "👩‍👩‍👧 🇫🇷 x",
    "\u00a0\u3000 \u200b",
    "<s> </s> <|endoftext|> <bos> [INST]",
    " leading and trailing ",
    "▁a ▁▁b",
    "x" * 99,
]
_WORDS = (" the quick brown fox:\n\n1. jumps\n    over 12 lazy dogs,  I'll see;\n\treturn x ** 2\n" * 3, *TEXTS)
_BYTES = pre_tokenizers.ByteLevel.alphabet()
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(*before: pre_tokenizers.PreTokenizer, regex: bool = True, special: tuple[str, ...]) -> Tokenizer:
    """BPE over bytes; `before` splits first."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*special], initial_alphabet=_BYTES, show_progress=False
    )
    tokenizer.train_from_iterator(_WORDS, trainer)
    return tokenizer


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _begins(tokenizer: Tokenizer, token: str) -> processors.PostProcessor:
    single = f"{token}:0 $A:0"
    return processors.TemplateProcessing(single=single, special_tokens=[(token, tokenizer.token_to_id(token))])


def smollm2() -> Tokenizer:
    return _byte_level(pre_tokenizers.Digits(individual_digits=True), special=("<|endoftext|>", "<|im_start|>"))


def gpt2() -> Tokenizer:
    return _byte_level(special=("<|endoftext|>",))


def gpt_neox() -> Tokenizer:
    tokenizer = _byte_level(special=("<|endoftext|>", "<|padding|>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * 4, normalized=False)])  # as it has for indented code
    return tokenizer


def llama3() -> Tokenizer:
    tokenizer = _byte_level(_split(LLAMA3), regex=False, special=("<|begin_of_text|>", "<|eot_id|>"))
    bytes_first = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = processors.Sequence([bytes_first, _begins(tokenizer, "<|begin_of_text|>")])
    return tokenizer


def qwen2() -> Tokenizer:
    tokenizer = _byte_level(_split(QWEN2), regex=False, special=("<|endoftext|>", "<|im_start|>"))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _pieces(normalizer: normalizers.Normalizer, splitter: pre_tokenizers.PreTokenizer | None, begin: str) -> Tokenizer:
    """BPE over characters with a byte for each that is not in the vocabulary, as converted from SentencePiece."""
    special = ["<unk>", begin, "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter or pre_tokenizers.Split("▁", "merged_with_next")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({letter for letter in _WORDS[0] if letter.isascii()} - {" ", "\n", "\t"} | {"▁"})
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + fallback, show_progress=False,
                                  initial_alphabet=letters, limit_alphabet=len(letters))  # fmt: skip
    trained.train_from_iterator(_WORDS[:1], trainer)
    state = json.loads(trained.to_str())
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if splitter is None:
        tokenizer.pre_tokenizer = None
    tokenizer.post_processor = _begins(tokenizer, begin)
    return tokenizer


def llama2() -> Tokenizer:
    return _pieces(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, "<s>")


def mistral() -> Tokenizer:
    splitter = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _pieces(normalizers.Sequence([]), splitter, "<s>")


def gemma() -> Tokenizer:
    splitter = pre_tokenizers.Split(" ", "merged_with_previous")
    return _pieces(normalizers.Replace(" ", "▁"), splitter, "<bos>")


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(_WORDS, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(_WORDS, trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False))  # fmt: skip
    return tokenizer


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    builder.__name__: builder
    for builder in (smollm2, gpt2, gpt_neox, llama3, qwen2, llama2, mistral, gemma, word_level, unigram)
}
# What their folders name, and the wrong names that are found beside such files.
CLASSES = (None, "PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer",
           "LlamaTokenizerFast", "GPTNeoXTokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "CodeLlamaTokenizer",
           "MistralCommonBackend", "OurOwnTokenizer")  # fmt: skip


def save(folder: Path, tokenizer: Tokenizer, **settings: object) -> Path:
    """A folder with tokenizer.json, and a tokenizer_config.json where there are settings."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
