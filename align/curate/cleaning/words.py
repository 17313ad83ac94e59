"""Words without a tokenizer of a language."""

from collections.abc import Iterator

from datatrove.utils.word_tokenizers import WordTokenizer


class Words(WordTokenizer):
    """What stands between spaces.

    datatrove compares texts without case, punctuation and digits: spaCy, which is much slower, finds no other words in
    them.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """The words."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """The text as one sentence."""
        return [text]

    def span_tokenize(self, text: str) -> Iterator[tuple[int, int]]:
        """The span of the one sentence."""
        yield 0, len(text)
