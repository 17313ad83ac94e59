r"""The dialogues of Anthropic's helpful-harmless data: ``\n\nHuman: ...\n\nAssistant: ...`` in one text."""

import re
from typing import Any

from align.data.formats.fields import Chat, Fields, as_text, text

_ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_dialogue(value: Any) -> bool:
    """Whether a value is a text that begins with the user's turn."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def read_dialogue(record: Fields, field: str) -> Chat:
    """The messages of a dialogue, without the whitespace around them.

    Args:
        record: the record.
        field: of the dialogue, or of a response that continues the dialogue in ``prompt``.

    Raises:
        ValueError: the field is missing, not text, or does not begin with ``Human:``.
    """
    dialogue = text(record, field)
    if record.get("prompt") is not None and not is_dialogue(dialogue):
        dialogue = as_text(record["prompt"], "prompt") + dialogue
    before, *turns = _TURN.split(dialogue)
    if before.strip() or not turns:
        raise ValueError(f"field {field!r} must begin with 'Human:', found {dialogue[:20]!r}")
    return [
        {"role": _ROLES[name], "content": content.strip()}
        for name, content in zip(turns[::2], turns[1::2], strict=True)
    ]
