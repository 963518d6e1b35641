"""Write conversations as text with the chat template of a model.

In: a folder's files, messages. Out: text. Guarantee: the text equals that of transformers' tokenizers. Cost: jinja's.
"""

from typing import Any

from ...core.errors import InvalidRequest
from .files import TokenizerFiles, read_json

_NEEDS_JINJA = "chat templates need the jinja2 package: pip install 'jinja2>=3.1.6'"


def find_template(files: TokenizerFiles) -> str | None:
    """Return the chat template of `chat_template.jinja`, tokenizer_config.json or `chat_template.json`, in this order.

    Raises InvalidRequest if there are several and none is the default.
    """
    if (files.folder / "chat_template.jinja").exists():
        return (files.folder / "chat_template.jinja").read_text("utf-8")
    found = files.settings.get("chat_template") or read_json(files.folder / "chat_template.json").get("chat_template")
    if not isinstance(found, list):
        return found or None
    by_name = {one["name"]: one["template"] for one in found}
    if "default" not in by_name:
        raise InvalidRequest(f"{files.folder}: chat templates {sorted(by_name)}, none of which is called default")
    return by_name["default"]


def render(template: str, messages: list[dict[str, str]], names: dict[str, Any]) -> str:
    """Return the text of a conversation, up to the model's next turn; `names` are the special tokens by name.

    Raises InvalidRequest (the template refuses these messages, jinja2 is missing).
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        from jinja2 import TemplateError
    except ImportError as error:
        raise InvalidRequest(_NEEDS_JINJA) from error
    try:
        (text,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **names)
    except ImportError as error:  # jinja2 is older than transformers wants it
        raise InvalidRequest(_NEEDS_JINJA) from error
    except TemplateError as error:
        raise InvalidRequest(f"the chat template of --model cannot write this conversation: {error}") from error
    return text
