"""Prompt files: texts or messages, one JSON object per line."""

import json
from pathlib import Path
from typing import Any

from align.tokenizer.chat_template import check_messages
from align.tokenizer.prompts import Prompt, as_messages


def read_prompts(file: str | Path, *, skip: int = 0, limit: int | None = None) -> list[Prompt]:
    """The prompts of a JSONL file of ``{"prompt": text or messages}``.

    Args:
        file: path of the JSONL file.
        skip: number of prompts to skip at the start.
        limit: number of prompts to read after those; None reads all.

    Returns:
        list: at least one prompt.

    Raises:
        ValueError: a line has no prompt (the message names file and line), or no prompts remain.
    """
    prompts: list[Prompt] = []
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(prompts) >= limit:
                break
            if number <= skip:
                continue
            prompts.append(_prompt_of(line, f"{file}:{number}"))
    if not prompts:
        raise ValueError(f"{file} holds no prompts" + (f" after the first {skip}" if skip else ""))
    return prompts


def _prompt_of(line: str, where: str) -> Prompt:
    try:
        prompt: Any = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: not a JSON object with the field 'prompt'") from error
    turns = as_messages(prompt)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: field 'prompt' must be text or a list of messages, found {type(prompt).__name__}")
    try:
        check_messages(turns)
    except ValueError as error:
        raise ValueError(f"{where}: field 'prompt': {error}") from None
    found: Prompt = prompt
    return found
