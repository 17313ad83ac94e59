"""Data modules for alignment: preference pairs for reward models and DPO, prompts for PPO, GRPO and RLOO."""

from collections.abc import Sequence
from typing import Any

from align.data.collate import PairDataset, PromptDataset
from align.data.corpus import CorpusWriter
from align.data.data_module import TokenData, tokenization_bar
from align.data.formats.fields import Chat, ChatRecord
from align.data.formats.pairs import PAIR_FORMATS, Pair, PairFormat
from align.data.formats.prompt_records import PROMPT_FORMATS, PromptFormat
from align.data.mixing import Files
from align.data.readers import BadRecords, Source
from align.data.response_data import EncodedRecord, ResponseData
from align.data.tokenize import RenderingReport, encode_pair, encode_with_columns
from align.tokenizer.chat_template import RenderedChat, check_template
from align.tokenizer.prompts import as_prompt, with_system


class PreferenceData(ResponseData):
    """Preference pairs, rendered with the tokenizer's chat template; the mask covers the responses.

    A pair longer than a row is truncated: the start of the prompt, then the ends of the responses (docs/data.md).
    ``batch_size`` counts pairs. A batch has two rows per pair, and pairs of similar length share a batch.

    Args:
        format: Format of the records; None: detected from each file's first record
    """

    _documents_per_record = 3
    _formats = PAIR_FORMATS
    _kind = "pairs"

    def __init__(self, tokenizer: str, train: Files, *, format: PairFormat | None = None, **kwargs: Any) -> None:
        """Check the settings; ``ResponseData`` has those that it shares with ``FeedbackData``."""
        super().__init__(tokenizer, train, **kwargs)
        self.format = format

    def _encode(self, content: Pair) -> list[EncodedRecord]:
        pair = content._replace(prompt=with_system(content.prompt, self.system_prompt))
        encoded = encode_pair(pair, self.tokenizer, self.context + 1)
        return [EncodedRecord(pair.prompt, (pair.chosen, pair.rejected), pair.tools, encoded)]

    def _dataset(self, split: str) -> PairDataset:
        return PairDataset(self._corpus(split), self._records(split), self._pad_id(), self.context + 1)

    def _counts(self, split: str) -> dict[str, Any]:
        prompt, chosen, rejected = self._datasets[split].lengths.sum(axis=0).tolist()
        return {
            "pairs": len(self._datasets[split]),
            "prompt_tokens": prompt,
            "chosen_tokens": chosen,
            "rejected_tokens": rejected,
        }


class PromptData(TokenData):
    """Prompts, rendered up to the response; ``batch_size`` counts prompts.

    A prompt is never truncated: one that fills the context leaves no room for a response and is a bad record.

    Args:
        format: Format of the records; None: detected from each file's first record
        system_prompt: System message of prompts that have none; null: none
        max_prompt_tokens: Tokens; a longer prompt is a bad record. None: the limit is the context
    """

    _with_prompts = True

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        format: PromptFormat | None = None,
        system_prompt: str | None = None,
        max_prompt_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the settings; ``TokenData`` has those that all data modules share.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__(tokenizer, train, **kwargs)
        if max_prompt_tokens is not None and not 0 < max_prompt_tokens < self.context:
            raise ValueError(
                f"max_prompt_tokens is {max_prompt_tokens}; it must be at least 1 and less than context "
                f"({self.context}), so that there is room for a response"
            )
        self.format, self.system_prompt, self.max_prompt_tokens = format, system_prompt, max_prompt_tokens

    def train_dataloader(self) -> Any:
        """Shuffled, resumable prompts; or what the stage's ``rollout_loader``, if it has one, makes of them."""
        prompts = super().train_dataloader()
        stage = getattr(self.trainer, "lightning_module", None)
        # Lightning asks the data module for the train loader, and PPO trains on rollouts: see PPO.rollout_loader.
        wrap = getattr(stage, "rollout_loader", None)
        return prompts if wrap is None else wrap(prompts)

    def _settings(self) -> dict[str, Any]:
        return {
            "format": self.format and self.format.identity,
            "context": self.context,
            "system_prompt": self.system_prompt,
            "max_prompt_tokens": self.max_prompt_tokens,
        }

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        check_template(self.tokenizer)
        rendering = RenderingReport()
        with tokenization_bar(sources, split) as advance:

            def encode(chat: ChatRecord) -> tuple[Chat, RenderedChat]:
                prompt = with_system(chat.messages, self.system_prompt)
                rendered = self.tokenizer.render_chat(prompt, tools=chat.tools, add_generation_prompt=True)
                self._refuse_long(len(rendered.ids))
                return prompt, rendered

            prompts = encode_with_columns(
                sources,
                bad,
                format=self.format,
                formats=PROMPT_FORMATS,
                encode=encode,
                columns=self._columns[split],
                advance=advance,
            )
            for (prompt, rendered), columns in prompts:
                rendering.add(rendered.dropped)
                writer.append(rendered.ids, [len(rendered.ids)], prompt=as_prompt(prompt), columns=columns)
        return rendering.lines("prompts", total=writer.prompts)

    def _refuse_long(self, tokens: int) -> None:
        if tokens >= self.context:
            raise ValueError(
                f"the prompt has {tokens} tokens, which leaves no room for a response in context {self.context}"
            )
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise ValueError(f"the prompt has {tokens} tokens, more than max_prompt_tokens ({self.max_prompt_tokens})")

    def _dataset(self, split: str) -> PromptDataset:
        return PromptDataset(self._corpus(split), self._records(split), self._pad_id(), self.context)

    def _counts(self, split: str) -> dict[str, Any]:
        lengths = self._datasets[split].lengths
        return {"prompts": len(lengths), "tokens": int(lengths.sum()), "longest_prompt": int(lengths.max())}
