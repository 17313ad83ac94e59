"""The data module of KTO: responses that are labelled desirable or not."""

from typing import Any

from align.data.collate import FeedbackDataset
from align.data.formats.feedback import DETECTED, Feedback, FeedbackFormat, unpaired
from align.data.formats.pairs import Pair, PairFormat
from align.data.mixing import Files
from align.data.response_data import EncodedRecord, ResponseData
from align.data.tokenize import encode_responses
from align.tokenizer.prompts import with_system


class FeedbackData(ResponseData):
    """Responses with feedback, rendered with the tokenizer's chat template; the mask covers the responses.

    Files of preference pairs are read too: a chosen response is desirable, a rejected one is not. A response too long
    for a row is truncated as a pair is (docs/data.md). ``batch_size`` counts responses. A batch has two rows per
    response: the prompt with it, and with the response of another record, for KTO's reference point.

    Args:
        format: Format of the records; None: detected from each file's first record
    """

    _documents_per_record = 2
    _with_labels = True
    _formats = DETECTED
    _kind = "responses"

    def __init__(
        self,
        tokenizer: str,
        train: Files,
        *,
        format: FeedbackFormat | PairFormat | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the settings; ``ResponseData`` has those that it shares with ``PreferenceData``."""
        super().__init__(tokenizer, train, **kwargs)
        self.format = format

    def label_counts(self, split: str) -> tuple[int, int]:
        """Desirable and undesirable responses of a split that was set up."""
        labels = self._datasets[split].labels
        desirable = int(labels.sum())
        return desirable, len(labels) - desirable

    def _encode(self, content: Feedback | Pair) -> list[EncodedRecord]:
        encoded = []
        for prompt, response, desirable, tools in unpaired(content):
            prompt = with_system(prompt, self.system_prompt)
            ids = encode_responses(prompt, (response,), self.tokenizer, self.context + 1, tools=tools)
            encoded.append(EncodedRecord(prompt, (response,), tools, ids, desirable))
        return encoded

    def _dataset(self, split: str) -> FeedbackDataset:
        return FeedbackDataset(self._corpus(split), self._records(split), self._pad_id(), self.context + 1)

    def _counts(self, split: str) -> dict[str, Any]:
        prompt, response = self._datasets[split].lengths.sum(axis=0).tolist()
        desirable, undesirable = self.label_counts(split)
        return {
            "responses": desirable + undesirable,
            "desirable": desirable,
            "undesirable": undesirable,
            "prompt_tokens": prompt,
            "response_tokens": response,
        }
