"""Checks of what comes before a response: nothing, or a chat that was rendered before."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from align.curate.check import Check, Example, Finding, affected
from align.curate.context import Context

_CUE = re.compile(r"(?:\A|\n)[ \t]*(?:###[ \t]*)?(?:Assistant|Response|AI|GPT)[ \t]*:\s*\Z", re.IGNORECASE)
_TAIL = 120


@dataclass(frozen=True)
class EmptyPrompts(Check):
    """Chats with nothing before the response; other kinds of records are refused then."""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        if context.kind != "chats":
            return
        for split in context.splits.values():
            empty = [sample for sample in split.samples if not sample.prompt.strip()]
            yield from affected(
                split,
                empty,
                "chats have nothing before the response",
                "correct the field of the prompt, or remove them: the model learns to respond to nothing",
            )


@dataclass(frozen=True)
class RenderedPrompts(Check):
    """Prompts that end with the cue of a response, such as ``Assistant:``: a dialogue as the text of one message."""

    def find(self, context: Context) -> Iterable[Finding]:
        """Where the chat template adds turns of its own around it."""
        if context.kind == "texts" or context.tokenizer.spec.config.get("plain"):
            return
        for split in context.splits.values():
            hits = [sample for sample in split.samples if _CUE.search(sample.prompt)]
            yield from affected(
                split,
                hits,
                "prompts end with the cue of a response",
                "store the messages, not the rendered chat, or set data.init_args.chat_template to plain",
                example=lambda one: Example.of(one, one.prompt[-_TAIL:]),
            )
