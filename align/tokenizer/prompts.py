"""Prompts: a text or a chat, and the ids that a response continues."""

from collections.abc import Mapping, Sequence
from typing import Any

from align.tokenizer.chat_template import Message, text_of
from align.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[Message]
"""A text, or the messages of a chat"""

Columns = Mapping[str, Any]
"""Columns of a prompt's record that rewards and judges read beside the prompt: name -> value, as in JSON"""


def answers_chats(tokenizer: Tokenizer, stage: str | None) -> bool:
    """Whether prompts are rendered with the chat template; otherwise the model continues text.

    Args:
        tokenizer: the model's tokenizer.
        stage: stage of align that trained the model, or None. A pretrained model has never seen the chat template.
    """
    return tokenizer.spec.chat_template is not None and stage != "pretrain"


def as_messages(prompt: Prompt, *, system: str | None = None) -> Sequence[Message]:
    """The prompt as messages; a text becomes a user message.

    Args:
        prompt: a text or messages.
        system: system message of a prompt that has none.
    """
    messages: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return with_system(messages, system) if system else messages


def with_system(messages: Sequence[Message], system: str | None) -> list[dict[str, Any]]:
    """The messages after a system message, unless ``system`` is None or empty or they begin with one."""
    has_one = bool(messages) and messages[0]["role"] in ("system", "developer")
    first = [{"role": "system", "content": system}] if system and not has_one else []
    return [*first, *map(dict, messages)]


def as_prompt(prompt: Prompt) -> Prompt:
    """The same prompt in one form: a single user message with nothing but a text becomes that."""
    if not isinstance(prompt, str) and len(prompt) == 1 and set(prompt[0]) == {"role", "content"}:
        content = prompt[0]["content"]
        return content if prompt[0]["role"] == "user" and isinstance(content, str) else prompt
    return prompt


def as_text(prompt: Prompt) -> str:
    """The text of a prompt, or of its last message."""
    return prompt if isinstance(prompt, str) else text_of(prompt[-1].get("content"))


def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, *, chat: bool | None = None, system: str | None = None
) -> list[int]:
    """The ids that a response continues, as in training.

    Args:
        tokenizer: the model's tokenizer.
        prompt: text (the beginning of a document), or messages (rendered up to the response).
        chat: True turns a text into a user message, False a single message into its text; None keeps both.
        system: system message of a chat that has none.

    Returns:
        list[int]: never empty.

    Raises:
        ValueError: the text is empty and the tokenizer has no bos; or there are messages and the tokenizer has no chat
            template; or ``chat`` is False and there are several messages; or ``system`` is given for a text.
    """
    if chat:
        prompt = as_messages(prompt)
    elif chat is False and not isinstance(prompt, str):
        if len(prompt) > 1:
            raise ValueError(
                f"the prompt is a chat of {len(prompt)} messages, but the model continues text; give one text"
            )
        prompt = as_text(prompt)
    if not isinstance(prompt, str):
        return tokenizer.render_chat(as_messages(prompt, system=system), add_generation_prompt=True).ids
    if system:
        raise ValueError(f"the system message {system!r} needs a chat, but the model continues text; leave it out")
    ids = [*tokenizer.opening_ids, *tokenizer.encode(prompt)]
    if not ids:
        raise ValueError("the prompt is empty, and the tokenizer writes no bos token before a text; give some text")
    return ids
