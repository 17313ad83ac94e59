"""Chat templates for tokenizers that have none, as those of pretrained models."""

from dataclasses import replace

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
        template: Jinja source, or ``plain``; None: the tokenizer's own.

    Raises:
        ValueError: the template is a single word other than ``plain``, or the tokenizer has no eos token for it.
    """
    if template is None:
        return tokenizer
    if template != _PLAIN:
        if not set(template) & set("{}"):
            raise ValueError(f"chat_template is {template!r}; it must be {_PLAIN} or Jinja source")
        return Tokenizer(replace(tokenizer.spec, chat_template=template))
    if tokenizer.eos_id is None:
        raise ValueError(f"chat_template is {_PLAIN}, but the tokenizer has no eos token to end a response with")
    named = {"eos_token": tokenizer.token_text(tokenizer.eos_id)}
    source = PLAIN
    if tokenizer.opening_ids:
        named["bos_token"] = "".join(map(tokenizer.token_text, tokenizer.opening_ids))
        source = "{{ bos_token }}" + PLAIN
    return Tokenizer(replace(tokenizer.spec, chat_template=source, config={**tokenizer.spec.config, **named}))
