"""Conversations as streams: the text of the model's template, the places of what each role says, what is refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from create_dataset_streams import cli
from extraction.batching.token_selection import Selection, Selector
from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets import chat
from extraction.format.records import Record
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers import chat_templates as templates
from tests.helpers.workers import MODEL, extract_here

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<start_of_turn>", "<end_of_turn>"]
TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nan assistant \n"},
    {"role": "user", "content": "  and now?"},
    {"role": "assistant", "content": "<think>\nsecond\n</think>\n\nyes"},
]


@pytest.fixture
def model(tmp_path):
    """The tiny model with a template; a function of the template."""

    def make(template):
        folder = tmp_path / "model"
        shutil.copytree(MODEL, folder, dirs_exist_ok=True)
        pipeline = json.loads((MODEL / "tokenizer.json").read_bytes())
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        first = max([*pipeline["model"]["vocab"].values(), *(token["id"] for token in pipeline["added_tokens"])]) + 1
        pipeline["added_tokens"] += [plain | {"id": first + n, "content": text} for n, text in enumerate(SPECIAL)]
        (folder / "tokenizer.json").write_text(json.dumps(pipeline))
        settings = json.loads((MODEL / "tokenizer_config.json").read_bytes()) | {"chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


def said(conversation, name):
    return [conversation.text[first:last] for first, last in conversation.spans.get(name, [])]


@pytest.mark.slow
@pytest.mark.parametrize("template", ["CHATML", "TRIMMED", "MERGED", "THINKING", "BRACKETS"])
def test_the_text_is_that_of_transformers_and_each_span_is_what_was_said(model, template):
    from transformers import AutoTokenizer  # slow to import

    folder = model(getattr(templates, template))
    talk = TALK[1:] if template == "BRACKETS" else TALK
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, tokenize=False)
    found = RecordTokenizer(folder).converse(talk)
    assert found.text == expected
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, return_dict=False)
    for written in (found.text, RecordTokenizer(folder, "always").converse(talk).text):
        (record,) = RecordTokenizer(
            folder, "always" if "bos_token" in getattr(templates, template) else "never"
        ).tokenize([Record(0, "r", written)])
        assert record.tokens.tolist() == theirs
    assert said(found, "user") == ["user", "and now?"]
    assert said(found, "system") == ([] if template == "BRACKETS" else ["Be brief."])
    first, second = said(found, "assistant")
    assert (first, second[-3:]) == (
        "an assistant" if template == "THINKING" else "first\n</think>\n\nan assistant",
        "yes",
    )
    assert said(found, "think") == (["second"] if template == "THINKING" else ["first", "second"])


@pytest.mark.parametrize(
    "template, ends",
    [
        ("CHATML", ["<|im_end|>"] * 5),
        ("TRIMMED", ["<|eot|>"] * 5),
        ("MERGED", ["<end_of_turn>"] * 4),
        ("BRACKETS", ["<|endoftext|>"] * 2),
    ],
)
def test_the_end_of_a_turn_is_the_special_token_behind_what_was_said(model, template, ends):
    found = RecordTokenizer(model(getattr(templates, template))).converse(TALK[template == "BRACKETS" :])
    assert said(found, "turn-end") == ends
    assert found.spans["turn-end"][-1][0] >= found.spans["assistant"][-1][1]


def test_a_template_that_changes_what_is_said_and_a_mark_in_it_are_refused(model):
    tokenizer = RecordTokenizer(model(templates.UPPER))
    with pytest.raises(DamagedData, match="changes what a message says"):
        tokenizer.converse(TALK)
    with pytest.raises(DamagedData, match="U\\+E000"):
        tokenizer.converse([{"role": "user", "content": "a \ue000 b"}])


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_a_record_begins_with_one_beginning_of_text_token_or_with_none(model, bos):
    folder = model(templates.TRIMMED)
    text = RecordTokenizer(folder, bos).converse(TALK).text
    begin = RecordTokenizer(folder).special_tokens().ids["<|endoftext|>"]
    for written in (text, f"<|endoftext|>{text.removeprefix('<|endoftext|>')}"):
        (record,) = RecordTokenizer(folder, "always").tokenize([Record(0, "r", written)], offsets=True)
        assert record.tokens.tolist().count(begin) == 1 and record.tokens[0] == begin
        assert len(record.offsets) == len(record.tokens)


def share_gpt(talk):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in talk]


@pytest.mark.slow
def test_streams_of_conversations_are_extracted_by_role(model, tmp_path):
    """The rows that are stored, decoded, are what the assistant said; from a parquet and from a JSON file the same."""
    folder = model(templates.CHATML)
    pq.write_table(pa.table({"messages": [TALK, TALK[1:3]], "source": ["a", "b"]}), tmp_path / "talks.parquet")
    (tmp_path / "talks.jsonl").write_text(
        "".join(
            json.dumps({"conversations": share_gpt(talk), "source": s}) + "\n"
            for talk, s in ((TALK, "a"), (TALK[1:3], "b"))
        )
    )
    records = []
    for name in ("talks.parquet", "talks.jsonl"):
        arguments = ["chat", "--source", tmp_path / name, "--model", folder, "--num-streams", 1, "--meta-columns", "source",
                     "--output", tmp_path / f"streams-{name}"]  # fmt: skip
        result = CliRunner().invoke(cli, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        streams = str(tmp_path / f"streams-{name}")
        records.append([(r.text, r.meta) for r in open_stream(load_manifest(streams), streams, 0).read_records()])
    assert records[0] == records[1]
    assert json.loads(records[0][0][1])["source"] == "a"

    with pytest.raises(InvalidRequest, match="--positions asistant: no such rule"):
        extract_here(streams, tmp_path / "none", "--model", folder, "--positions", "asistant", "--seq-len", "64")
    extract_here(streams, tmp_path / "run", "--model", folder, "--positions", "assistant", "--seq-len", "64")
    reader = ActivationReader(str(tmp_path / "run"))
    pipeline = RecordTokenizer(folder)._tokenizer
    texts = [pipeline.decode(record.tokens.tolist(), skip_special_tokens=False) for record in reader.records()]
    assert texts == ["first\n</think>\n\nan assistantsecond\n</think>\n\nyes", "first\n</think>\n\nan assistant"]


BAD = {
    "alternate": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "late": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    "tool_calls: tool calls are not supported": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
    "role 'tool'": [{"role": "tool", "content": "5"}],
    "'image_url': only text is supported": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
    "content is null": [{"role": "user", "content": None}],
    "content is not Unicode text": [{"role": "user", "content": "a\ud83d"}],
    "thinking is not Unicode text": [{"role": "user", "content": "a", "thinking": "\ud83d"}],
    "is not JSON: maximum recursion": "[" * 100_000,
    "not a list of messages": "[]",
    "not JSON": "[",
    "cannot write this conversation: roles must alternate": [{"role": "assistant", "content": "a"}],
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_conversation_is_named_by_file_and_row_or_skipped(model, tmp_path, what):
    folder, path = model(templates.MERGED), tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in (TALK[1:3], BAD[what], TALK[1:3])))
    options = chat.ChatOptions(model=str(folder))
    said = {"late": "roles do not alternate: user, system", "alternate": "roles do not alternate: user, user"}.get(
        what, what
    )
    with pytest.raises(DamagedData, match=rf"talks.jsonl: line 2.*{said}"):
        chat.create(open_storage(str(tmp_path / "out")), str(path), 1, options)
    options = chat.ChatOptions(model=str(folder), on_bad_record="skip")
    manifest = chat.create(open_storage(str(tmp_path / "out")), str(path), 1, options).manifest
    assert (manifest.num_records, manifest.options["skipped"]["count"]) == (2, 1)


def test_without_a_template_or_messages_nothing_is_made(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InvalidRequest, match="no chat template"):
        chat.create(
            open_storage(str(tmp_path / "out")), str(tmp_path / "x.jsonl"), 1, chat.ChatOptions(model=str(MODEL))
        )


def test_parts_of_text_are_joined(model, tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "user", "content": parts}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    options = chat.ChatOptions(model=str(model(templates.CHATML)), next_turn=True)
    chat.create(open_storage(str(tmp_path / "out")), str(tmp_path / "x.jsonl"), 1, options)
    (record,) = open_stream(load_manifest(str(tmp_path / "out")), str(tmp_path / "out"), 0).read_records()
    assert record.text == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    (tokenized,) = RecordTokenizer(model(templates.CHATML)).tokenize([record], offsets=True)
    assert Selector(Selection.parse("turn-end")).kept(tokenized, len(tokenized.tokens)).sum() == 1
