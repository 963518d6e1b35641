"""Conversations as transformers' own tokenizers write them, from whichever file has the template."""

import json
import shutil
from datetime import datetime

import pytest

from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import InvalidRequest
from extraction.format.records import Record
from tests.helpers.workers import MODEL

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m['role'] }}] {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [{"role": role, "content": said} for role, said in (("user", " a grid  "), ("assistant", "1 2"), ("user", "b"))]
OTHER = "{{ messages[0].content }}"
NAMED = {"tool_use": OTHER, "default": TEMPLATE}


@pytest.fixture
def folder(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    return tmp_path


def setting(folder, template):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"chat_template": template}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [
        lambda folder: setting(folder, TEMPLATE),
        lambda folder: setting(folder, [{"name": name, "template": template} for name, template in NAMED.items()]),
        lambda folder: (setting(folder, OTHER), (folder / "chat_template.jinja").write_text(TEMPLATE)),
    ],
)
def test_a_conversation_is_written_as_transformers_does(folder, write):
    from transformers import AutoTokenizer  # slow to import

    write(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert expected == "<|endoftext|>[user] a grid\n[assistant] 1 2\n[user] b\n[assistant]"
    assert RecordTokenizer(folder).has_chat_template and RecordTokenizer(folder).chat(TALK) == expected
    assert RecordTokenizer(folder, "always").chat(TALK) == expected


def test_the_template_of_a_processor_is_taken_where_there_is_no_other(folder):
    assert not RecordTokenizer(folder).has_chat_template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": OTHER}))
    assert RecordTokenizer(folder).chat(TALK) == " a grid  "


def test_what_a_template_cannot_write_is_refused(folder):
    setting(folder, TEMPLATE)
    with pytest.raises(InvalidRequest, match="cannot write this conversation: no system"):
        RecordTokenizer(folder).chat([{"role": "system", "content": "be brief"}])
    setting(folder, [{"name": "rag", "template": TEMPLATE}, {"name": "tools", "template": TEMPLATE}])
    with pytest.raises(InvalidRequest, match=r"\['rag', 'tools'\], none of which is called default"):
        RecordTokenizer(folder).has_chat_template  # noqa: B018


def test_the_digest_of_a_template_changes_with_it(folder):
    setting(folder, TEMPLATE)
    first = RecordTokenizer(folder).chat_digest
    setting(folder, OTHER)
    assert RecordTokenizer(folder).chat_digest != first


DATED = "{{ strftime_now('%d %b %Y') }}: {% for m in messages %}{{ m.content }}{% endfor %}"


def test_the_date_that_a_template_writes_is_not_that_of_today(folder):
    setting(folder, DATED)
    assert RecordTokenizer(folder).chat(TALK[:1]) == "26 Jul 2024:  a grid  "
    assert RecordTokenizer(folder).converse(TALK[:1], date=datetime(2025, 1, 2)).text == "02 Jan 2025:  a grid  "


@pytest.mark.slow
@pytest.mark.parametrize("bos", ["auto", "always"])
def test_ids_are_those_of_apply_chat_template_where_a_text_begins_otherwise_than_its_middle(tmp_path, bos):
    """As Llama 2's pipeline marks the first word of a text, which is not first behind a token that the template wrote."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast  # slow to import

    vocab = {"<s>": 0, "<unk>": 1, "\u2581": 2} | {letter: 3 + n for n, letter in enumerate("abcdefgh")}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    theirs.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    theirs.save_pretrained(tmp_path)
    talk = [{"role": "user", "content": "abc"}]
    ours = RecordTokenizer(tmp_path, bos)
    (record,) = ours.tokenize([Record(0, "r", ours.converse(talk).text)])
    assert record.tokens.tolist() == theirs.apply_chat_template(talk, return_dict=False) == [0, 3, 4, 5]
