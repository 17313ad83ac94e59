"""Small clean records of every kind, and what tests of the doctor share."""

import random
from dataclasses import dataclass

from align.curate import Check, Context, Finding
from align.data import ChatData, PreferenceData, PromptData, TextData

KINDS = {"chats": ChatData, "pairs": PreferenceData, "prompts": PromptData, "texts": TextData}
STAGES = {"chats": "SFT", "pairs": "DPO", "prompts": "PPO", "texts": "Pretrain"}
VOCABULARY = 263
CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_RANDOM = random.Random(0)
_WORDS = ["".join(_RANDOM.choice("bdfgklmnprst") + _RANDOM.choice("aeiou") for _ in range(3)) for _ in range(400)]


def sentence(rng: random.Random, words: int = 8) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words)).capitalize() + "."


def clean(kind: str, count: int, seed: int) -> list[dict]:
    """Records without a mistake."""
    rng = random.Random(f"{kind} {seed}")
    records = []
    for _ in range(count):
        prompt, first, second = (sentence(rng) for _ in range(3))
        records.append(
            {
                "chats": {"prompt": prompt, "completion": first},
                "pairs": {"prompt": prompt, "chosen": first, "rejected": second},
                "prompts": {"prompt": prompt},
                "texts": {"text": f"{prompt} {first} {second}"},
            }[kind]
        )
    return records


@dataclass(frozen=True)
class Always(Check):
    """A check that always finds an error."""

    severity = "error"

    def find(self, context: Context) -> list[Finding]:
        return [Finding("nothing is ever right", "none")]
