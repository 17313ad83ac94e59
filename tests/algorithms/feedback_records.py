"""Small feedback, and the folder for training runs of KTO."""

import json
from pathlib import Path

from dpo_pairs import WORDS, World

from align.algorithms.kto import KTO
from align.data.feedback_data import FeedbackData


def write_feedback(path: Path, count: int) -> str:
    """Responses of mixed length to different prompts; desirable ones begin with one word, the others with another."""
    prompts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 2)) + str(i) for i in range(count)]
    records = [
        {
            "prompt": [{"role": "user", "content": prompts[i]}],
            "completion": [{"role": "assistant", "content": f"{'no way' if i % 2 else 'yes'} {WORDS[i % 8]}"}],
            "label": i % 2 == 0,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


class FeedbackWorld(World):
    """A folder with a tokenizer, feedback to train and to validate on, and model directories."""

    data_module, algorithm, write = FeedbackData, KTO, staticmethod(write_feedback)
