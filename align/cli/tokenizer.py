"""``align tokenizer train|encode|decode``: results on stdout, progress on stderr."""

import json as jsonlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align.cli.parsing import dispatch
from align.cli.settings import parse_settings, setting
from align.data.formats.fields import as_chat, as_text
from align.data.readers import BadRecords, Record, Source, find_sources
from align.io.progress import progress_bar
from align.tokenizer.bpe_training import sample_texts, train_tokenizer
from align.tokenizer.chat_template import text_of
from align.tokenizer.tokenizer import Tokenizer

_REPORT_BYTES = 4_000_000
"""UTF-8 bytes of the sample that a new tokenizer is measured on"""


class LongToken(NamedTuple):
    """A token among the longest in a text.

    Attributes:
        text: the token, decoded.
        bytes: its length, UTF-8 bytes.
        uses: number of occurrences.
    """

    text: str
    bytes: int
    uses: int


class TokenizerReport(NamedTuple):
    """How a tokenizer encodes a text.

    Attributes:
        bytes: length of the text, UTF-8 bytes.
        tokens: length of the text, tokens.
        bytes_per_token: ``bytes / tokens``.
        tokens_used: number of distinct ids in the text.
        vocab_size: number of ids of the tokenizer.
        longest: the longest tokens in the text, longest first, then most frequent first.
    """

    bytes: int
    tokens: int
    bytes_per_token: float
    tokens_used: int
    vocab_size: int
    longest: list[LongToken]


def report(tokenizer: Tokenizer, texts: Iterable[str], *, longest: int = 10, processes: int = 1) -> TokenizerReport:
    """Measure how a tokenizer encodes texts.

    Args:
        tokenizer: the tokenizer.
        texts: read once.
        longest: number of longest tokens to list.
        processes: processes that encode.

    Raises:
        ValueError: all texts are empty.
    """
    ids, _ = tokenizer.encode_to_array(texts, processes=processes)
    if not len(ids):
        raise ValueError("no text to measure the tokenizer on: all texts are empty")
    counts = np.bincount(ids, minlength=tokenizer.vocab_size)
    used = np.flatnonzero(counts)
    lengths = tokenizer.token_bytes
    ranking = used[np.lexsort((used, -counts[used], -lengths[used]))][:longest].tolist()
    size = int(counts @ lengths)
    return TokenizerReport(
        bytes=size,
        tokens=len(ids),
        bytes_per_token=size / len(ids),
        tokens_used=len(used),
        vocab_size=tokenizer.vocab_size,
        longest=[LongToken(tokenizer.token_text(i), int(lengths[i]), int(counts[i])) for i in ranking],
    )


@dataclass(frozen=True)
class TrainSettings:
    """Train a byte-level BPE tokenizer on files and print how it encodes a sample of them.

    Raises:
        ValueError: there are no files.
    """

    inputs: tuple[str, ...] = setting(positional=True)
    """Files, globs or Hub ids, of all types that training reads (docs/data.md)"""
    out: str = setting()
    """Directory for tokenizer.json and tokenizer_config.json"""
    vocab_size: int = 8192
    """Number of ids, including the 256 bytes and the 7 special tokens"""
    pattern: str = "gpt4"
    """Split pattern: gpt2, gpt4, or a regular expression"""
    sample_bytes: int | None = None
    """Train on a random sample of about this many UTF-8 bytes; null: on everything"""
    processes: int = 1
    """Processes that count words"""
    field: str = "text"
    """Field of a record's text; of a record without it the contents of its messages are read"""
    json: bool = False
    """Print one JSON object"""

    def __post_init__(self) -> None:
        """Reject an empty list of files."""
        if not self.inputs:
            raise ValueError("inputs is empty; name at least one file to train on")


def train(settings: TrainSettings) -> None:
    """Train a tokenizer, write it and print how it encodes.

    Args:
        settings: of the command.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty, damaged or not text, a record has no text, or a setting is invalid.
    """
    inputs, out, field, sample = settings.inputs, settings.out, settings.field, settings.sample_bytes
    tokenizer = train_tokenizer(
        read_texts(inputs, field=field),
        vocab_size=settings.vocab_size,
        pattern=settings.pattern,
        sample_bytes=sample,
        processes=settings.processes,
        progress=progress_bar,
    )
    tokenizer.save(Path(out))
    found = report(
        tokenizer, sample_texts(read_texts(inputs, field=field), min(sample or _REPORT_BYTES, _REPORT_BYTES))
    )
    if settings.json:
        longest = [token._asdict() for token in found.longest]
        print(jsonlib.dumps({"out": out, "fingerprint": tokenizer.fingerprint, **found._asdict(), "longest": longest}))
        return
    print(f"{out}: {found.vocab_size} tokens, of which a sample of {found.bytes} bytes uses {found.tokens_used}")
    print(f"{found.bytes_per_token:.3f} bytes per token")
    print("longest tokens (bytes, times used):")
    for token in found.longest:
        print(f"  {token.text!r} ({token.bytes}, {token.uses})")


