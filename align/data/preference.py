"""Pairs of answers to one prompt, for reward models and DPO."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from align.batches import PairBatch
from align.data.collate import BatchDataset
from align.data.collate_pairs import PairDataset, PromptGroups
from align.data.corpus import CorpusWriter, corpus_key
from align.data.encoding import encode_records
from align.data.module import TokenData, progress_bar
from align.data.pairs import Pair, PairFormat, detect_pair_format, read_pair
from align.data.readers import Source
from align.data.records import BadRecords
from align.data.sampler import BatchLoader
from align.data.truncation import EncodedPair, TruncationReport, encode_chat, encode_pair
from align.tokenizer import Tokenizer


class PreferenceData(TokenData):
    """Prompts with a chosen and a rejected answer, rendered with the tokenizer's template; the mask covers the answers.

    A pair longer than a row is cut: the prompt from its start, then the answers from their ends (docs/data.md).
    ``batch_size`` counts pairs: a batch has twice as many rows, pairs of similar length together.

    Args:
        format: Fields of a record; auto: told from each file's first record
        by_prompt: Batches of prompts instead of pairs: neighbouring pairs with the same prompt come in one batch, and
            ``batch_size`` counts prompts (training only)
    """

    _with_texts = True
    _documents_per_record = 3

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        *,
        format: Literal["auto", "preference", "hh", "alpaca"] = "auto",
        by_prompt: bool = False,
        **kwargs: Any,
    ) -> None:
        """Check the settings; see TokenData for those that all data share.

        Raises:
            ValueError: a setting is impossible.
        """
        super().__init__(tokenizer, train, **kwargs)
        self.format, self.by_prompt = format, by_prompt

    def pair_loader(self, split: str) -> BatchLoader[PairBatch]:
        """The split's pairs in order, each once: on several ranks each once over all of them.

        Args:
            split: "train", "validation" or "test".

        Raises:
            ValueError: the split was not set up; ``describe`` has those that were.
        """
        if split not in self._datasets:
            raise ValueError(f"the {split} pairs are not set up; those that are: {', '.join(self._datasets) or 'none'}")
        return self._fixed_loader(split)

    def identity(self, split: str) -> str:
        """Hash of what decides the split's tokens and their numbering: content, tokenizer and template, settings."""
        records = self._records(split)
        return corpus_key(
            data=self._corpus(split).path.name, context=self.context, first=records.start, records=len(records)
        )

    def _settings(self) -> dict[str, Any]:
        return {"format": self.format, "context": self.context}

    def _tokenise(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        report, limit, warning = TruncationReport(), self.context + 1, []
        with progress_bar(sources, split) as advance:

            def encode(fields: Mapping[str, Any], format: PairFormat) -> tuple[Pair, EncodedPair]:
                pair = read_pair(fields, format)
                advance(sum(len(text) for text in (pair.prompt[-1]["content"], pair.chosen, pair.rejected)))
                return pair, encode_pair(pair, self.tokenizer, limit)

            for pair, encoded in encode_records(
                sources, bad, format=self.format, detect=detect_pair_format, encode=encode
            ):
                parts = [encoded.prompt, encoded.chosen, encoded.rejected]
                if not writer.texts:
                    warning = _template_warning(pair, self.tokenizer)
                writer.append(np.concatenate(parts), [len(part) for part in parts], text=pair.prompt[-1]["content"])
                report.add(encoded.cut)
        writer.meta["truncation"] = report.as_dict("pairs")
        return warning + report.lines("pairs", total=writer.texts, limit=limit)

    def _dataset(self, split: str) -> PairDataset:
        return PairDataset(self._corpus(split), self._records(split), self._pad_id(), self.context + 1)

    def _train_dataset(self) -> BatchDataset[PairBatch]:
        pairs: PairDataset = self._datasets["train"]
        return PromptGroups(pairs) if self.by_prompt else pairs

    def _counts(self, split: str) -> dict[str, Any]:
        prompt, chosen, rejected = self._datasets[split].lengths.sum(axis=0).tolist()
        return {
            "pairs": len(self._datasets[split]),
            "prompt_tokens": prompt,
            "chosen_tokens": chosen,
            "rejected_tokens": rejected,
        }


def _template_warning(pair: Pair, tokenizer: Tokenizer) -> list[str]:
    """One line where the template renders a whole chat otherwise than prompt and answer apart, else none."""
    chat = [*pair.prompt, {"role": "assistant", "content": pair.chosen}]
    whole = encode_chat(chat, tokenizer, sys.maxsize).ids
    apart = encode_pair(pair, tokenizer, sys.maxsize)
    joined = np.concatenate([apart.prompt, apart.chosen])
    if np.array_equal(whole, joined):
        return []
    return [
        f"the chat template renders the first chat as {tokenizer.decode(whole.tolist(), skip_special=False)!r}, but "
        f"its prompt and answer apart, which these pairs and sampling use, are "
        f"{tokenizer.decode(joined.tolist(), skip_special=False)!r}"
    ]
