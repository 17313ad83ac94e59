"""Open a text file as a stream of UTF-8 bytes, whatever its compression, byte-order mark and encoding.

Files are decompressed and decoded as they are read, so they may be larger than memory. ``.gz`` and ``.zst`` files may
consist of several members or frames, as ``cat`` and parallel compressors write them.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

COMPRESSIONS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
"""Suffix of a compressed file -> its first bytes"""

_HEAD = 8192  # bytes from which the encoding is detected
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Utf8File(io.RawIOBase):
    """The text of a file as UTF-8 bytes, decompressed and without its byte-order mark.

    UTF-16 is recognized by its mark. A lone surrogate in it is encoded as with ``surrogatepass``, so that the record
    that contains it can be refused instead of the file.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file and look at its first bytes.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is empty, binary, damaged, compressed without the suffix for it, or in another encoding.
        """
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115
        try:
            self._bytes = _decompressed(self._file, Path(path).suffix.lower())
            self._held = self._read(_HEAD)
            while len(self._held) < _HEAD and (more := self._read(_HEAD)):
                self._held += more
            encoding = self._encoding()
        except BaseException:
            self._file.close()
            raise
        decode = codecs.getincrementaldecoder(encoding)("surrogatepass").decode
        self._decode: Callable[..., str] | None = None if encoding == "utf-8" else decode
        self._held = self._recoded(self._held)
        self._ended = False

    @property
    def consumed(self) -> int:
        """Bytes read from the file, which may be compressed."""
        return self._file.tell()

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at most as many bytes as the buffer holds; 0 at the end of the file."""
        while not self._held and not self._ended:
            data = self._read(max(_HEAD, len(buffer) // 2))
            self._ended = not data
            self._held = self._recoded(data)
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            return self._bytes.read(size)
        except (EOFError, zlib.error, OSError) as error:
            if self._bytes is self._file:
                raise
            raise ValueError(
                f"{self._path}: can't be decompressed ({error}); the file is damaged, or its suffix is wrong"
            ) from None

    def _recoded(self, data: bytes) -> bytes:
        if self._decode is None:
            return data
        try:
            return self._decode(data, final=not data).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise ValueError(f"{self._path}: UTF-16 that ends within a character; the file is incomplete") from None

    def _encoding(self) -> str:
        """The encoding of the held head; removes its mark."""
        marks = [(mark, encoding) for mark, encoding in _MARKS if self._held.startswith(mark)]
        mark, encoding = marks[0] if marks else (b"", "utf-8")
        if encoding == "utf-32":
            raise ValueError(f"{self._path}: UTF-32, which is not read; save it as UTF-8")
        self._held = self._held[len(mark) :]
        if not self._held:
            raise ValueError(f"{self._path}: the file is empty")
        if encoding == "utf-8":
            self._refuse_other(self._held)
        return encoding

    def _refuse_other(self, head: bytes) -> None:
        """Refuse files that are not UTF-8 text before a parser complains about something unrelated."""
        for suffix, magic in COMPRESSIONS.items():
            if head.startswith(magic):
                raise ValueError(f"{self._path}: compressed; rename it so that its name ends in {suffix}")
        if (zero := head.find(b"\0")) < 0:
            return
        if (encoding := _unmarked(head)) is not None:
            raise ValueError(
                f"{self._path}: {encoding} without a byte-order mark (a zero byte at {zero}); save it as UTF-8"
            )
        raise ValueError(f"{self._path}: a binary file (a zero byte at {zero}), not text")


def open_utf8(path: str | Path) -> tuple[io.BufferedReader, Callable[[], int]]:
    """Open a file to be read as UTF-8 bytes.

    Args:
        path: its last suffix gives the compression.

    Returns:
        tuple: the stream, which the caller closes, and a function that returns how many bytes of the file were read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see ``Utf8File``; reading raises it too if a compressed file is damaged.
    """
    raw = Utf8File(path)
    return io.BufferedReader(raw, 1 << 17), lambda: raw.consumed


def _decompressed(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if suffix == ".zst":
        import pyarrow

        stream: BinaryIO = pyarrow.CompressedInputStream(file, "zstd")
        return stream
    return file


def _unmarked(head: bytes) -> str | None:
    """UTF-16 or UTF-32 if the head decodes to printable text in that encoding, else None."""
    for encoding, width in (("utf-32-le", 4), ("utf-32-be", 4), ("utf-16-le", 2), ("utf-16-be", 2)):
        whole = head[: len(head) - len(head) % width]
        if len(whole) < len(head) < _HEAD:
            continue
        text = codecs.getincrementaldecoder(encoding)("replace").decode(whole)
        if any(character.isascii() for character in text) and all(
            character.isprintable() or character.isspace() for character in text.replace("\ufffd", "\0")
        ):
            return encoding[:6].upper()
    return None
