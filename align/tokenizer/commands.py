"""What ``align tokenizer train|encode|decode`` do: results on stdout, progress on stderr."""

import json as jsonlib
import sys
from itertools import islice
from pathlib import Path

from align.tokenizer.inputs import read_text, read_texts
from align.tokenizer.report import report
from align.tokenizer.tokenizer import Tokenizer
from align.tokenizer.training import sample_texts, train_tokenizer

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