def read_texts(inputs: Sequence[str], *, field: str = "text") -> Iterator[str]:
    """The texts of files and Hub data sets, in bounded memory.

    Args:
        inputs: what ``find_sources`` takes.
        field: of a record's text; of a record without it the contents of ``messages`` are read.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file can't be read, or a record has no text; names the file and the line.
    """
    for source in find_sources(inputs):
        if source.kind == "text":
            yield from source.text_blocks()
            continue
        for record in source.records(BadRecords("stop", hint="")):
            try:
                yield from _record_texts(record, field)
            except ValueError as error:
                raise ValueError(f"{record.source}: {record.location}: {error}") from None


def _record_texts(record: Record, field: str) -> list[str]:
    fields = record.fields
    if fields.get(field) is not None:
        return [as_text(fields[field], field)]
    if fields.get("messages") is None:
        raise ValueError(f"field {field!r} has no text, and there are no messages; its fields are {', '.join(fields)}")
    return [text_of(message.get("content")) for message in as_chat(fields["messages"], "messages")]


@dataclass(frozen=True)
class EncodeSettings:
    """Print the ids of a text, in which names of special tokens are ordinary text."""

    tokenizer: str = setting(positional=True)
    """Model directory, tokenizer.json, or Hub id (owner/name)"""
    text: str | None = None
    """The text"""
    file: str | None = None
    """A text file, instead of --text"""
    json: bool = False
    """Print a JSON list instead of ids separated by spaces"""


def encode(settings: EncodeSettings) -> None:
    """Print the ids of a text.

    Args:
        settings: of the command.

    Raises:
        FileNotFoundError: the tokenizer or the file does not exist.
        ValueError: the file is empty or not text, or not exactly one of text and file is given.
    """
    ids = Tokenizer.load(settings.tokenizer).encode(_one_of(settings.text, settings.file, "text"))
    print(jsonlib.dumps(ids) if settings.json else " ".join(map(str, ids)))


@dataclass(frozen=True)
class DecodeSettings:
    """Print the text of ids."""

    tokenizer: str = setting(positional=True)
    """Model directory, tokenizer.json, or Hub id (owner/name)"""
    ids: tuple[int, ...] | None = None
    """The ids"""
    file: str | None = None
    """A file of ids, instead of --ids: a JSON list, or ids separated by whitespace"""
    skip_special: bool = False
    """Leave special tokens out instead of printing their names"""


def decode(settings: DecodeSettings) -> None:
    """Print the text of ids.

    Args:
        settings: of the command.

    Raises:
        FileNotFoundError: the tokenizer or the file does not exist.
        ValueError: an id is not one of the tokenizer's, or not exactly one of ids and file is given.
    """
    ids, file = settings.ids, settings.file
    if ids is None or file is not None:
        written = _one_of(None if ids is None else " ".join(map(str, ids)), file, "ids")
        words = written.replace("[", " ").replace("]", " ").replace(",", " ").split()
        if wrong := [word for word in words if not word.isdecimal()]:
            raise ValueError(f"{file}: {wrong[0]!r} is not an id")
        ids = tuple(map(int, words))
    print(Tokenizer.load(settings.tokenizer).decode(ids, skip_special=settings.skip_special))


def _one_of(given: str | None, file: str | None, name: str) -> str:
    if (given is None) == (file is None):
        raise ValueError(f"give exactly one of {name} and file")
    if file is None:
        assert given is not None
        return given
    return "".join(Source(file, "text").text_blocks())


def main(args: list[str]) -> int:
    """Run a tokenizer verb.

    Args:
        args: the command line after ``align tokenizer``.

    Returns:
        int: exit code.
    """
    return dispatch("tokenizer", {"train": _train, "encode": _encode, "decode": _decode}, args)


def _train(args: list[str]) -> None:
    train(parse_settings(TrainSettings, "tokenizer train", args))


def _encode(args: list[str]) -> None:
    encode(parse_settings(EncodeSettings, "tokenizer encode", args))


def _decode(args: list[str]) -> None:
    decode(parse_settings(DecodeSettings, "tokenizer decode", args))
