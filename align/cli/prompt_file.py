"""Prompt files: texts or messages, in any format that training on prompts reads."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from align.tokenizer.prompts import Prompt, as_prompt

if TYPE_CHECKING:
    from align.data.formats.fields import ChatRecord


def read_prompts(
    file: str | Path, *, skip: int = 0, limit: int | None = None, format: str | None = None
) -> list[Prompt]:
    """The prompts of a file or a Hub data set.

    Args:
        file: what ``data.init_args.train`` takes: a path such as that of a JSONL file of ``{"prompt": text or
            messages}``, a glob, or a Hub id.
        skip: number of prompts to skip at the start.
        limit: number of prompts to read after those; None reads all.
        format: name of a prompt format (docs/data.md); None: detected from the first record.

    Returns:
        list: at least one prompt.

    Raises:
        ValueError: a record has no prompt (the message names file and line), no prompts remain, or there is no such
            format.
        FileNotFoundError: there is no such file.
    """
    from align.data.formats.prompt_records import PROMPT_FORMATS, prompt_format
    from align.data.readers import BadRecords, find_sources
    from align.data.tokenize import encode_records

    chosen = None if format is None else prompt_format(format)
    sources, bad = find_sources(str(file)), BadRecords("stop", hint="")
    records = encode_records(sources, bad, format=chosen, formats=PROMPT_FORMATS, encode=_prompt_of)
    prompts = list(islice(records, skip, None if limit is None else skip + limit))
    if not prompts:
        raise ValueError(f"{file} holds no prompts" + (f" after the first {skip}" if skip else ""))
    return prompts


def _prompt_of(chat: "ChatRecord") -> Prompt:
    if chat.tools:
        raise ValueError("the record offers tools, which are not passed on to sampling; remove them")
    return as_prompt(chat.messages)
