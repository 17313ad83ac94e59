"""Formats of prompts for PPO, GRPO and RLOO."""

from abc import abstractmethod
from dataclasses import dataclass

from align.data.formats.fields import (
    Chat,
    ChatRecord,
    Fields,
    as_chat,
    as_record,
    instruction,
    required,
    text_or_chat,
)
from align.data.formats.hh import is_dialogue, read_dialogue
from align.data.formats.pairs import HH as HHPairs
from align.data.formats.pairs import HHText as HHTextPairs
from align.data.formats.record_format import RecordFormat, check_prompt
from align.data.formats.tldr import read_post


class PromptFormat(RecordFormat[ChatRecord]):
    """Turns a record into the messages of a prompt."""

    @abstractmethod
    def prompt(self, record: Fields) -> Chat:
        """The messages of a record up to the response.

        Raises:
            ValueError: names the field and the reason.
        """

    def read(self, record: Fields) -> ChatRecord:
        """The messages of a record up to the response, with its ``system`` and ``tools``.

        Raises:
            ValueError: as ``prompt`` and ``as_record`` raise, or the prompt does not end with a message from the user
                or a tool.
        """
        prompt = as_record(record, self.prompt(record), self.fields)
        check_prompt(prompt.messages)
        return prompt


@dataclass(frozen=True)
class Prompt(PromptFormat):
    """``{"prompt": ...}``, either text or a list of messages; other fields, such as responses, are ignored."""

    field: str = "prompt"
    """Field of the prompt"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.field,)

    def fits(self, record: Fields) -> bool:
        """Whether a record has the field, unless that holds a dialogue of the HH format."""
        return super().fits(record) and not is_dialogue(record[self.field])

    def prompt(self, record: Fields) -> Chat:
        """See the base class."""
        return text_or_chat(record, self.field, "user")


@dataclass(frozen=True)
class Messages(PromptFormat):
    """``{"messages": [{"role": ..., "content": ...}]}``, without the last message if that is the assistant's."""

    field: str = "messages"
    """Field of the list of messages"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.field,)

    def prompt(self, record: Fields) -> Chat:
        """See the base class."""
        chat = as_chat(required(record, self.field), self.field)
        return chat[:-1] if chat and chat[-1]["role"] == "assistant" else chat


@dataclass(frozen=True)
class Alpaca(PromptFormat):
    """``{"instruction": ..., "input": ...}``; ``input``, ``system`` and ``history`` may be missing or empty."""

    fields = ("instruction",)

    def prompt(self, record: Fields) -> Chat:
        """See the base class."""
        return instruction(record, "instruction", "input")


@dataclass(frozen=True)
class HH(PromptFormat):
    r"""``{"prompt": "\n\nHuman: ...\n\nAssistant:"}``, or a preference pair of the HH format."""

    fields = ("prompt",)

    def fits(self, record: Fields) -> bool:
        """Whether the prompt, or without one both responses, begin with ``Human:``."""
        prompt = record.get("prompt")
        return HHPairs().fits(record) if prompt is None else is_dialogue(prompt)

    def prompt(self, record: Fields) -> Chat:
        """See the base class."""
        if record.get("prompt") is None:
            return HHPairs().pair(record).prompt
        chat = read_dialogue(record, "prompt")
        return chat[:-1] if chat[-1] == {"role": "assistant", "content": ""} else chat


@dataclass(frozen=True)
class Question(PromptFormat):
    """``{"question": ...}``, such as those of GSM8K; the answer is for the reward."""

    fields = ("question",)

    def prompt(self, record: Fields) -> Chat:
        """See the base class."""
        return text_or_chat(record, "question", "user")


@dataclass(frozen=True)
class HHText(PromptFormat):
    """HH as plain text, for models without a chat template: all text up to the last response of a preference pair."""

    fields = ("chosen", "rejected")

    def prompt(self, record: Fields) -> Chat:
        """See the base class."""
        return HHTextPairs().pair(record).prompt


@dataclass(frozen=True)
class TLDR(PromptFormat):
    """Reddit posts to summarize: ``{"prompt": "...POST: ...TL;DR:"}`` (trl-lib/tldr and trl-lib/tldr-preference)."""

    fields = ("prompt",)
    max_post: int = 2000
    """Longest post, characters; a longer one loses its last lines"""

    def prompt(self, record: Fields) -> Chat:
        """See the base class."""
        return read_post(record, "prompt", max_post=self.max_post)


PROMPT_FORMATS: tuple[PromptFormat, ...] = (Prompt(), Messages(), Alpaca(), HH(), Question())
"""What is detected."""


_BY_NAME = {type(format).__name__: format for format in (*PROMPT_FORMATS, HHText(), TLDR())}


def prompt_format(name: str) -> PromptFormat:
    """The prompt format of a name, with its default settings.

    Raises:
        ValueError: there is none.
    """
    if name not in _BY_NAME:
        raise ValueError(f"no prompt format {name!r}; it must be one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
