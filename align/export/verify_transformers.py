"""Load an export in transformers to verify it; the only module of align that imports transformers."""

from pathlib import Path
from typing import Any

import torch

from align.export.extra import need


class TransformersReading:
    """A safetensors directory loaded by transformers; see ``verify.Reading``.

    Args:
        directory: the export.
        scalar: whether it is a reward model.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: transformers can't load the directory.
    """

    def __init__(self, directory: Path, *, scalar: bool) -> None:
        """Load the directory as users do."""
        need("transformers", "--verify of format hf")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        kind: Any = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
        self.name = f"transformers {transformers.__version__}"
        try:
            self.model = kind.from_pretrained(directory, dtype="auto").eval()
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ValueError(f"{self.name} can't load the export: {error}") from error

    def tokenize(self, text: str) -> list[int]:
        """See ``verify.Reading``."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """See ``verify.Reading``."""
        return list(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        )

    @torch.no_grad()
    def logprobs(self, ids: list[int], start: int) -> torch.Tensor:
        """See ``verify.Reading``."""
        return torch.log_softmax(self.model(torch.tensor([ids])).logits[0, start - 1 : -1].float(), -1)

    @torch.no_grad()
    def respond(self, ids: list[int], max_new_tokens: int) -> str:
        """See ``verify.Reading``."""
        row = torch.tensor([ids])
        out = self.model.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=max_new_tokens
        )
        return str(self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))

    @torch.no_grad()
    def score(self, ids: list[int]) -> float:
        """See ``verify.Reading``."""
        return float(self.model(torch.tensor([ids])).logits[0, 0])

    def close(self) -> None:
        """See ``verify.Reading``."""
        del self.model
