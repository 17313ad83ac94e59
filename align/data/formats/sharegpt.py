"""ShareGPT's conversations, with tools as in LLaMA-Factory.

A ``function_call`` is the JSON of one call or a list of calls, an ``observation`` is a result, and ``tools`` beside the
conversation is the JSON of a list of schemas.
"""

import json
from typing import Any

from align.data.formats.fields import ROLES, Chat, ChatRecord, as_chat
from align.tokenizer.chat_template import text_of

_CALL = "function_call"
_ROLES = {"human": "user", "gpt": "assistant", _CALL: "assistant", "observation": "tool"} | ROLES


def read_conversation(value: Any, field: str, *, role: str = "from", content: str = "value") -> Chat:
    """The messages of a conversation, calls as ``tool_calls``.

    Args:
        value: a list of messages.
        field: where it was found.
        role: key of a message's role.
        content: key of a message's text.

    Raises:
        ValueError: as ``as_chat`` raises, or a ``function_call`` is not the JSON of calls.
    """
    chat = as_chat(value, field, role=role, content=content, roles=_ROLES)
    for number, (message, turn) in enumerate(zip(chat, value, strict=True), 1):
        if turn[role] == _CALL:
            try:
                message["tool_calls"] = _calls(text_of(message.pop("content", "")))
            except ValueError as error:
                raise ValueError(f"field {field!r}: message {number}: {error}") from None
    return chat


def with_wrapped_tools(chat: ChatRecord) -> ChatRecord:
    """The chat with each bare schema as ``{"type": "function", "function": schema}``, which chat templates expect."""
    if chat.tools is None:
        return chat
    return chat._replace(
        tools=[tool if "function" in tool else {"type": "function", "function": tool} for tool in chat.tools]
    )


def _calls(words: str) -> list[dict[str, Any]]:
    """Parse the JSON of one call or a list of calls.

    Raises:
        ValueError: it is anything else.
    """
    try:
        value = json.loads(words)
    except (ValueError, RecursionError):
        value = None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and call.keys() == {"name", "arguments"} for call in calls):
        raise ValueError(
            f'a {_CALL} must be the JSON of {{"name": ..., "arguments": ...}} or a list of these, found {words[:60]!r}'
        )
    return [{"type": "function", "function": call} for call in calls]
