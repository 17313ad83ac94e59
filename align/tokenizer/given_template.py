"""Chat templates for tokenizers that have none, as those of pretrained models."""

from dataclasses import replace

from align.tokenizer.tokenizer import Tokenizer

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The contents of the messages one after another, eos after each response: prompts are plain text"""

_NAMED = {"plain": PLAIN}


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
    if template not in _NAMED and not set(template) & set("{}"):
        raise ValueError(f"chat_template is {template!r}; it must be Jinja source or one of {', '.join(_NAMED)}")
    source = _NAMED.get(template, template)
    config = dict(tokenizer.spec.config)
    if source == PLAIN:
        if tokenizer.eos_id is None:
            raise ValueError("chat_template is plain, but the tokenizer has no eos token to end a response with")
        config["eos_token"] = tokenizer.token_text(tokenizer.eos_id)
    return Tokenizer(replace(tokenizer.spec, chat_template=source, config=config))
