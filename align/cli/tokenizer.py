"""``align tokenizer train|encode|decode``."""

from typing import Any

import jsonargparse

from align.cli.parsing import dispatch, make_parser, parse
from align.tokenizer import commands

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
