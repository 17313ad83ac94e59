"""Texts that end a response, besides stop tokens."""

from collections.abc import Sequence

from align.tokenizer import Tokenizer


class StopTexts:
    """Ends a response as soon as its text has one of the stop texts.

    Args:
        tokenizer: of the responses.
        stops: texts, none empty.
        rows: number of responses.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, rows: int) -> None:
        """Start with empty responses."""
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._decoders = [tokenizer.stream_decoder() for _ in range(rows)]
        self._tails = [""] * rows

    def __call__(self, row: int, token: int) -> bool:
        """Whether the response ends with this token."""
        new = self._decoders[row].push(token)
        tail = self._tails[row] + new
        self._tails[row] = tail[-self._longest :]
        return bool(new) and any(stop in tail for stop in self._stops)
