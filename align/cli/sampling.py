"""What verbs that sample share: the sampling settings, and prompts as texts or as messages."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from align.tokenizer.prompts import Prompt, as_messages

if TYPE_CHECKING:
    from align.generation.sampling_config import SamplingConfig

_SETTINGS = (
    ("temperature", float, "divides the logits; 0 is greedy"),
    ("top_k", int, "sample among the k likeliest tokens; 0 turns it off"),
    ("top_p", float, "sample among the likeliest tokens that hold this probability"),
    ("min_p", float, "drop tokens less likely than this times the likeliest; 0 turns it off"),
    ("repetition_penalty", float, "divides the logits of tokens already there; 1 turns it off"),
    ("max_new_tokens", int, "longest response, tokens"),
)


def add_sampling_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the settings of SamplingConfig to a verb's command line.

    Args:
        parser: of the verb.
    """
    from align.generation.sampling_config import SamplingConfig

    defaults = SamplingConfig()
    for name, kind, text in _SETTINGS:
        parser.add_argument(f"--{name}", type=kind, default=getattr(defaults, name), help=text)


def sampling_config(options: jsonargparse.Namespace) -> "SamplingConfig":
    """The settings that ``add_sampling_arguments`` added.

    Args:
        options: the parsed command line.

    Returns:
        SamplingConfig: checked.

    Raises:
        ValueError: one is impossible.
    """
    from align.generation.sampling_config import SamplingConfig

    return SamplingConfig(**{name: getattr(options, name) for name, _, _ in _SETTINGS})


def read_prompts(file: str | Path, *, skip: int = 0, limit: int | None = None) -> list[Prompt]:
    """The prompts of a JSONL file of ``{"prompt": text or messages}``.

    Args:
        file: where they are.
        skip: leave out this many at the start.
        limit: read only this many after those; None reads all.

    Returns:
        list: at least one.

    Raises:
        ValueError: a line has no prompt, or none is left; the message names file and line.
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


def _prompt_of(line: str, place: str) -> Prompt:
    try:
        prompt: Any = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: not a JSON object with the field 'prompt'") from error
    turns = as_messages(prompt)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: field 'prompt' must be text or a list of messages, found {type(prompt).__name__}")
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError(f"{place}: each message of 'prompt' must have a role and a content, both text")
    found: Prompt = prompt
    return found
