"""Checked access to the fields of a record.

Every function raises ``ValueError`` with a reason that names the field; the reader adds the file and the line.
"""

import difflib
from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]
"""A record: field name -> value."""

Chat = list[dict[str, str]]
"""Messages, each with ``role`` and ``content``."""

ROLES = {role: role for role in ("system", "user", "assistant")}


def required(record: Fields, field: str, *, inside: str = "") -> Any:
    """A field's value.

    Args:
        record: the record, or a message in it.
        field: its name.
        inside: path of ``record`` for the error message, such as ``messages[0].``.

    Raises:
        ValueError: the field is missing or null; suggests the field with the most similar name.
    """
    value = record.get(field)
    if value is None:
        similar = difflib.get_close_matches(field, list(record), 1)
        hint = f", did you mean {similar[0]!r}?" if similar and similar[0] != field else ""
        raise ValueError(f"field {inside + field!r} is missing{hint}")
    return value


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
        roles: role in the file -> system, user or assistant.

    Raises:
        ValueError: it is not a list of messages, or a message lacks a key or has an unknown role.
    """
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise ValueError(f"field {field!r} must be a list of messages, found {type(value).__name__}")
    chat = []
    for index, message in enumerate(value):
        inside = f"{field}[{index}]."
        name = required(message, role, inside=inside)
        if name not in roles:
            raise ValueError(f"field {inside + role!r} has the unknown role {name!r}; allowed: {', '.join(roles)}")
        words = as_text(required(message, content, inside=inside), inside + content)
        chat.append({"role": roles[name], "content": words})
    return chat


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
    """A user message: an instruction and, where there is one, its context after a blank line.

    Args:
        record: the record.
        field: required field of the instruction.
        context: optional field of the context.

    Raises:
        ValueError: the instruction is missing, or one of the fields is not text.
    """
    task, given = text(record, field), as_text(record.get(context) or "", context)
    return [{"role": "user", "content": f"{task}\n\n{given}" if given else task}]
