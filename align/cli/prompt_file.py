"""Prompt files: texts or messages, in any format that training on prompts reads."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from align.cli.errors import UsageError
from align.tokenizer.prompts import Columns, Prompt, as_prompt

if TYPE_CHECKING:
    from align.data.formats.fields import ChatRecord
    from align.data.readers import Source
    from align.rewards.reward import Reward


def read_prompts(
    file: str | Path, *, skip: int = 0, limit: int | None = None, format: str | None = None
) -> list[Prompt]:
    """The prompts of a file or a Hub data set; see ``read_records``."""
    return read_records(file, skip=skip, limit=limit, format=format)[0]


def read_records(
    file: str | Path,
    *,
    skip: int = 0,
    limit: int | None = None,
    format: str | None = None,
    columns: Sequence[str] = (),
    sources: "Sequence[Source] | None" = None,
) -> tuple[list[Prompt], list[Columns]]:
    """The prompts of a file or a Hub data set, and the columns of their records that rewards read.

    Args:
        file: what ``data.init_args.train`` takes: a path such as that of a JSONL file of ``{"prompt": text or
            messages}``, a glob, or a Hub id.
        skip: number of prompts to skip at the start.
        limit: number of prompts to read after those; None reads all.
        format: name of a prompt format (docs/data.md); None: detected from the first record.
        columns: names of the columns.
        sources: of the file, as they were found and fingerprinted; None: they are found here.

    Returns:
        tuple: at least one prompt, and as many records.

    Raises:
        ValueError: a record has no prompt or no such column (the message names file and line), no prompts remain, or
            there is no such format.
        FileNotFoundError: there is no such file.
    """
    from align.data.formats.prompt_records import PROMPT_FORMATS, prompt_format
    from align.data.readers import BadRecords, find_sources
    from align.data.tokenize import encode_with_columns

    chosen = None if format is None else prompt_format(format)
    sources, bad = sources or find_sources(str(file)), BadRecords("stop", hint="")
    every = encode_with_columns(sources, bad, format=chosen, formats=PROMPT_FORMATS, encode=_prompt_of, columns=columns)
    records = list(islice(every, skip, None if limit is None else skip + limit))
    if not records:
        raise ValueError(f"{file} holds no prompts" + (f" after the first {skip}" if skip else ""))
    return [prompt for prompt, _ in records], [record for _, record in records]


def require_columns(judge: "Reward", file: str | None) -> None:
    """Refuse a judge that reads columns where there is no prompt file to have them.

    Raises:
        UsageError: it reads some, and ``file`` is None.
    """
    if judge.columns and file is None:
        read = ", ".join(map(repr, judge.columns))
        raise UsageError(f"--judge {judge.name} reads {read} of the prompts' records: give --prompts FILE")


def _prompt_of(chat: "ChatRecord") -> Prompt:
    if chat.tools:
        raise ValueError("the record offers tools, which are not passed on to sampling; remove them")
    return as_prompt(chat.messages)
