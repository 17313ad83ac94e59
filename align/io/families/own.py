"""Our own model_type, for configurations that no Hugging Face architecture computes."""

from typing import Any

from align.io.families.base import Family, Fields
from align.model.config import GPTConfig


class Own(Family):
    """Fits every configuration: config.json holds the GPTConfig itself, tensors keep our names."""

    model_type = "align_gpt"
    architecture = "AlignGPT"
    classifier = "AlignGPTForSequenceClassification"
    needs = {}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """The configuration as it is, under ``gpt``."""
        return {"gpt": config.to_dict()}

    def read(self, fields: Fields) -> dict[str, Any]:
        """The configuration as it was."""
        return fields.mapping("gpt")
