"""Prompts to answer, for PPO and its critic-free kin."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from align.data.collate_pairs import PromptDataset
from align.data.corpus import CorpusWriter
from align.data.encoding import encode_records
from align.data.module import TokenData, progress_bar
from align.data.pairs import PromptFormat, detect_prompt_format, read_prompt
from align.data.readers import Source
from align.data.records import BadRecords


class PromptData(TokenData):
    """Prompts rendered up to the assistant's turn; ``batch_size`` counts prompts.

    A prompt is never cut: one that fills the context leaves no room to answer and is a bad record.

    Args:
        format: Fields of a record; auto: told from each file's first record
        max_prompt_tokens: A longer prompt is a bad record; None: one that fills the context is
    """

    _with_texts = True

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        format: Literal["auto", "prompt", "messages", "alpaca", "hh"] = "auto",
        max_prompt_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the settings; see TokenData for those that all data share.

        Raises:
            ValueError: a setting is impossible.
        """
        super().__init__(tokenizer, train, **kwargs)
        if max_prompt_tokens is not None and not 0 < max_prompt_tokens < self.context:
            raise ValueError(
                f"max_prompt_tokens is {max_prompt_tokens}; it must be at least 1 and less than context "
                f"({self.context}), so that there is room to answer"
            )
        self.format, self.max_prompt_tokens = format, max_prompt_tokens

    def train_dataloader(self) -> Any:
        """Shuffled, resumable prompts; where the stage has an ``experience_loader``, what that makes of them."""
        prompts = super().train_dataloader()
        stage = getattr(self.trainer, "lightning_module", None)
        wrap = getattr(stage, "experience_loader", None)
        return prompts if wrap is None else wrap(prompts)

    def _settings(self) -> dict[str, Any]:
        return {"format": self.format, "context": self.context, "max_prompt_tokens": self.max_prompt_tokens}

    def _tokenise(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        with progress_bar(sources, split) as advance:

            def encode(fields: Mapping[str, Any], format: PromptFormat) -> tuple[str, list[int]]:
                prompt = read_prompt(fields, format)
                advance(sum(len(message["content"]) for message in prompt))
                ids = self.tokenizer.render_chat(prompt, add_generation_prompt=True).ids
                self._refuse_long(len(ids))
                return prompt[-1]["content"], ids

            for text, ids in encode_records(
                sources, bad, format=self.format, detect=detect_prompt_format, encode=encode
            ):
                writer.append(ids, [len(ids)], text=text)
        return []

    def _refuse_long(self, tokens: int) -> None:
        if tokens >= self.context:
            raise ValueError(f"the prompt has {tokens} tokens: a context of {self.context} leaves no room to answer")
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise ValueError(f"the prompt has {tokens} tokens, more than max_prompt_tokens ({self.max_prompt_tokens})")

    def _dataset(self, split: str) -> PromptDataset:
        return PromptDataset(self._corpus(split), self._records(split), self._pad_id(), self.context)

    def _counts(self, split: str) -> dict[str, Any]:
        lengths = self._datasets[split].lengths
        return {"prompts": len(lengths), "tokens": int(lengths.sum()), "longest_prompt": int(lengths.max())}
