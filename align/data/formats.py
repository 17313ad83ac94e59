"""From a record's fields to a text or to chat messages, with the reason when it can't be done.

Every function raises ``ValueError`` with a reason that names the field; the caller adds file and place.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

ChatFormat = Literal["messages", "prompt_completion", "alpaca", "sharegpt"]
Messages = list[dict[str, str]]

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ROLES}
CHAT_FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
}


def detect_format(
    fields: Mapping[str, Any], formats: Mapping[str, Sequence[str]] = CHAT_FIELDS, kind: str = "chat"
) -> Any:
    """Tell the format of a file from the fields of its first record.

    Args:
        fields: of the record.
        formats: name -> the fields that a record of it has.
        kind: what the formats are of, for messages.

    Raises:
        ValueError: the fields fit no format, or more than one.
    """
    fits = [name for name, needed in formats.items() if all(fields.get(field) is not None for field in needed)]
    if len(fits) == 1:
        return fits[0]
    found = ", ".join(map(repr, fields)) or "none"
    if fits:
        raise ValueError(f"the fields {found} fit more than one format: set format to {' or '.join(fits)}")
    known = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in formats.items())
    raise ValueError(f"the fields {found} fit no {kind} format ({known})")


def require_text(value: Any, field: str) -> str:
    """Check that a value is Unicode text.

    Raises:
        ValueError: it is something else, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be text, found {type(value).__name__}")
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"field {field!r} holds a lone surrogate at character {error.start}") from None
    return value


def require(fields: Mapping[str, Any], name: str, *, inside: str = "") -> Any:
    """The field's value, or an error that names the nearest field there is."""
    value = fields.get(name)
    if value is None:
        near = difflib.get_close_matches(name, list(fields), 1)
        hint = f", did you mean {near[0]!r}?" if near and near[0] != name else ""
        raise ValueError(f"field {inside + name!r} is missing{hint}")
    return value


def document_text(fields: Mapping[str, Any], field: str) -> str:
    """The text of a document.

    Raises:
        ValueError: the field is missing, not text, or empty.
    """
    text = require_text(require(fields, field), field)
    if not text:
        raise ValueError(f"field {field!r} is an empty document")
    return text


def chat_messages(fields: Mapping[str, Any], format: ChatFormat) -> Messages:
    """The messages of a chat, each with ``role`` and ``content``.

    Raises:
        ValueError: a field is missing or of the wrong type, a role is unknown, no assistant turn, or an empty one.
    """
    messages = _READERS[format](fields)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("the chat has no assistant turn, so there is nothing to learn from it")
    for index in answers:
        if not messages[index]["content"].strip():
            raise ValueError(f"message {index + 1} is an assistant turn with nothing in it")
    return messages


def _from_messages(fields: Mapping[str, Any]) -> Messages:
    return message_list(require(fields, "messages"), "messages")


def field_messages(fields: Mapping[str, Any], field: str, role: str) -> Messages:
    """The messages of a field that holds a text, said by ``role``, or a list of messages.

    Raises:
        ValueError: it is missing or holds something else.
    """
    value = require(fields, field)
    if isinstance(value, list):
        return message_list(value, field)
    if isinstance(value, str):
        return [{"role": role, "content": require_text(value, field)}]
    raise ValueError(f"field {field!r} must be text or a list of messages, found {type(value).__name__}")


def alpaca_prompt(fields: Mapping[str, Any]) -> Messages:
    """The question of an alpaca record: the instruction and, after an empty line, the input.

    Raises:
        ValueError: the instruction is missing, or one of them is not text.
    """
    prompt = require_text(require(fields, "instruction"), "instruction")
    context = require_text(fields.get("input") or "", "input")
    return [{"role": "user", "content": f"{prompt}\n\n{context}" if context else prompt}]


def _from_prompt_completion(fields: Mapping[str, Any]) -> Messages:
    return field_messages(fields, "prompt", "user") + field_messages(fields, "completion", "assistant")


def _from_alpaca(fields: Mapping[str, Any]) -> Messages:
    output = require_text(require(fields, "output"), "output")
    return [*alpaca_prompt(fields), {"role": "assistant", "content": output}]


def _from_sharegpt(fields: Mapping[str, Any]) -> Messages:
    return message_list(
        require(fields, "conversations"), "conversations", role_key="from", content_key="value", roles=_SHAREGPT_ROLES
    )


def message_list(
    value: Any,
    field: str,
    *,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] | None = None,
) -> Messages:
    """Check a list of messages and bring it to our names."""
    names = roles or {role: role for role in ROLES}
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise ValueError(f"field {field!r} must be a list of messages, found {type(value).__name__}")
    messages = []
    for index, message in enumerate(value):
        inside = f"{field}[{index}]."
        role = require(message, role_key, inside=inside)
        if role not in names:
            raise ValueError(f"field {inside + role_key!r} is the unknown role {role!r}; known: {', '.join(names)}")
        content = require_text(require(message, content_key, inside=inside), inside + content_key)
        messages.append({"role": names[role], "content": content})
    return messages


_READERS: dict[ChatFormat, Callable[[Mapping[str, Any]], Messages]] = {
    "messages": _from_messages,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
    "sharegpt": _from_sharegpt,
}
