"""The printable alphabet in which tokenizer.json writes bytes.

GPT-2's byte-level BPE shows each of the 256 bytes as one printable character: printable Latin-1 bytes as themselves,
the others, in order, as U+0100 and up. Source: the GPT-2 release (openai/gpt-2, ``bytes_to_unicode``).
"""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

BYTE_ORDER = bytes(_PRINTABLE + _OTHERS)
"""The 256 bytes sorted by their character: the ids 0..255 of GPT-2, of Hugging Face's trainer, and ours"""

_TO_CHARS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_OTHERS)}
_TO_BYTES = {ord(char): byte for byte, char in _TO_CHARS.items()}


def bytes_to_chars(data: bytes) -> str:
    """Bytes in the printable alphabet."""
    return data.decode("latin-1").translate(_TO_CHARS)


def chars_to_bytes(text: str) -> bytes:
    """The bytes that a text in the printable alphabet stands for.

    Raises:
        ValueError: a character is not of the alphabet.
    """
    try:
        return bytes([_TO_BYTES[ord(char)] for char in text])
    except KeyError as error:
        raise ValueError(f"{chr(error.args[0])!r} in token {text!r} is not a byte-level character") from None
