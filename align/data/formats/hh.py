r"""The dialogues of Anthropic's helpful-harmless data: ``\n\nHuman: ...\n\nAssistant: ...`` in one text."""

import re
from typing import Any

from align.data.formats.fields import Chat, Fields, as_text, text

_ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_dialogue(value: Any) -> bool:
    """Whether a value is a text that begins with the user's turn."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def split_dialogue(record: Fields, field: str) -> tuple[str, str]:
    """The text of a dialogue up to its last ``Assistant:``, and the response, with one space before it.

    For models without a chat template, which read the dialogue as it is.

    Args:
        record: the record.
        field: as in ``read_dialogue``.

    Raises:
        ValueError: as ``read_dialogue`` raises, or the dialogue does not end with the assistant's turn.
    """
    if (last := read_dialogue(record, field)[-1])["role"] != "assistant":
        raise ValueError(f"field {field!r} does not end with a message from the assistant")
    dialogue = _whole(record, field)
    return dialogue[: dialogue.rindex("\n\nAssistant:") + len("\n\nAssistant:")], f" {last['content']}"


def read_dialogue(record: Fields, field: str) -> Chat:
    """The messages of a dialogue, without the whitespace around them.

    Args:
        record: the record.
        field: of the dialogue, or of a response that continues the dialogue in ``prompt``.

    Raises:
        ValueError: the field is missing, not text, or begins neither with ``Human:`` nor as ``prompt`` does.
    """
    dialogue = _whole(record, field)
    before, *turns = _TURN.split(dialogue)
    if before.strip() or not turns:
        raise ValueError(f"field {field!r} must begin with 'Human:', found {dialogue[:20]!r}")
    return [
        {"role": _ROLES[name], "content": content.strip()}
        for name, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def _whole(record: Fields, field: str) -> str:
    """The dialogue in a field, after the prompt's where the field holds a response alone."""
    dialogue = text(record, field)
    if record.get("prompt") is None:
        return dialogue
    prompt = as_text(record["prompt"], "prompt")
    if not is_dialogue(dialogue):
        return prompt + dialogue
    if not dialogue.lstrip().startswith(prompt.strip()):
        raise ValueError(f"field {field!r} is a dialogue that does not begin with that of 'prompt'; remove one of them")
    return dialogue
