"""From a record's fields to a text or to chat messages, with the reason when it can't be done.

Every function raises ``ValueError`` with a reason that names the field; the caller adds file and place.

From a record's fields to a prompt with two answers, or to a prompt alone, with the reason when it can't be done.

Every function raises ``ValueError`` with a reason that names the field; the caller adds file and place.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

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

PairFormat = Literal["preference", "hh", "alpaca"]

PromptFormat = Literal["prompt", "messages", "alpaca", "hh"]

_PAIR_FIELDS = {
    "preference": ("prompt", "chosen", "rejected"),
    "alpaca": ("instruction", "chosen", "rejected"),
}

_PROMPT_FIELDS = {"prompt": ("prompt",), "messages": ("messages",), "alpaca": ("instruction",)}

_ANSWERS = ("chosen", "rejected")

_HH_ROLES = {"Human": "user", "Assistant": "assistant"}

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Pair(NamedTuple):
    """A prompt and two answers to it.

    Attributes:
        prompt: messages, the last of which is the user's.
        chosen: the answer that was preferred.
        rejected: the other one.
    """

    prompt: Messages
    chosen: str
    rejected: str


def detect_pair_format(fields: Mapping[str, Any]) -> PairFormat:
    """Tell the format of a file of pairs from its first record.

    Raises:
        ValueError: the record fits no format, or more than one.
    """
    if _is_hh(fields):
        return "hh"
    if fields.get("prompt") is None and all(isinstance(fields.get(name), list) for name in _ANSWERS):
        return "preference"
    format: PairFormat = detect_format(fields, _PAIR_FIELDS, "preference")
    return format


def detect_prompt_format(fields: Mapping[str, Any]) -> PromptFormat:
    """Tell the format of a file of prompts from its first record.

    Raises:
        ValueError: the record fits no format, or more than one.
    """
    if _is_hh(fields):
        return "hh"
    format: PromptFormat = detect_format(fields, _PROMPT_FIELDS, "prompt")
    return format


def read_pair(fields: Mapping[str, Any], format: PairFormat) -> Pair:
    """The pair of a record.

    Raises:
        ValueError: a field is missing or of the wrong type, a role is unknown, the prompt does not end with the user's
            turn, the answers' prompts differ, an answer is empty, or both are equal.
    """
    pair = _PAIR_READERS[format](fields)
    _check_prompt(pair.prompt)
    for field, answer in zip(_ANSWERS, (pair.chosen, pair.rejected), strict=True):
        if not answer.strip():
            raise ValueError(f"field {field!r} is an answer with nothing in it")
    if pair.chosen == pair.rejected:
        raise ValueError("fields 'chosen' and 'rejected' are equal, so nothing is preferred")
    return pair


def read_prompt(fields: Mapping[str, Any], format: PromptFormat) -> Messages:
    """The prompt of a record; of a chat all that precedes its last answer.

    Raises:
        ValueError: a field is missing or of the wrong type, a role is unknown, or the prompt does not end with the
            user's turn.
    """
    prompt = _PROMPT_READERS[format](fields)
    _check_prompt(prompt)
    return prompt


def _check_prompt(prompt: Messages) -> None:
    if not prompt:
        raise ValueError("the prompt has no message")
    if (role := prompt[-1]["role"]) != "user":
        raise ValueError(f"the prompt ends with a turn of the {role}; it must end with one of the user")
    if not prompt[-1]["content"].strip():
        raise ValueError("the last turn of the prompt has nothing in it")


def _from_preference(fields: Mapping[str, Any]) -> Pair:
    """Answers may be texts, the assistant's message, or whole chats that begin with the prompt."""
    chosen, rejected = (field_messages(fields, name, "assistant") for name in _ANSWERS)
    if fields.get("prompt") is not None:
        prompt = field_messages(fields, "prompt", "user")
        return Pair(
            prompt, *(_after(prompt, chat, name) for name, chat in zip(_ANSWERS, (chosen, rejected), strict=True))
        )
    for name in _ANSWERS:
        if not isinstance(fields[name], list):
            require(fields, "prompt")
    return _of_chats(chosen, rejected)


def _after(prompt: Messages, messages: Messages, field: str) -> str:
    """The answer in a field that holds it alone, or after the prompt."""
    if len(messages) > 1 and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if [message["role"] for message in messages] != ["assistant"]:
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise ValueError(
            f"field {field!r} must be one turn of the assistant, alone or after the prompt's own messages; found turns "
            f"of: {roles}"
        )
    return messages[0]["content"]


def _of_chats(chosen: Messages, rejected: Messages) -> Pair:
    """Two chats that differ in their last message only."""
    for field, messages in zip(_ANSWERS, (chosen, rejected), strict=True):
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"field {field!r} does not end with a turn of the assistant")
    prompts = chosen[:-1], rejected[:-1]
    if prompts[0] != prompts[1]:
        same = [left == right for left, right in zip(*prompts, strict=False)]
        number = (same + [False]).index(False) + 1
        raise ValueError(f"the prompts of 'chosen' and 'rejected' differ from message {number} on")
    return Pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


def _from_hh(fields: Mapping[str, Any]) -> Pair:
    chosen, rejected = (_hh_messages(fields, name) for name in _ANSWERS)
    return _of_chats(chosen, rejected)


def _hh_prompt(fields: Mapping[str, Any]) -> Messages:
    if fields.get("prompt") is None:
        return _from_hh(fields).prompt
    messages = _hh_messages(fields, "prompt")
    opened = messages[-1] == {"role": "assistant", "content": ""}
    return messages[:-1] if opened else messages


def _hh_messages(fields: Mapping[str, Any], field: str) -> Messages:
    """The turns of a text; an answer alone goes on where the prompt beside it ends."""
    text = require_text(require(fields, field), field)
    if fields.get("prompt") is not None and not _opens_hh(text):
        text = require_text(fields["prompt"], "prompt") + text
    before, *turns = _HH_TURN.split(text)
    if before.strip() or not turns:
        raise ValueError(f"field {field!r} must begin with 'Human:', found {text[:20]!r}")
    return [
        {"role": _HH_ROLES[name], "content": content.strip()}
        for name, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def _is_hh(fields: Mapping[str, Any]) -> bool:
    return _opens_hh(fields.get("prompt")) or all(_opens_hh(fields.get(name)) for name in _ANSWERS)


def _opens_hh(text: Any) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:")


def _prompt_from_alpaca(fields: Mapping[str, Any]) -> Pair:
    chosen, rejected = (require_text(require(fields, name), name) for name in _ANSWERS)
    return Pair(alpaca_prompt(fields), chosen, rejected)


def _prompt_of_chat(fields: Mapping[str, Any]) -> Messages:
    messages = message_list(require(fields, "messages"), "messages")
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


_PAIR_READERS: dict[PairFormat, Callable[[Mapping[str, Any]], Pair]] = {
    "preference": _from_preference,
    "hh": _from_hh,
    "alpaca": _prompt_from_alpaca,
}

_PROMPT_READERS: dict[PromptFormat, Callable[[Mapping[str, Any]], Messages]] = {
    "prompt": lambda fields: field_messages(fields, "prompt", "user"),
    "messages": _prompt_of_chat,
    "alpaca": alpaca_prompt,
    "hh": _hh_prompt,
}
