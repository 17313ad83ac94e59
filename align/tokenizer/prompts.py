"""What a network is asked: a text or a chat, and the ids that its answer continues."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or the messages of a chat."""


def answers_chats(tokenizer: "Tokenizer", stage: str | None) -> bool:
    """Whether a model is asked in turns of a chat; another is given text to continue.

    Args:
        tokenizer: the model's own.
        stage: of align that made the model, or None; a pretrained one never saw the template that its tokenizer has.
    """
    return tokenizer.spec.chat_template is not None and stage != "pretrain"


def as_messages(prompt: Prompt) -> Sequence[Mapping[str, str]]:
    """The prompt as messages: a text is what the user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def as_text(prompt: Prompt) -> str:
    """What a prompt asks: the text itself, or the last message's."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def encode_prompt(tokenizer: "Tokenizer", prompt: Prompt, *, chat: bool | None = None) -> list[int]:
    """The ids a response to a prompt continues, as the network saw them in training.

    Args:
        tokenizer: the network's own.
        prompt: raw text (the beginning of a document), or messages (rendered up to the assistant's turn).
        chat: True takes a text as what the user says, False a chat of one message as its text; None takes both as they
            are.

    Returns:
        list[int]: never empty.

    Raises:
        ValueError: an empty text with a tokenizer that has nothing to begin a document with; messages with a tokenizer
            that has no chat template; or several messages for what is not a chat.
    """
    if chat:
        prompt = as_messages(prompt)
    elif chat is False and not isinstance(prompt, str):
        if len(prompt) > 1:
            raise ValueError(
                f"the prompt is a chat of {len(prompt)} messages, the model continues texts: give one text"
            )
        prompt = as_text(prompt)
    if not isinstance(prompt, str):
        return tokenizer.render_chat(prompt, add_generation_prompt=True).ids
    ids = [*tokenizer.opening_ids, *tokenizer.encode(prompt)]
    if not ids:
        raise ValueError("the prompt is empty and this tokenizer has no token that begins a document: give some text")
    return ids
