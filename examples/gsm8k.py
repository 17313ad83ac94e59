"""A verifiable reward: whether a response ends with the right number.

Rewards see prompts and responses, not the other fields of a record, so this one reads the answers itself and finds them
by their question. recipes/qwen2.5-0.5b trains with it, from the root of a clone:

    align run recipes/qwen2.5-0.5b --only sft grpo
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from align.data.formats import required, text
from align.data.readers import BadRecords, find_sources
from align.rewards import Prompt, Reward
from align.tokenizer.prompts import as_text

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class FinalAnswer(Reward):
    """1 if the last number of a response is that after ``####`` in the answer of its question, else 0."""

    data: tuple[str, ...] = ("openai/gsm8k@main:train", "openai/gsm8k@main:test")
    """Files or Hub data sets of {"question": ..., "answer": "... #### 72"}"""

    @cached_property
    def answers(self) -> dict[str, float]:
        """Question -> number."""
        found = {}
        for source in find_sources(self.data):
            for record in source.records(BadRecords("stop", hint="")):
                number = final_number(text(record.fields, "answer").rpartition("####")[2])
                if number is None:
                    raise ValueError(f"{record.source}: {record.location}: 'answer' has no number after ####")
                found[required(record.fields, "question")] = number
        return found

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response."""
        unknown = [as_text(prompt) for prompt in prompts if as_text(prompt) not in self.answers]
        if unknown:
            raise ValueError(f"{', '.join(self.data)} has no question {unknown[0][:60]!r}")
        return [
            float(final_number(response) == self.answers[as_text(prompt)])
            for prompt, response in zip(prompts, responses, strict=True)
        ]


def final_number(words: str) -> float | None:
    """The last number in a text, without its thousands separators; None if there is none."""
    numbers = _NUMBER.findall(words)
    return float(numbers[-1].replace(",", "")) if numbers else None
