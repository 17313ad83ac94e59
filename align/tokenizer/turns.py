"""The ids between two turns of the assistant: what the chat template writes around a message from outside."""

from collections.abc import Mapping
from typing import Any

from align.tokenizer.tokenizer import Tokenizer

_BEFORE = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def turn_ids(tokenizer: Tokenizer, message: Mapping[str, Any]) -> list[int]:
    """The ids that follow a sampled stop token when ``message`` comes next and then the assistant's turn begins.

    Found by rendering a short chat with and without the message: what the second adds after the assistant's stop token.
    So nothing that the model sampled is tokenized again.

    Args:
        tokenizer: with a chat template.
        message: role and content.

    Raises:
        ValueError: the template changes earlier turns when a message follows, or does not end a turn.
    """
    before = tokenizer.render_chat(_BEFORE).ids
    whole = tokenizer.render_chat([*_BEFORE, message], add_generation_prompt=True).ids
    # Rendering has checked that the template ends the assistant's turn with a stop token.
    last = 1 + max(index for index, token in enumerate(before) if token in tokenizer.stop_ids)
    if list(whole[:last]) != list(before[:last]):
        raise ValueError(
            "the chat template renders an assistant's turn differently when a message follows it, so turns that were "
            "sampled can't be continued: use a template that only appends"
        )
    return list(whole[last:])
