"""The rows of ``real_model.py``: conversations whose parts have an exact number of the model's tokens."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face level office door health person art war history party result change "
    "morning reason research girl moment air teacher force education "
)


class Chat(NamedTuple):
    """A user's message and two responses."""

    prompt: str
    chosen: str
    rejected: str

    def messages(self, part: str) -> list[dict[str, str]]:
        """One part as a list of one message."""
        role = "user" if part == "prompt" else "assistant"
        return [{"role": role, "content": getattr(self, part)}]


def make_chats(setting: dict[str, Any], encode: Callable[[str], list[int]], taken: int) -> list[Chat]:
    """Random conversations, the same for tokenizers that agree.

    Args:
        setting: ``rows``, how many; ``span``, tokens of the shortest and longest part, those of the template included.
        encode: text to ids.
        taken: tokens that the template adds to the prompt.
    """
    words = [word for word in WORDS.split() if len(encode(f" {word}")) == len(encode(word)) == 1]
    draw = random.Random(0)

    def part(overhead: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(*setting["span"]) - overhead))

    # A response ends with one token of the template.
    return [Chat(part(taken), part(1), part(1)) for _ in range(setting["rows"])]
