"""Load an export in transformers to verify it; the only module of align that imports transformers."""

from pathlib import Path
from typing import Any

import torch

from align.export.extra import need


class TransformersReading:
    """A safetensors directory loaded by transformers; see ``verify.Reading``.

    Computes in float32 unless the weights are quantized, so that only the file can differ.

    Args:
        directory: the export.
        scalar: whether it is a reward model.
        adapter: a directory in peft's format, to load over the model by ``PeftModel``.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: transformers can't load the directory.
    """

    def __init__(self, directory: Path, *, scalar: bool, adapter: Path | None = None) -> None:
        """Load the directory."""
        need("transformers", "--verify of format hf")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        kind: Any = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
        self.name = f"transformers {transformers.__version__}"
        try:
            config = transformers.AutoConfig.from_pretrained(directory)
            quantized = hasattr(config, "quantization_config")
            self.model = kind.from_pretrained(directory, dtype="auto" if quantized else torch.float32).eval()
            if adapter is not None:
                self._load_adapter(adapter)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ValueError(f"{self.name} can't load the export: {error}") from error

    def _load_adapter(self, adapter: Path) -> None:
        """Put an adapter over the model."""
        import peft

        self.name = f"peft {peft.__version__}"
        self.model = peft.PeftModel.from_pretrained(self.model, str(adapter)).eval()

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
    def respond(self, rows: list[list[int]], max_new_tokens: int) -> list[str]:
        """See ``verify.Reading``; all rows in one batch, padded on the left."""
        width = max(len(row) for row in rows)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        out = self.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens)
        return [str(text) for text in self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]

    @torch.no_grad()
    def score(self, ids: list[int]) -> float:
        """See ``verify.Reading``."""
        return float(self.model(torch.tensor([ids])).logits[0, 0])

    def close(self) -> None:
        """See ``verify.Reading``."""
        del self.model
