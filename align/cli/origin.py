"""What responses and their scores depend on, as JSON values: an interrupted command resumes only if they are the same.

No dates, so that equal runs write equal bytes.
"""

from pathlib import Path
from typing import Any


def model_facts(directory: str | Path) -> dict[str, Any]:
    """Weights and tokenizer of a model.

    Args:
        directory: model directory, GGUF file or Hub id.
    """
    from align.io.location import locate
    from align.io.manifest import weights_fingerprint
    from align.tokenizer import Tokenizer

    return {
        "weights": weights_fingerprint(locate(directory)),
        "tokenizer": Tokenizer.load(directory).fingerprint,
    }


def judge_facts(judge: str) -> dict[str, Any]:
    """Name of a reward, with its weights or its code.

    Raises:
        ValueError: there is no such reward.
    """
    from align.io.manifest import scores_fingerprint
    from align.rewards.functions import code_fingerprint, is_mapping

    weights = scores_fingerprint(judge) if not is_mapping(judge) and Path(judge).is_dir() else None
    return {"name": judge, "weights": weights, "code": code_fingerprint(judge)}
