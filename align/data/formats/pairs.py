"""Formats of preference pairs for reward models and DPO."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from align.data.formats.fields import (
    Chat,
    ChatRecord,
    Fields,
    as_record,
    instruction,
    required,
    text,
    text_or_chat,
)
from align.data.formats.hh import is_dialogue, read_dialogue, split_dialogue
from align.data.formats.record_format import RecordFormat, check_prompt
from align.data.formats.sharegpt import read_conversation, with_wrapped_tools
from align.data.formats.tldr import read_post, read_summary
from align.tokenizer.chat_template import text_of


class Pair(NamedTuple):
    """A prompt and two responses to it.

    Attributes:
        prompt: messages; the last one is from the user or a tool.
        chosen: the preferred response.
        rejected: the other response.
        tools: JSON schemas of the functions that the prompt offers.
    """

    prompt: Chat
    chosen: str
    rejected: str
    tools: list[Mapping[str, Any]] | None = None


class PairFormat(RecordFormat[Pair]):
    """Turns a record into a preference pair."""

    @abstractmethod
    def pair(self, record: Fields) -> Pair:
        """The pair of a record.

        Raises:
            ValueError: names the field and the reason.
        """

    def read(self, record: Fields) -> Pair:
        """The pair of a record.

        Raises:
            ValueError: as ``pair`` and ``as_record`` raise, or the prompt does not end with a message from the user or
                a tool, or a response is blank, or both responses are equal.
        """
        pair = self.pair(record)
        prompt = as_record(record, pair.prompt, self.fields)
        pair = pair._replace(prompt=prompt.messages, tools=prompt.tools)
        check_prompt(pair.prompt)
        for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            if not response.strip():
                raise ValueError(f"the {name} response is blank")
        if pair.chosen == pair.rejected:
            raise ValueError("the chosen and rejected responses are equal, so neither is preferred")
        return pair


@dataclass(frozen=True)
class HH(PairFormat):
    r"""``{"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": ...}``, two dialogues that differ in the last turn.

    Beside a dialogue in ``prompt``, ``chosen`` and ``rejected`` may hold the responses alone.
    """

    fields = ("chosen", "rejected")

    def fits(self, record: Fields) -> bool:
        """Whether the prompt, or both other fields, begin with ``Human:``."""
        begun = is_dialogue(record.get("prompt")) or all(is_dialogue(record.get(field)) for field in self.fields)
        return begun and super().fits(record)

    def pair(self, record: Fields) -> Pair:
        """See the base class."""
        chosen, rejected = (read_dialogue(record, field) for field in self.fields)
        return _from_chats(chosen, rejected, self.fields)


@dataclass(frozen=True)
class Preference(PairFormat):
    """``{"prompt": ..., "chosen": ..., "rejected": ...}``, each either text or a list of messages.

    A list in ``chosen`` or ``rejected`` holds the response, alone or after the messages of the prompt. Without
    ``prompt``, both are whole chats that differ in the last message only.
    """

    prompt: str = "prompt"
    """Field of the prompt"""
    chosen: str = "chosen"
    """Field of the preferred response"""
    rejected: str = "rejected"
    """Field of the other response"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.prompt, self.chosen, self.rejected)

    def fits(self, record: Fields) -> bool:
        """Whether a record has all fields, or no prompt but two whole chats, and is not of the HH format."""
        if record.get(self.prompt) is None:
            return all(isinstance(record.get(field), list) for field in (self.chosen, self.rejected))
        return super().fits(record) and not HH().fits(record)

    def pair(self, record: Fields) -> Pair:
        """See the base class."""
        chosen, rejected = (text_or_chat(record, field, "assistant") for field in (self.chosen, self.rejected))
        if record.get(self.prompt) is None:
            if not all(isinstance(record[field], list) for field in (self.chosen, self.rejected)):
                required(record, self.prompt)
            return _from_chats(chosen, rejected, (self.chosen, self.rejected))
        prompt = text_or_chat(record, self.prompt, "user")
        return Pair(prompt, only_response(prompt, chosen, self.chosen), only_response(prompt, rejected, self.rejected))


@dataclass(frozen=True)
class Alpaca(PairFormat):
    """``{"instruction": ..., "input": ..., "chosen": ..., "rejected": ...}``.

    ``input``, ``system`` and ``history`` (pairs of prompt and response) may be missing or empty.
    """

    fields = ("instruction", "chosen", "rejected")

    def pair(self, record: Fields) -> Pair:
        """See the base class."""
        return Pair(instruction(record, "instruction", "input"), text(record, "chosen"), text(record, "rejected"))


