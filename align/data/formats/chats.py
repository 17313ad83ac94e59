"""Formats of chats for supervised fine-tuning."""

from abc import abstractmethod
from dataclasses import dataclass

from align.data.formats.fields import (
    Chat,
    ChatRecord,
    Fields,
    as_chat,
    as_record,
    instruction,
    peek,
    required,
    text,
    text_or_chat,
)
from align.data.formats.hh import is_dialogue, read_dialogue, split_dialogue
from align.data.formats.record_format import RecordFormat
from align.data.formats.sharegpt import read_conversation, with_wrapped_tools
from align.data.formats.tldr import read_post, read_summary
from align.tokenizer.chat_template import text_of


class ChatFormat(RecordFormat[ChatRecord]):
    """Turns a record into the messages of a chat."""

    @abstractmethod
    def messages(self, record: Fields) -> Chat:
        """The messages of a record, each with ``role``, ``content`` and what else the chat template reads.

        Raises:
            ValueError: names the field and the reason.
        """

    def read(self, record: Fields) -> ChatRecord:
        """The chat of a record, with its ``system`` and ``tools``.

        Raises:
            ValueError: as ``messages`` and ``as_record`` raise, or there is no response to learn from, or a response is
                blank, or feedback says that it is undesirable.
        """
        # Other labels, such as the text "false", may mean anything: they are reported as a column that is not read.
        if peek(record, "label") in (False, True) and not record["label"]:
            raise ValueError(
                f"field 'label' is {record['label']!r}: the response is undesirable, so there is nothing to learn from "
                "it; train on feedback with KTO and FeedbackData"
            )
        chat = as_record(record, self.messages(record), self.fields)
        responses = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if not responses:
            raise ValueError("the chat has no message from the assistant, so there is nothing to learn from it")
        if not any(chat.messages[index].get("weight", 1) for index in responses):
            raise ValueError("all messages from the assistant have weight 0, so there is nothing to learn from them")
        for index in responses:
            message = chat.messages[index]
            if not text_of(message.get("content")).strip() and not message.get("tool_calls"):
                raise ValueError(f"message {index + 1}, from the assistant, is blank")
        return chat


@dataclass(frozen=True)
class Messages(ChatFormat):
    """``{"messages": [{"role": ..., "content": ...}], "tools": [...]}``, with calls, results and reasoning."""

    field: str = "messages"
    """Field of the list of messages"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.field,)

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        return as_chat(required(record, self.field), self.field)


@dataclass(frozen=True)
class PromptCompletion(ChatFormat):
    """``{"prompt": ..., "completion": ...}``, both either text or a list of messages.

    Only the completion is trained on, as in TRL: responses in the prompt are context.
    """

    prompt: str = "prompt"
    """Field of the prompt"""
    completion: str = "completion"
    """Field of the response"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.prompt, self.completion)

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        prompt = text_or_chat(record, self.prompt, "user")
        context = [message | {"weight": 0} if message["role"] == "assistant" else message for message in prompt]
        return context + text_or_chat(record, self.completion, "assistant")


@dataclass(frozen=True)
class Alpaca(ChatFormat):
    """``{"instruction": ..., "input": ..., "output": ...}`` of Stanford Alpaca.

    ``input``, ``system`` and ``history`` (pairs of prompt and response) may be missing or empty.
    """

    fields = ("instruction", "output")

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        response = {"role": "assistant", "content": text(record, "output")}
        return [*instruction(record, "instruction", "input"), response]


@dataclass(frozen=True)
class Dolly(ChatFormat):
    """``{"instruction": ..., "context": ..., "response": ...}`` of Databricks Dolly 15k; ``context`` may be empty."""

    fields = ("instruction", "response")

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        response = {"role": "assistant", "content": text(record, "response")}
        return [*instruction(record, "instruction", "context"), response]


@dataclass(frozen=True)
class ShareGPT(ChatFormat):
    """``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}``, also with tools."""

    field: str = "conversations"
    """Field of the list of messages"""
    role: str = "from"
    """Key of a message's role: human, gpt, function_call, observation, system, developer, user, assistant or tool"""
    content: str = "value"
    """Key of a message's text"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.field,)

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        return read_conversation(required(record, self.field), self.field, role=self.role, content=self.content)

    def read(self, record: Fields) -> ChatRecord:
        """See the base class."""
        return with_wrapped_tools(super().read(record))


@dataclass(frozen=True)
class HH(ChatFormat):
    r"""``{"chosen": "\n\nHuman: ...\n\nAssistant: ..."}``, the better dialogue of Anthropic's helpful-harmless data."""

    fields = ("chosen",)

    def fits(self, record: Fields) -> bool:
        """Whether the field begins with ``Human:``."""
        return is_dialogue(record.get("chosen"))

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        return read_dialogue(record, "chosen")


@dataclass(frozen=True)
class HHText(ChatFormat):
    """The same as plain text, for models without a chat template: the last response, and all text before it."""

    fields = ("chosen",)

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        prompt, response = split_dialogue(record, "chosen")
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


@dataclass(frozen=True)
class TLDR(ChatFormat):
    """Reddit posts and summaries: ``{"prompt": "...POST: ...TL;DR:", "completion": ...}`` (trl-lib/tldr)."""

    fields = ("prompt", "completion")
    max_post: int = 2000
    """Longest post, characters; a longer one loses its last lines"""

    def messages(self, record: Fields) -> Chat:
        """See the base class."""
        prompt = read_post(record, "prompt", max_post=self.max_post)
        return [*prompt, {"role": "assistant", "content": read_summary(record, "completion")}]


CHAT_FORMATS: tuple[ChatFormat, ...] = (Messages(), PromptCompletion(), Alpaca(), Dolly(), ShareGPT(), HH())
"""What is detected."""
