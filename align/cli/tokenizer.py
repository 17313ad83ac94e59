"""``align tokenizer train|encode|decode``: results on stdout, progress on stderr."""

import json as jsonlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import numpy as np

from align.cli.parsing import dispatch, make_parser, parse
from align.io.progress import progress_bar
from align.tokenizer.bpe_training import sample_texts, train_tokenizer
from align.tokenizer.text_files import read_text, read_texts
from align.tokenizer.tokenizer import Tokenizer

_REPORT_BYTES = 4_000_000
"""UTF-8 bytes of the sample that a new tokenizer is measured on"""

_SOURCE = "model directory, tokenizer.json or Hub id"


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


def train(
    inputs: list[str],
    out: str,
    *,
    vocab_size: int = 8192,
    pattern: str = "gpt4",
    sample_bytes: int | None = None,
    processes: int = 1,
    field: str = "text",
    json: bool = False,
) -> None:
    """Train a byte-level BPE tokenizer on files and print how it encodes a sample of them.

    Args:
        inputs: files: .jsonl (one record per line), .json (a list of records), anything else plain UTF-8 text.
        out: directory for tokenizer.json and tokenizer_config.json.
        vocab_size: number of ids, including the 256 bytes and the 7 special tokens.
        pattern: split pattern: gpt2, gpt4, or a regular expression.
        sample_bytes: train on a random sample of about this many UTF-8 bytes; None: on everything.
        processes: processes that count words.
        field: field of a record's text; of a record without it the contents of ``messages`` are read.
        json: print one JSON object.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not text, a record has no text, or a setting is invalid.
    """
    if not inputs:
        raise ValueError("inputs is empty; name at least one file to train on")
    tokenizer = train_tokenizer(
        read_texts(inputs, field=field),
        vocab_size=vocab_size,
        pattern=pattern,
        sample_bytes=sample_bytes,
        processes=processes,
        progress=progress_bar,
    )
    tokenizer.save(Path(out))
    found = report(
        tokenizer, sample_texts(read_texts(inputs, field=field), min(sample_bytes or _REPORT_BYTES, _REPORT_BYTES))
    )
    if json:
        longest = [token._asdict() for token in found.longest]
        print(jsonlib.dumps({"out": out, "fingerprint": tokenizer.fingerprint, **found._asdict(), "longest": longest}))
        return
    print(f"{out}: {found.vocab_size} tokens, of which a sample of {found.bytes} bytes uses {found.tokens_used}")
    print(f"{found.bytes_per_token:.3f} bytes per token")
    print("longest tokens (bytes, times used):")
    for token in found.longest:
        print(f"  {token.text!r} ({token.bytes}, {token.uses})")


def encode(tokenizer: str, *, text: str | None = None, file: str | None = None, json: bool = False) -> None:
    """Print the ids of a text, in which names of special tokens are ordinary text.

    Args:
        tokenizer: model directory, tokenizer.json, or Hub id (owner/name).
        text: the text.
        file: a UTF-8 text file, instead of ``text``.
        json: print a JSON list instead of ids separated by spaces.

    Raises:
        FileNotFoundError: the tokenizer or the file does not exist.
        ValueError: the file is empty or not text, or not exactly one of text and file is given.
    """
    ids = Tokenizer.load(tokenizer).encode(_one_of(text, file, "text"))
    print(jsonlib.dumps(ids) if json else " ".join(map(str, ids)))


def decode(
    tokenizer: str, *, ids: list[int] | None = None, file: str | None = None, skip_special: bool = False
) -> None:
    """Print the text of ids.

    Args:
        tokenizer: model directory, tokenizer.json, or Hub id (owner/name).
        ids: the ids.
        file: a file of ids, instead of ``ids``: a JSON list, or ids separated by whitespace.
        skip_special: leave special tokens out instead of printing their names.

    Raises:
        FileNotFoundError: the tokenizer or the file does not exist.
        ValueError: an id is not one of the tokenizer's, or not exactly one of ids and file is given.
    """
    if ids is None or file is not None:
        written = _one_of(None if ids is None else " ".join(map(str, ids)), file, "ids")
        words = written.replace("[", " ").replace("]", " ").replace(",", " ").split()
        if wrong := [word for word in words if not word.isdecimal()]:
            raise ValueError(f"{file}: {wrong[0]!r} is not an id")
        ids = list(map(int, words))
    print(Tokenizer.load(tokenizer).decode(ids, skip_special=skip_special))


def _one_of(given: str | None, file: str | None, name: str) -> str:
    if (given is None) == (file is None):
        raise ValueError(f"give exactly one of {name} and file")
    if file is None:
        assert given is not None
        return given
    text = read_text(file)
    if not text:
        raise ValueError(f"{file}: the file is empty")
    return text


def main(args: list[str]) -> int:
    """Run a tokenizer verb.

    Args:
        args: the command line after ``align tokenizer``.

    Returns:
        int: exit code.
    """
    return dispatch("tokenizer", {"train": _train, "encode": _encode, "decode": _decode}, args)


def _train(args: list[str]) -> None:
    parser = make_parser("tokenizer train", "Train a byte-level BPE tokenizer and print how it encodes a sample.")
    parser.add_argument(
        "inputs", nargs="+", help=".jsonl (one record per line), .json (a list of records), else plain UTF-8 text"
    )
    parser.add_argument("--out", required=True, help="directory for tokenizer.json and tokenizer_config.json")
    parser.add_argument("--vocab_size", type=int, default=8192, help="ids, including 256 bytes and 7 special tokens")
    parser.add_argument("--pattern", default="gpt4", help="split pattern: gpt2, gpt4 or a regular expression")
    parser.add_argument("--sample_bytes", type=int, help="train on a random sample of about this size (default: all)")
    parser.add_argument("--processes", type=int, default=1, help="processes that count words")
    parser.add_argument("--field", default="text", help="field of a record's text")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    train(**_settings(parse(parser, args)))


def _encode(args: list[str]) -> None:
    parser = make_parser("tokenizer encode", "Print the ids of a text.")
    parser.add_argument("tokenizer", help=_SOURCE)
    parser.add_argument("--text", help="the text")
    parser.add_argument("--file", help="a UTF-8 text file, instead of --text")
    parser.add_argument("--json", action="store_true", help="print a JSON list of ids")
    encode(**_settings(parse(parser, args)))


def _decode(args: list[str]) -> None:
    parser = make_parser("tokenizer decode", "Print the text of ids.")
    parser.add_argument("tokenizer", help=_SOURCE)
    parser.add_argument("--ids", type=int, nargs="+", help="the ids")
    parser.add_argument("--file", help="a file of ids, as a JSON list or separated by whitespace, instead of --ids")
    parser.add_argument("--skip_special", action="store_true", help="leave special tokens out")
    decode(**_settings(parse(parser, args)))


def _settings(options: jsonargparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "config"}