@dataclass(frozen=True)
class ShareGPT(PairFormat):
    """``{"conversations": [{"from": "human", "value": ...}], "chosen": {"from": "gpt", "value": ...}, ...}``.

    LLaMA-Factory's schema of preference pairs; ``chosen`` and ``rejected`` may also be the texts alone.
    """

    field: str = "conversations"
    """Field of the prompt, a list of messages"""
    chosen: str = "chosen"
    """Field of the preferred response"""
    rejected: str = "rejected"
    """Field of the other response"""
    role: str = "from"
    """Key of a message's role: human, gpt, system, developer, user, assistant or tool"""
    content: str = "value"
    """Key of a message's text"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.field, self.chosen, self.rejected)

    def pair(self, record: Fields) -> Pair:
        """See the base class."""
        prompt = self._messages(required(record, self.field), self.field)
        return Pair(prompt, self._response(record, self.chosen), self._response(record, self.rejected))

    def _response(self, record: Fields, field: str) -> str:
        value = required(record, field)
        if isinstance(value, str):
            return text(record, field)
        if not isinstance(value, Mapping):
            raise ValueError(f"field {field!r} must be text or a message, found {type(value).__name__}")
        return only_response([], self._messages([value], field), field)

    def read(self, record: Fields) -> Pair:
        """See the base class."""
        pair = super().read(record)
        return pair._replace(tools=with_wrapped_tools(ChatRecord(pair.prompt, pair.tools)).tools)

    def _messages(self, value: Any, field: str) -> Chat:
        return read_conversation(value, field, role=self.role, content=self.content)


@dataclass(frozen=True)
class HHText(PairFormat):
    """HH as plain text, for models without a chat template: the last responses, and all text before them."""

    fields = ("chosen", "rejected")

    def pair(self, record: Fields) -> Pair:
        """See the base class."""
        (prompt, chosen), (other, rejected) = (split_dialogue(record, field) for field in self.fields)
        if prompt != other:
            raise ValueError("the prompts in 'chosen' and 'rejected' differ")
        return Pair([{"role": "user", "content": prompt}], chosen, rejected)


@dataclass(frozen=True)
class TLDR(PairFormat):
    """Reddit posts and two summaries each: ``{"prompt": "...POST: ...TL;DR:", "chosen": ..., "rejected": ...}``."""

    fields = ("prompt", "chosen", "rejected")
    max_post: int = 2000
    """Longest post, characters; a longer one loses its last lines"""

    def pair(self, record: Fields) -> Pair:
        """See the base class."""
        prompt = read_post(record, "prompt", max_post=self.max_post)
        return Pair(prompt, read_summary(record, "chosen"), read_summary(record, "rejected"))


PAIR_FORMATS: tuple[PairFormat, ...] = (Preference(), HH(), Alpaca(), ShareGPT())
"""What is detected."""


def only_response(prompt: Chat, chat: Chat, field: str) -> str:
    """The text of the response in a field that holds it alone or after the prompt.

    Args:
        prompt: the messages before it.
        chat: the messages in the field.
        field: where they were found.

    Raises:
        ValueError: it holds other messages, or more than the text of a response.
    """
    if len(chat) > 1 and chat[: len(prompt)] == prompt:
        chat = chat[len(prompt) :]
    if [message["role"] for message in chat] != ["assistant"]:
        roles = ", ".join(message["role"] for message in chat) or "none"
        raise ValueError(
            f"field {field!r} must hold one message from the assistant, alone or after the messages of the prompt; "
            f"found messages from: {roles}"
        )
    return response_text(chat[0], field)


def _from_chats(chosen: Chat, rejected: Chat, fields: tuple[str, str]) -> Pair:
    """The pair of two chats that differ in the last message only."""
    for field, chat in zip(fields, (chosen, rejected), strict=True):
        if not chat or chat[-1]["role"] != "assistant":
            raise ValueError(f"field {field!r} does not end with a message from the assistant")
    prompts = chosen[:-1], rejected[:-1]
    if prompts[0] != prompts[1]:
        equal = [left == right for left, right in zip(*prompts, strict=False)]
        number = [*equal, False].index(False) + 1
        raise ValueError(f"the prompts in {fields[0]!r} and {fields[1]!r} differ from message {number}")
    return Pair(chosen[:-1], response_text(chosen[-1], fields[0]), response_text(rejected[-1], fields[1]))


def response_text(message: Mapping[str, Any], field: str) -> str:
    """The text of a response, which is all that is stored of it.

    Args:
        message: the response.
        field: where it was found.

    Raises:
        ValueError: it has more than text.
    """
    if more := [key for key in message if key not in ("role", "content")]:
        raise ValueError(
            f"the response in field {field!r} has {', '.join(more)}; only the content of a response "
            "is read: write it as text of the content, or remove it"
        )
    return text_of(message["content"])
