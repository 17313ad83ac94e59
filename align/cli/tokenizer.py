"""How well a tokenizer suits a text.

What ``align tokenizer train|encode|decode`` do: results on stdout, progress on stderr.

``align tokenizer train|encode|decode``.
"""

import json as jsonlib
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import numpy as np

from align.cli import tokenizer as commands
from align.cli.parsing import dispatch, make_parser, parse
from align.tokenizer.bpe_training import sample_texts, train_tokenizer
from align.tokenizer.text_files import read_text, read_texts
from align.tokenizer.tokenizer import Tokenizer


class LongToken(NamedTuple):
    """A token among the longest in use."""

    text: str
    """What it says"""
    bytes: int
    """Its length, UTF-8 bytes"""
    uses: int
    """How often it occurs"""


class TokenizerReport(NamedTuple):
    """How a tokenizer encodes a text."""

    bytes: int
    """Length of the text, UTF-8 bytes"""
    tokens: int
    """Its length, tokens"""
    bytes_per_token: float
    """The first by the second"""
    tokens_used: int
    """Distinct ids that occur"""
    vocab_size: int
    """Ids there are"""
    longest: list[LongToken]
    """The longest tokens that occur, longest first, then commonest first"""


def report(tokenizer: Tokenizer, texts: Iterable[str], *, longest: int = 10, processes: int = 1) -> TokenizerReport:
    """Encode texts and measure.

    Args:
        tokenizer: to be judged.
        texts: read once.
        longest: how many of the longest tokens to name.
        processes: processes that encode.

    Raises:
        ValueError: there is no text.
    """
    ids, _ = tokenizer.encode_to_array(texts, processes=processes)
    if not len(ids):
        raise ValueError("no text to measure the tokenizer on: every text was empty")
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


_REPORT_BYTES = 4_000_000


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
    """Learn a byte-level BPE tokenizer from files and say how well it suits them.

    Args:
        inputs: Files: .jsonl (a record a line), .json (a list of records), anything else plain UTF-8 text.
        out: Directory to write tokenizer.json and tokenizer_config.json to.
        vocab_size: Number of ids, the 256 bytes and the 7 special tokens included.
        pattern: How text is cut into words: gpt2, gpt4, or a regular expression.
        sample_bytes: Learn from a random sample of about this many UTF-8 bytes; null: from everything.
        processes: Processes that count words.
        field: Field of a record that holds its text; records without it give the contents of their messages.
        json: Print one JSON object instead of lines for people.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is empty or not text, a record has no text, or a setting is impossible.
    """
    if not inputs:
        raise ValueError("inputs is empty; name at least one file to learn from")
    tokenizer = train_tokenizer(
        read_texts(inputs, field=field),
        vocab_size=vocab_size,
        pattern=pattern,
        sample_bytes=sample_bytes,
        processes=processes,
        progress=sys.stderr.isatty(),
    )
    tokenizer.save(Path(out))
    found = report(
        tokenizer, sample_texts(read_texts(inputs, field=field), min(sample_bytes or _REPORT_BYTES, _REPORT_BYTES))
    )
    if json:
        longest = [token._asdict() for token in found.longest]
        print(jsonlib.dumps({"out": out, "fingerprint": tokenizer.fingerprint, **found._asdict(), "longest": longest}))
        return
    print(f"{out}: {found.vocab_size} tokens, {found.tokens_used} of them used in a sample of {found.bytes} bytes")
    print(f"{found.bytes_per_token:.3f} bytes per token")
    print("longest tokens (bytes, times used):")
    for token in found.longest:
        print(f"  {token.text!r} ({token.bytes}, {token.uses})")


def encode(tokenizer: str, *, text: str | None = None, file: str | None = None, json: bool = False) -> None:
    """Print the ids of a text; names of special tokens in it are text like any other.

    Args:
        tokenizer: Model directory, tokenizer.json, or a model on the Hugging Face Hub (owner/name).
        text: The text.
        file: A UTF-8 text file to read instead.
        json: Print one JSON list instead of ids with spaces between.

    Raises:
        FileNotFoundError: the tokenizer or the file is missing.
        ValueError: the file is empty or not text, or not exactly one of text and file is given.
    """
    ids = Tokenizer.load(tokenizer).encode(_one_of(text, file, "text"))
    print(jsonlib.dumps(ids) if json else " ".join(map(str, ids)))


def decode(
    tokenizer: str, *, ids: list[int] | None = None, file: str | None = None, skip_special: bool = False
) -> None:
    """Print the text of ids.

    Args:
        tokenizer: Model directory, tokenizer.json, or a model on the Hugging Face Hub (owner/name).
        ids: The ids.
        file: A file to read them from instead: a JSON list, or ids with white space between.
        skip_special: Leave special tokens out instead of writing their names.

    Raises:
        FileNotFoundError: the tokenizer or the file is missing.
        ValueError: what is given is not ids of this tokenizer, or not exactly one of ids and file is given.
    """
    if ids is None or file is not None:
        written = _one_of(None if ids is None else " ".join(map(str, ids)), file, "ids")
        words = written.replace("[", " ").replace("]", " ").replace(",", " ").split()
        wrong = next(islice((word for word in words if not word.isdecimal()), 1), None)
        if wrong is not None:
            raise ValueError(f"{file}: {wrong!r} is not an id")
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


_SOURCE = "model directory, tokenizer.json or Hub id"


def main(args: list[str]) -> int:
    """Run a tokenizer verb.

    Args:
        args: the command line after ``align tokenizer``.

    Returns:
        int: exit code.
    """
    return dispatch("tokenizer", {"train": _train, "encode": _encode, "decode": _decode}, args)


def _train(args: list[str]) -> None:
    parser = make_parser(
        "tokenizer train", "Learn a byte-level BPE tokenizer from files and say how well it suits them."
    )
    parser.add_argument(
        "inputs", nargs="+", help=".jsonl (a record a line), .json (a list of records), anything else plain UTF-8 text"
    )
    parser.add_argument("--out", required=True, help="directory for tokenizer.json and tokenizer_config.json")
    parser.add_argument("--vocab_size", type=int, default=8192, help="ids, the 256 bytes and 7 special tokens included")
    parser.add_argument(
        "--pattern", default="gpt4", help="how text is cut into words: gpt2, gpt4 or a regular expression"
    )
    parser.add_argument(
        "--sample_bytes", type=int, help="learn from a random sample of about this many bytes (default: all)"
    )
    parser.add_argument("--processes", type=int, default=1, help="processes that count words")
    parser.add_argument("--field", default="text", help="field of a record that holds its text")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parse(parser, args)
    commands.train(**_settings(options))


def _encode(args: list[str]) -> None:
    parser = make_parser("tokenizer encode", "Print the ids of a text.")
    parser.add_argument("tokenizer", help=_SOURCE)
    parser.add_argument("--text", help="the text")
    parser.add_argument("--file", help="a UTF-8 text file, instead of --text")
    parser.add_argument("--json", action="store_true", help="print one JSON list of ids")
    commands.encode(**_settings(parse(parser, args)))


def _decode(args: list[str]) -> None:
    parser = make_parser("tokenizer decode", "Print the text of ids.")
    parser.add_argument("tokenizer", help=_SOURCE)
    parser.add_argument("--ids", type=int, nargs="+", help="the ids")
    parser.add_argument("--file", help="a file of ids, a JSON list or with white space between, instead of --ids")
    parser.add_argument("--skip_special", action="store_true", help="leave special tokens out")
    commands.decode(**_settings(parse(parser, args)))


def _settings(options: jsonargparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "config"}
