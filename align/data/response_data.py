"""What the data modules of pairs and of feedback share: records of a prompt and given responses."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from align.batches import FeedbackBatch, PairBatch
from align.data.collate import BatchDataset, FeedbackDataset, PairDataset, PromptGroups
from align.data.corpus import Corpus, CorpusWriter, corpus_key
from align.data.data_module import TokenData, tokenization_bar
from align.data.formats.fields import Chat
from align.data.formats.record_format import RecordFormat
from align.data.mixing import Files
from align.data.readers import BadRecords, Source
from align.data.sampler import BatchLoader
from align.data.tokenize import (
    EncodedResponses,
    RenderingReport,
    TruncationReport,
    encode_with_columns,
    unlike_whole_chat,
)
from align.tokenizer.chat_template import Tool, check_template
from align.tokenizer.prompts import as_prompt


def between_prompts(prompt_of: Callable[[int], Any], border: int, count: int) -> int:
    """The border nearest after ``border`` that divides no adjacent records with one prompt, else the nearest before.

    Args:
        prompt_of: index of a record -> its prompt.
        border: index of the first record after it, from 1 to ``count - 1``.
        count: number of records.

    Returns:
        int: from 1 to ``count - 1``; ``border`` if all records have one prompt.
    """
    others = (*range(border, count), *range(border - 1, 0, -1))
    return next((index for index in others if prompt_of(index - 1) != prompt_of(index)), border)


class EncodedRecord(NamedTuple):
    """A record for the corpus.

    Attributes:
        prompt: its messages.
        responses: texts.
        tools: JSON schemas that the prompt offers.
        encoded: prompt and responses as ids.
        label: whether the only response is desirable; None: records have no labels.
    """

    prompt: Chat
    responses: tuple[str, ...]
    tools: Sequence[Tool] | None
    encoded: EncodedResponses
    label: bool | None = None


class ResponseData(TokenData):
    """Records of a prompt and given responses, numbered, so that what is computed once for each can be looked up.

    Args:
        system_prompt: System message of prompts that have none; null: none
        by_prompt: Batches of prompts instead of records, in training: adjacent records with the same prompt share a
            batch, and ``batch_size`` counts prompts
    """

    _with_prompts = True
    _formats: ClassVar[Sequence[RecordFormat[Any]]]
    """Candidates for detection"""
    _kind: ClassVar[str]
    """What a record is called in reports"""
    format: RecordFormat[Any] | None

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        system_prompt: str | None = None,
        by_prompt: bool = False,
        **kwargs: Any,
    ) -> None:
        """Check the settings; ``TokenData`` has those that all data modules share.

        Raises:
            ValueError: a setting is invalid.
        """
        super().__init__(tokenizer, train, **kwargs)
        self.system_prompt, self.by_prompt = system_prompt, by_prompt

    def _encode(self, content: Any) -> list[EncodedRecord]:
        """The records that the content of one in a file becomes.

        Raises:
            ValueError: it does not fit into a row.
        """
        raise NotImplementedError

    def record_loader(self, split: str) -> BatchLoader[Any]:
        """Every record of a split once, in order; with several ranks, once across all of them.

        Args:
            split: "train", "validation" or "test".

        Raises:
            ValueError: the split was not set up.
        """
        if split not in self._datasets:
            raise ValueError(f"the split {split!r} is not set up; available: {', '.join(self._datasets) or 'none'}")
        return self._fixed_loader(split)

    def identity(self, split: str) -> str:
        """Hash of everything that decides the tokens and indices of a split: content, tokenizer, template, settings."""
        records = self._records(split)
        return corpus_key(
            data=self._corpus(split).identity, context=self.context, first=records.start, records=len(records)
        )

    def _records_of(self, corpus: Corpus, split: str) -> range:
        # The responses to a prompt are trained on or held out together.
        records = super()._records_of(corpus, split)
        if not self.val_fraction or split == "test":
            return records
        count = (len(corpus.offsets) - 1) // self._documents_per_record
        border = records.stop if split == "train" else records.start
        border = between_prompts(lambda index: corpus.prompt(index)[0], border, count)
        return range(border) if split == "train" else range(border, count)

    def _settings(self) -> dict[str, Any]:
        settings = {"format": self.format and self.format.identity, "context": self.context}
        return settings | {"system_prompt": self.system_prompt}

    def _tokenize(self, sources: Sequence[Source], writer: CorpusWriter, bad: BadRecords, split: str) -> list[str]:
        check_template(self.tokenizer)
        truncated, rendering = TruncationReport(), RenderingReport()
        with tokenization_bar(sources, split) as advance:
            contents = encode_with_columns(
                sources,
                bad,
                format=self.format,
                formats=self._formats,
                encode=self._encode,
                columns=self._columns[split],
                advance=advance,
            )
            for record, columns in ((record, columns) for records, columns in contents for record in records):
                prompt, responses, tools, encoded, label = record
                unlike = unlike_whole_chat(prompt, responses[0], encoded, self.tokenizer, tools=tools)
                rendering.add(encoded.dropped, unlike=unlike)
                parts = [encoded.prompt, *encoded.responses]
                lengths = [len(part) for part in parts]
                writer.append(np.concatenate(parts), lengths, prompt=as_prompt(prompt), label=label, columns=columns)
                truncated.add(encoded.truncation)
        writer.meta["truncation"] = truncated.as_dict(self._kind)
        lines = rendering.lines(self._kind, total=writer.prompts)
        return lines + truncated.lines(self._kind, total=writer.prompts, limit=self.context + 1)

    def _train_dataset(self) -> BatchDataset[PairBatch | FeedbackBatch]:
        records: PairDataset | FeedbackDataset = self._datasets["train"]
        return PromptGroups(records) if self.by_prompt else records
