"""Checked access to the fields of a record.

Every function raises ``ValueError`` with a reason that names the field; the reader adds the file and the line.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from align.data.readers import ReadFields
from align.tokenizer import chat_template

Fields = Mapping[str, Any]
"""A record: field name -> value."""

Chat = list[dict[str, Any]]
"""Messages, each with ``role``, ``content`` and what else the record says; see ``align.tokenizer.chat_template``"""

ROLES = {role: role for role in chat_template.ROLES}

UNREAD = ("functions", "documents", "images", "videos", "chat_template_kwargs")
"""Fields that decide what other libraries render, and that are not read here"""


class ChatRecord(NamedTuple):
    """The chat of a record.

    Attributes:
        messages: in order.
        tools: JSON schemas of the functions that the assistant may call; None: the record has none.
    """

    messages: Chat
    tools: list[Mapping[str, Any]] | None = None


def required(record: Fields, field: str) -> Any:
    """A field's value.

    Args:
        record: the record, or a message in it.
        field: its name.

    Raises:
        ValueError: the field is missing or null; suggests the field with the most similar name.
    """
    value = record.get(field)
    if value is None:
        similar = difflib.get_close_matches(field, list(record), 1)
        hint = f", did you mean {similar[0]!r}?" if similar and similar[0] != field else ""
        raise ValueError(f"field {field!r} is missing{hint}")
    return value


def peek(record: Fields, field: str) -> Any:
    """A field's value, None without it; a column that is only peeked at is still reported as one that is not read."""
    return record.peek(field) if isinstance(record, ReadFields) else record.get(field)


def as_text(value: Any, field: str) -> str:
    """The value, if it is a string with a UTF-8 form.

    Raises:
        ValueError: it has another type or contains a lone surrogate.
    """
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be text, found {type(value).__name__}")
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"field {field!r} contains a lone surrogate at character {error.start}") from None
    return value


def text(record: Fields, field: str) -> str:
    """The text of a required field.

    Raises:
        ValueError: the field is missing or not text.
    """
    return as_text(required(record, field), field)


def as_chat(
    value: Any, field: str, *, role: str = "role", content: str = "content", roles: Mapping[str, str] = ROLES
) -> Chat:
    """The value as messages with our keys and roles.

    Args:
        value: a list of messages.
        field: where it was found.
        role: key of a message's role.
        content: key of a message's text.
        roles: role in the file -> one of ``ROLES``.

    Raises:
        ValueError: it is not a list of messages, or a message lacks a key or has an unknown role.
    """
    if not isinstance(value, list):
        raise ValueError(f"field {field!r} must be a list of messages, found {type(value).__name__}")
    chat = []
    for number, message in enumerate(value, 1):
        try:
            chat.append(_as_message(message, role=role, content=content, roles=roles))
        except ValueError as error:
            raise ValueError(f"field {field!r}: message {number}{error}") from None
    return chat


def _as_message(value: Any, *, role: str, content: str, roles: Mapping[str, str]) -> dict[str, Any]:
    """A message with our keys first, and its other keys unless they are null or an empty list.

    Raises:
        ValueError: continues ``message 1``.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f" must have the keys {role!r} and {content!r}, found {type(value).__name__}")
    try:
        name = required(value, role)
        if not isinstance(name, str) or name not in roles:
            raise ValueError(f"field {role!r} has the unknown role {name!r}; allowed: {', '.join(roles)}")
        message: dict[str, Any] = {"role": roles[name]}
        rest = {key: item for key, item in value.items() if key not in (role, content) and item not in (None, [])}
        if "function_call" in rest:
            raise ValueError("field 'function_call' is not read; write the call as an item of 'tool_calls'")
        if value.get(content) is not None or "tool_calls" not in rest:
            words = required(value, content)
            message["content"] = words if isinstance(words, list) else as_text(words, content)
    except ValueError as error:
        raise ValueError(f": {error}") from None
    message |= {key: item for key, item in rest.items() if key not in message}
    chat_template.check_message(message)
    return message


def as_record(record: Fields, chat: Chat, own: Sequence[str]) -> ChatRecord:
    """A chat with the system message and the tools that its record has beside it.

    Args:
        record: the record.
        chat: messages that were read from it.
        own: fields from which they were read.

    Raises:
        ValueError: ``system`` or ``tools`` has another form, or contradicts the chat; or the record has a field that
            other libraries render and align does not.
    """
    for field in UNREAD:
        if field not in own and record.get(field):
            raise ValueError(f"field {field!r} is not read, and would change the chat; remove it from the record")
    system = None if "system" in own else record.get("system")
    if system not in (None, "", []):
        system = as_text(system, "system")
        first = chat[0] if chat and chat[0]["role"] in ("system", "developer") else None
        if first is None:
            chat = [{"role": "system", "content": system}, *chat]
        elif chat_template.text_of(first["content"]) != system:
            raise ValueError("field 'system' differs from the system message of the chat; remove one of them")
    return ChatRecord(chat, None if "tools" in own else _tools(record.get("tools")))


def _tools(value: Any) -> list[Mapping[str, Any]] | None:
    """Schemas as a list, or as the JSON of one: a column of Arrow can't hold schemas of different shapes."""
    if value in (None, "", []):
        return None
    tools = value
    if isinstance(value, str):
        try:
            tools = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"field 'tools' must be a list of JSON schemas, found the text {value[:40]!r}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"field 'tools' must be a list of JSON schemas, found {type(tools).__name__}")
    return tools or None


def text_or_chat(record: Fields, field: str, role: str) -> Chat:
    """The messages of a field that holds either a list of them or the text of one.

    Args:
        record: the record.
        field: a required field.
        role: of the message where the field holds text.

    Raises:
        ValueError: the field is missing or holds something else.
    """
    value = required(record, field)
    if isinstance(value, list):
        return as_chat(value, field)
    if isinstance(value, str):
        return [{"role": role, "content": as_text(value, field)}]
    raise ValueError(f"field {field!r} must be text or a list of messages, found {type(value).__name__}")


def instruction(record: Fields, field: str, context: str) -> Chat:
    """The turns of ``history`` and a user message: an instruction and, after a blank line, its context.

    Args:
        record: the record.
        field: required field of the instruction.
        context: optional field of the context, as ``history`` is.

    Raises:
        ValueError: the instruction is missing, one of the fields is not text, or ``history`` is not pairs of texts.
    """
    task, given = text(record, field), record.get(context)
    words = "" if given is None else as_text(given, context)
    history = record.get("history")
    if history not in (None, "") and not isinstance(history, list):
        raise ValueError(f"field 'history' must be a list of prompts and responses, found {type(history).__name__}")
    turns = []
    for number, pair in enumerate(history or (), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"field 'history': turn {number} must be a prompt and a response, found {repr(pair)[:80]}")
        for role, content in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": as_text(content, "history")})
    return [*turns, {"role": "user", "content": f"{task}\n\n{words}" if words else task}]
