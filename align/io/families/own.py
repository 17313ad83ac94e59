"""Our own model_type, for configurations that no Hugging Face architecture supports."""

from typing import Any

from align.io.families.family import STRUCTURE, ConfigJson, Family
from align.model.config import GPTConfig


class Own(Family):
    """Fits every configuration: config.json contains the GPTConfig itself, and tensors keep our names."""

    model_type = "align_gpt"
    architecture = "AlignGPT"
    classifier = "AlignGPTForSequenceClassification"
    needs = {}
    free = frozenset(STRUCTURE)

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """The configuration, under ``gpt``."""
        return {"gpt": config.to_dict()}

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """The configuration under ``gpt``."""
        return fields.mapping("gpt")
