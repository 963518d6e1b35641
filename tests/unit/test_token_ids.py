"""Ids are those of tokenizer.json, whatever class a folder names; special tokens and beginnings as files say them."""

import io
import json
import shutil
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import DamagedData, InvalidRequest
from extraction.format.records import Record
from extraction.format.run_config import SpecialTokenIds
from extraction.read.reader import ActivationReader
from tests.helpers.published_tokenizers import BUILDERS, CLASSES, TEXTS, save
from tests.helpers.workers import MODEL, ROOT, extract, make_streams, write_corpus

pytestmark = pytest.mark.slow

RECORDS = [Record(number, str(number), text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def built():
    return {name: builder() for name, builder in BUILDERS.items()}


def ids_of(folder, bos="never", **options):
    return [record.tokens.tolist() for record in RecordTokenizer(folder, bos, **options).tokenize(RECORDS)]


def pieces_of(folder, text):
    names = {number: token for token, number in Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().items()}
    (record,) = RecordTokenizer(folder, "never").tokenize([Record(0, "", text)])
    return [names[number] for number in record.tokens.tolist()]


# ------------------------------------------------------------------------------------------------- the pipeline


@pytest.mark.parametrize("name", BUILDERS)
def test_ids_are_those_of_the_file_whatever_class_and_model_a_folder_names(tmp_path, built, name):
    folder = save(tmp_path, built[name])
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [alone.encode(text, add_special_tokens=False).ids for text in TEXTS]
    for model_type in ("llama", "gpt2", "gpt_neox", "qwen2", "mistral", "gemma2"):
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert ids_of(folder) == expected
    for named in CLASSES:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
        assert ids_of(folder) == expected


def by_hand(merges, *before):
    """Byte-level BPE with these merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [merge.replace(" ", "") for merge in merges]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split()) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "text, pieces",
    [
        ("Steps:\n\n1. Do", ["Steps", ":", "ĊĊ", "1", ".", "ĠDo"]),
        ("    1,", ["ĠĠĠĠ", "1", ","]),
        ("a 12", ["a", "Ġ", "1", "2"]),
    ],
)
def test_digits_are_split_before_blanks_as_smollm2_has_it(tmp_path, named, text, pieces):
    """Where digits are split first, blanks before one are together; GPT-2's own pattern leaves the last one out."""
    merges = ["Ċ Ċ", "Ġ Ġ", "ĠĠ ĠĠ", "D o", "Ġ Do", "S t", "e p", "ep s", "St eps", "1 2"]
    tokenizer = by_hand(merges, pre_tokenizers.Digits(individual_digits=True))
    assert pieces_of(save(tmp_path, tokenizer, tokenizer_class=named), text) == pieces


def test_no_class_of_transformers_is_asked(tmp_path, built):
    """So that neither its version nor a package such as mistral-common beside it can change an id."""
    folder = save(tmp_path, built["mistral"], tokenizer_class="LlamaTokenizerFast", bos_token="<s>")
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    code = (
        "import sys; sys.modules['transformers'] = None; from extraction.format.records import Record;"
        "from extraction.batching.tokenizer import RecordTokenizer as T; from pathlib import Path;"
        f"print(next(T(Path({str(folder)!r})).tokenize([Record(0, '', 'the fox')])).tokens.tolist())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [1, *built["mistral"].encode("the fox", add_special_tokens=False).ids]


def test_flags_of_added_tokens_are_kept(tmp_path):
    """`lstrip` takes the blanks before a token, `single_word` leaves it alone inside a word."""
    tokenizer = by_hand(["o n", "on e"])
    state = json.loads(tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    state["added_tokens"] = [
        flags | {"id": 258, "content": "<m>", "lstrip": True, "special": True},
        flags | {"id": 259, "content": "al", "single_word": True},
    ]
    folder = save(tmp_path, Tokenizer.from_str(json.dumps(state)))
    assert pieces_of(folder, "al  <m> alone") == ["al", "<m>", "Ġ", "a", "l", "one"]
    assert RecordTokenizer(folder).special_ids == (258,)


def test_a_model_that_drops_merges_at_random_is_refused(tmp_path, built):
    folder = save(tmp_path, built["gpt2"])
    state = json.loads((folder / "tokenizer.json").read_bytes())
    state["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(InvalidRequest, match="dropout, which makes ids random"):
        RecordTokenizer(folder)


# ---------------------------------------------------------------------------------------------- what begins a record


def template(single):
    marks = [(mark, number) for number, mark in enumerate(("<s>", "</s>", "[CLS]")) if mark in single]
    return processors.TemplateProcessing(single=single, special_tokens=marks)


def bare(processor=None):
    """Whitespace words, with three marks; the post-processor is to be chosen."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "[CLS]": 2, "a": 3, "b": 4}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "[CLS]"])
    if processor is not None:
        tokenizer.post_processor = processor
    return tokenizer


NAMED = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}}


@pytest.mark.parametrize(
    "processor, settings, prefix, said",
    [
        (None, {}, [], False),
        (None, NAMED, [], False),
        (template("<s> $A"), NAMED, [0], False),
        (template("<s> $A </s>"), NAMED, [0], False),
        (template("<s> $A"), {}, [0], False),
        (template("<s> $A"), NAMED | {"add_bos_token": True}, [0], False),
        (template("<s> $A"), NAMED | {"add_bos_token": None}, [0], False),
        (template("<s> $A"), NAMED | {"add_bos_token": False}, [], True),
        (None, NAMED | {"add_bos_token": True}, [0], True),
        (None, NAMED | {"add_bos_token": False}, [], False),
        (None, {"add_bos_token": True}, [], False),
        (template("[CLS] $A"), NAMED | {"add_bos_token": False}, [2], False),
        (template("[CLS] <s> $A"), NAMED | {"add_bos_token": False}, [2], True),
        (processors.Sequence([processors.ByteLevel(), template("<s> $A")]), NAMED, [0], False),
        (processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), NAMED, [0], False),
    ],
)
@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_what_begins_a_record(tmp_path, capsys, named, processor, settings, prefix, said):
    folder = save(tmp_path, bare(processor), tokenizer_class=named, **settings)
    tokenizer = RecordTokenizer(folder)
    assert [r.tokens.tolist() for r in tokenizer.tokenize([Record(0, "", "a"), Record(1, "", "")])] == [
        [*prefix, 3],
        prefix,
    ]
    assert tokenizer.special_tokens() == SpecialTokenIds({"<s>": 0, "</s>": 1, "[CLS]": 2}, tuple(prefix))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == said and all("add_bos_token" in line for line in lines)
    assert ids_of(folder)[0] == []


@pytest.mark.parametrize(
    "files, begin",
    [
        ({}, None),
        ({"tokenizer_config.json": {"bos_token": "<s>"}, "special_tokens_map.json": {"bos_token": "[CLS]"}}, 0),
        ({"special_tokens_map.json": {"bos_token": {"content": "[CLS]", "lstrip": False}}}, 2),
        ({"config.json": {"bos_token_id": 1}}, 1),  # GPT-2's tokenizer_config.json names no token
        ({"config.json": {"text_config": {"bos_token_id": 1}}}, 1),
        ({"config.json": {"bos_token_id": 3}}, None),  # a default of transformers, which is a word here
        ({"config.json": {"bos_token_id": 1}, "tokenizer_config.json": {"bos_token": None}}, None),  # as Qwen2 has it
        ({"tokenizer_config.json": {"bos_token": "<begin>"}}, None),
    ],
)
def test_where_the_beginning_of_text_token_is_named(tmp_path, files, begin):
    folder = save(tmp_path, bare())
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if begin is None:
        with pytest.raises(InvalidRequest, match="--bos always: this tokenizer has no beginning-of-text token"):
            RecordTokenizer(folder, "always")
    else:
        assert RecordTokenizer(folder, "always").special_tokens().record_prefix == (begin,)


def test_named_tokens_are_special_and_those_that_tokenizer_json_has_not_are_told_of_once(tmp_path, capsys):
    extra = {
        "added_tokens_decoder": {"0": {"content": "<s>"}, "9": {"content": "<x>"}, "4": {"content": "a"}},
        "additional_special_tokens": ["b", "<x>"],
        "pad_token": "<pad>",
    }
    folder = save(tmp_path, bare(), **extra)
    (folder / "added_tokens.json").write_text('{"<y>": 10, "</s>": 1}')
    tokenizer = RecordTokenizer(folder)
    assert tokenizer.special_tokens().ids == {"<s>": 0, "</s>": 1, "[CLS]": 2, "b": 4}
    (record,) = tokenizer.tokenize([Record(0, "", "a <x> <pad> <y>")])
    assert record.tokens.tolist() == [3, 4, 4, 4]
    (line,) = capsys.readouterr().err.splitlines()
    assert "'<pad>', '<x>', '<y>' and 1 more" in line and "the ids of tokenizer.json are used" in line


# ----------------------------------------------------------------------------------------------------- the digest


@pytest.mark.parametrize(
    "change, changes",
    [
        (lambda state, config: state.update(normalizer={"type": "NFC"}), True),
        (lambda state, config: state["pre_tokenizer"].update(type="Whitespace"), True),
        (lambda state, config: config.update(add_bos_token=True), True),
        (lambda state, config: config.update(bos_token="[CLS]"), True),
        (lambda state, config: config.update(mask_token="a"), True),  # one more id that --drop-special leaves out
        (lambda state, config: config.update(tokenizer_class="GPT2Tokenizer", chat_template="x"), False),
    ],
)
def test_the_digest_changes_with_what_decides_ids_and_with_nothing_else(tmp_path, change, changes):
    state, config = json.loads(bare().to_str()), dict(NAMED)
    before = save(tmp_path / "before", bare(), **config)
    change(state, config)
    after = save(tmp_path / "after", Tokenizer.from_str(json.dumps(state)), **config)
    assert (RecordTokenizer(before).digest != RecordTokenizer(after).digest) == changes


# ------------------------------------------------------------------------------------------------ through a command


def test_a_run_stores_the_tokens_that_the_model_was_trained_with(tmp_path):
    """The tiny model's tokenizer splits digits before GPT-2's pattern, which its folder names as SmolLM2's does."""
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>"}')
    texts = [text for text in TEXTS if text.strip()]
    streams = make_streams(write_corpus(tmp_path / "corpus", texts), tmp_path / "streams")
    result = extract(streams, tmp_path / "out", 0, "--model", model)
    assert result.returncode == 0, result.stderr
    alone = Tokenizer.from_file(str(model / "tokenizer.json"))
    reader = ActivationReader(str(tmp_path / "out"))
    for number, text in enumerate(texts):
        assert reader.record(f"<urn:doc:{number}>").tokens.tolist() == alone.encode(text).ids


def save_words(folder, unknown=None):
    """A copy of the tiny model whose tokenizer knows two letters that no record has."""
    shutil.copytree(MODEL, folder)
    tokenizer = Tokenizer(models.BPE({"q": 0, "z": 1, "[UNK]": 2}, [], unk_token=unknown))
    return save(folder, tokenizer, tokenizer_class="Qwen2Tokenizer", bos_token="q", add_bos_token=True)


@pytest.mark.parametrize("unknown", [None, "[UNK]"])
def test_a_tokenizer_that_knows_nothing_of_the_records_ends_the_start_with_one_line(tmp_path, unknown):
    model = save_words(tmp_path / "model", unknown)
    streams = make_streams(write_corpus(tmp_path / "corpus", ["", *["a record"] * 5]), tmp_path / "streams")
    result = extract(streams, tmp_path / "out", 0, "--model", model)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert "finds no token that it knows in any of the first 5 records that have text" in line
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not list((tmp_path / "out").rglob("commits/*"))


@pytest.mark.parametrize(
    "texts, refused",
    [
        ([], False),
        (["", " \n"], False),
        (["", "ha", "ha ha", "zzz"], False),
        (["x"] * 255 + ["zzz"], False),
        (["x"] * 256 + ["zzz"], True),
        (["", "x"], True),
    ],
)
def test_only_texts_count_and_the_first_256_of_them(tmp_path, texts, refused):
    tokenizer, records = RecordTokenizer(save_words(tmp_path / "model")), [Record(0, "", text) for text in texts]
    if refused:
        with pytest.raises(InvalidRequest, match="finds no token"):
            tokenizer.require_tokens(records)
    else:
        tokenizer.require_tokens(records)


def test_a_text_that_a_tokenizer_cannot_read_ends_the_start_with_one_line(tmp_path):
    """A word-level model without a token for unknown words."""
    model = shutil.copytree(MODEL, tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({"known": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    save(model, tokenizer)
    (model / "tokenizer_config.json").unlink()
    streams = make_streams(write_corpus(tmp_path / "corpus", ["known", "known unknown"]), tmp_path / "streams")
    result = extract(streams, tmp_path / "out", 0, "--model", model)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert result.returncode == 65 and "record <urn:doc:1>: the tokenizer cannot read it: WordLevel error" in line


# ------------------------------------------------------------------------------------------------ sentencepiece alone


def train_sentencepiece(folder, **options):
    """A folder with a tokenizer.model and nothing else."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder.mkdir(parents=True)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS * 4 for line in text.split("\n") if line]),
        model_writer=written,
        vocab_size=400,
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return folder


LLAMA2 = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
          "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}  # fmt: skip


@pytest.mark.parametrize("options", [LLAMA2, LLAMA2 | {"add_dummy_prefix": False}], ids=["llama2", "gemma"])
def test_a_sentencepiece_model_alone_is_converted_and_begins_with_its_own_token(tmp_path, capsys, options):
    from sentencepiece import SentencePieceProcessor

    folder = train_sentencepiece(tmp_path / "model", **options)
    original = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for text in TEXTS if "<s>" not in text]
    records = [Record(number, "", text) for number, text in enumerate(texts)]
    found = [record.tokens.tolist() for record in RecordTokenizer(folder).tokenize(records)]
    assert found == [[original.bos_id(), *original.encode(text)] for text in texts]
    assert "tokenizer.model is converted" in capsys.readouterr().err
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false, "bos_token": "<s>"}')
    assert RecordTokenizer(folder).special_tokens().record_prefix == ()


def test_a_sentencepiece_model_is_refused_without_its_package_and_where_it_is_of_another_kind(tmp_path, monkeypatch):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # as tiktoken writes them
    with pytest.raises(DamagedData, match="not a SentencePiece model"):
        RecordTokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InvalidRequest, match="pip install sentencepiece"):
        RecordTokenizer(tmp_path)
