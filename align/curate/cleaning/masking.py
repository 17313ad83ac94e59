"""Replace personal data and secrets, found by the patterns that ``align doctor`` reports by."""

from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from align.curate.personal import PATTERNS


class MaskPersonalData(PipelineStep):
    """Replaces email addresses, phone numbers, public IP addresses, card numbers, keys and tokens.

    What takes their place is reserved for examples (RFC 2606, RFC 5737, 555-0100), so that the text stays natural and
    ``align doctor`` finds nothing in it.
    """

    type = "formatter"
    name = "mask personal data"

    def __init__(self, kinds: list[str] | None = None) -> None:
        """What to replace.

        Args:
            kinds: of ``email addresses``, ``phone numbers``, ``public IP addresses``, ``card numbers`` and ``keys and
                tokens``; null: all.

        Raises:
            ValueError: there is no such kind.
        """
        super().__init__()
        known = [pattern.name for pattern in PATTERNS]
        if unknown := set(kinds or []) - set(known):
            raise ValueError(f"kinds: no kind {sorted(unknown)[0]!r}; there are {', '.join(known)}")
        self.kinds = tuple(known if kinds is None else kinds)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents with replacements; counts them by kind in the statistics and in ``masked`` of the metadata."""
        for document in data:
            self.stat_update(StatHints.total)
            with self.track_time():
                counts = {}
                for pattern in PATTERNS:
                    if pattern.name in self.kinds:
                        document.text, count = pattern.masked(document.text)
                        if count:
                            counts[pattern.name] = count
                            self.stat_update(f"masked_{pattern.name}", value=count)
                if counts:
                    document.metadata["masked"] = counts
            yield document
