"""Formats of responses that are labelled desirable or not, for KTO."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from align.data.formats.fields import Chat, Fields, as_chat, as_record, required, text_or_chat
from align.data.formats.pairs import PAIR_FORMATS, Pair, only_response, response_text
from align.data.formats.record_format import RecordFormat, check_prompt


class Feedback(NamedTuple):
    """A prompt, a response to it, and whether the response is desirable.

    Attributes:
        prompt: messages; the last one is from the user or a tool.
        response: the response.
        desirable: the label.
        tools: JSON schemas of the functions that the prompt offers.
    """

    prompt: Chat
    response: str
    desirable: bool
    tools: list[Mapping[str, Any]] | None = None


class FeedbackFormat(RecordFormat[Feedback]):
    """Turns a record into a response with feedback."""

    @abstractmethod
    def feedback(self, record: Fields) -> Feedback:
        """The response of a record with its prompt and label.

        Raises:
            ValueError: names the field and the reason.
        """

    def read(self, record: Fields) -> Feedback:
        """The response of a record with its prompt and label.

        Raises:
            ValueError: as ``feedback`` and ``as_record`` raise, or the prompt does not end with a message from the user
                or a tool, or the response is blank.
        """
        feedback = self.feedback(record)
        prompt = as_record(record, feedback.prompt, self.fields)
        check_prompt(prompt.messages)
        if not feedback.response.strip():
            raise ValueError("the response is blank")
        return feedback._replace(prompt=prompt.messages, tools=prompt.tools)


@dataclass(frozen=True)
class PromptCompletion(FeedbackFormat):
    """``{"prompt": ..., "completion": ..., "label": true}``; prompt and completion are text or lists of messages.

    A list in ``completion`` holds the response, alone or after the messages of the prompt.
    """

    prompt: str = "prompt"
    """Field of the prompt"""
    completion: str = "completion"
    """Field of the response"""
    label: str = "label"
    """Field of the label: true or 1 if the response is desirable, false or 0 if it is not; as text too, for CSV"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.prompt, self.completion, self.label)

    def feedback(self, record: Fields) -> Feedback:
        """See the base class."""
        prompt = text_or_chat(record, self.prompt, "user")
        completion = text_or_chat(record, self.completion, "assistant")
        response = only_response(prompt, completion, self.completion)
        return Feedback(prompt, response, _label(record, self.label))


@dataclass(frozen=True)
class Messages(FeedbackFormat):
    """``{"messages": [{"role": ..., "content": ...}], "label": true}``; the last message is the response."""

    field: str = "messages"
    """Field of the list of messages"""
    label: str = "label"
    """Field of the label: true or 1 if the response is desirable, false or 0 if it is not; as text too, for CSV"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.field, self.label)

    def feedback(self, record: Fields) -> Feedback:
        """See the base class."""
        chat = as_chat(required(record, self.field), self.field)
        if not chat or chat[-1]["role"] != "assistant":
            raise ValueError(f"field {self.field!r} does not end with a message from the assistant")
        return Feedback(chat[:-1], response_text(chat[-1], self.field), _label(record, self.label))


FEEDBACK_FORMATS: tuple[FeedbackFormat, ...] = (PromptCompletion(), Messages())

DETECTED: tuple[RecordFormat[Feedback | Pair], ...] = (*FEEDBACK_FORMATS, *PAIR_FORMATS)
"""What is detected: preference pairs too, as two responses each."""


def unpaired(content: Feedback | Pair) -> tuple[Feedback, ...]:
    """The responses of a record: one, or a pair's chosen one, which is desirable, and its rejected one."""
    if isinstance(content, Feedback):
        return (content,)
    prompt, chosen, rejected, tools = content
    return Feedback(prompt, chosen, True, tools), Feedback(prompt, rejected, False, tools)


_TEXTS = {"true": True, "1": True, "false": False, "0": False}


def _label(record: Fields, field: str) -> bool:
    """The label of a record.

    Raises:
        ValueError: it is missing, or neither true, false, 1 nor 0.
    """
    label = required(record, field)
    if isinstance(label, str):  # CSV has nothing but text
        label = _TEXTS.get(label.strip().lower(), label)
    if not isinstance(label, (int, float)) or label not in (0, 1):
        raise ValueError(f"field {field!r} must be true or 1, or false or 0, found {label!r}")
    return bool(label)
