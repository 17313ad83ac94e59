"""Chat templates for tokenizers that have none, as those of pretrained models."""

from dataclasses import replace
from pathlib import Path

from align.tokenizer.tokenizer import Tokenizer

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The contents of the messages one after another, eos after each response: prompts are plain text"""

_PLAIN = "plain"


def with_chat_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    """The tokenizer with another chat template.

    Args:
        tokenizer: left unchanged.
        template: Jinja source, the path of a file of it, or ``plain``; None: the tokenizer's own.

    Raises:
        ValueError: the template is none of these, the file is not UTF-8, or the tokenizer has no eos token for
            ``plain``.
    """
    if template is None:
        return tokenizer
    if template != _PLAIN:
        source = template if set(template) & set("{}") else _read(template)
        return Tokenizer(replace(tokenizer.spec, chat_template=source))
    if tokenizer.eos_id is None:
        raise ValueError(f"chat_template is {_PLAIN}, but the tokenizer has no eos token to end a response with")
    named = {"eos_token": tokenizer.token_text(tokenizer.eos_id)}
    source = PLAIN
    if tokenizer.opening_ids:
        named["bos_token"] = "".join(map(tokenizer.token_text, tokenizer.opening_ids))
        source = "{{ bos_token }}" + PLAIN
    return Tokenizer(replace(tokenizer.spec, chat_template=source, config={**tokenizer.spec.config, **named}))


def _read(name: str) -> str:
    """The Jinja source in a file."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"chat_template is {name!r}: no such file; it must be a file such as chat_template.jinja, {_PLAIN} or "
            "Jinja source"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"chat_template: {path} is not UTF-8: {error}") from None
