"""Record formats: how the records of a file store texts, chats, preference pairs and prompts."""

from align.data.formats.chats import ChatFormat
from align.data.formats.fields import Chat, ChatRecord, Fields, as_chat, as_text, required, text, text_or_chat
from align.data.formats.pairs import Pair, PairFormat
from align.data.formats.prompt_records import PromptFormat
from align.data.formats.texts import TextFormat

__all__ = [
    "Chat",
    "ChatFormat",
    "ChatRecord",
    "Fields",
    "Pair",
    "PairFormat",
    "PromptFormat",
    "TextFormat",
    "as_chat",
    "as_text",
    "required",
    "text",
    "text_or_chat",
]
