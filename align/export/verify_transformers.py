"""Load an export in transformers to verify it; the only module of align that imports transformers."""

from pathlib import Path
from typing import Any

import torch

from align.export.extra import need
from align.export.verify import Greedy

_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Generation settings that are part of the model"""

_WITHOUT_EFFECT = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    | {"max_length", "max_new_tokens", "use_cache", "transformers_version", "_from_model_config"}
    | {"output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"}
)
"""Generation settings that don't change greedy responses of a given length"""


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
            self.switched_off = {} if scalar else self._switch_off()
            if adapter is not None:
                self._load_adapter(adapter)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ValueError(f"{self.name} can't load the export: {error}") from error

    def _switch_off(self) -> dict[str, Any]:
        """Remove the generation settings that change greedy decoding; returns them."""
        stated = self.model.generation_config
        kept = {name: getattr(stated, name) for name in _ENDS}
        self.model.generation_config = type(stated)(**kept)
        neutral = self.model.generation_config.to_dict()
        return {
            name: value
            for name, value in stated.to_diff_dict().items()
            if value is not None and name not in _WITHOUT_EFFECT and value != neutral.get(name)
        }

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
    def respond(self, rows: list[list[int]], max_new_tokens: int) -> list[Greedy]:
        """See ``verify.Reading``; all rows in one batch, padded on the left."""
        width = max(len(row) for row in rows)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        out = self.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens)
        return [self._greedy(row) for row in out[:, width:].tolist()]

    def _greedy(self, row: list[int]) -> Greedy:
        """A response without the padding after it."""
        stated = self.model.generation_config.eos_token_id
        stops = set(stated) if isinstance(stated, list) else {stated}
        end = next((place for place, token in enumerate(row, 1) if token in stops), len(row))
        return Greedy(row[:end], str(self.tokenizer.decode(row[:end], skip_special_tokens=True)))

    @torch.no_grad()
    def score(self, ids: list[int]) -> float:
        """See ``verify.Reading``."""
        return float(self.model(torch.tensor([ids])).logits[0, 0])

    def close(self) -> None:
        """See ``verify.Reading``."""
        del self.model
