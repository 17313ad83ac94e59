"""From a record's fields to a prompt with two answers, or to a prompt alone, with the reason when it can't be done.

Every function raises ``ValueError`` with a reason that names the field; the caller adds file and place.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from align.data.formats import (
    Messages,
    alpaca_prompt,
    detect_format,
    field_messages,
    message_list,
    require,
    require_text,
)

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


def _from_alpaca(fields: Mapping[str, Any]) -> Pair:
    chosen, rejected = (require_text(require(fields, name), name) for name in _ANSWERS)
    return Pair(alpaca_prompt(fields), chosen, rejected)


def _prompt_of_chat(fields: Mapping[str, Any]) -> Messages:
    messages = message_list(require(fields, "messages"), "messages")
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


_PAIR_READERS: dict[PairFormat, Callable[[Mapping[str, Any]], Pair]] = {
    "preference": _from_preference,
    "hh": _from_hh,
    "alpaca": _from_alpaca,
}
_PROMPT_READERS: dict[PromptFormat, Callable[[Mapping[str, Any]], Messages]] = {
    "prompt": lambda fields: field_messages(fields, "prompt", "user"),
    "messages": _prompt_of_chat,
    "alpaca": alpaca_prompt,
    "hh": _hh_prompt,
}
