"""Decode ids as they come."""

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text one by one; bytes of an unfinished character wait until it is whole.

    The pieces joined equal `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: "Tokenizer", *, skip_special: bool = True) -> None:
        """Start with nothing waiting.

        Args:
            tokenizer: whose ids.
            skip_special: leave special tokens out, instead of writing their names.
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this id completes; often empty, when it ends inside a character."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token,), skip_special=self._skip_special))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
