"""Tokenizers in GGUF files: the names of their pre-tokenizers, and reading one from a file's metadata.

GGUF files contain no regular expressions: llama.cpp knows pre-tokenizers by name. The table here serves reading and
writing. Where llama.cpp departs from the tokenizer that a model was trained with (it never normalizes), a file is read
as that tokenizer.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from align.tokenizer.byte_level import ByteLevelSpec, chars_to_bytes, parse_merges
from align.tokenizer.library import LibrarySpec
from align.tokenizer.public_patterns import CJK, DEEPSEEK3, DIGIT, DIGITS, GPT2, GPT2_LONG, LLAMA3, QWEN2, TEKKEN
from align.tokenizer.spec import AddedToken, TokenizerSpec, begins_with
from align.tokenizer.splitting import PATTERNS, Split

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}
_SAME = {PATTERNS["gpt4"]: LLAMA3, GPT2_LONG: GPT2}


class TokenType(IntEnum):
    """llama.cpp's types of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class PreTokenizer(NamedTuple):
    """How llama.cpp splits text under a name.

    Attributes:
        names: llama.cpp's; the first is written.
        patterns: split patterns, applied in turn.
        nfc: whether the models under these names normalize to NFC; llama.cpp does not.
        ignore_merges: whether a word that is a token becomes that token without merging.
        adds_bos: whether a text opens with bos where ``tokenizer.ggml.add_bos_token`` is missing.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


PRE_TOKENIZERS = (
    PreTokenizer(("gpt-2", "phi-2"), (GPT2,)),
    PreTokenizer(("olmo", "mpt"), (GPT2,), nfc=True),  # OLMo and Pythia have GPT-NeoX's tokenizer
    PreTokenizer(("smollm", "starcoder", "refact"), (DIGIT, GPT2)),
    PreTokenizer(("command-r",), (DIGIT, GPT2), nfc=True),
    PreTokenizer(("llama-bpe", "llama3", "llama-v3"), (LLAMA3,), ignore_merges=True, adds_bos=True),
    PreTokenizer(("smaug-bpe",), (LLAMA3,), ignore_merges=True),  # SmolLM3, whose merges only llama.cpp does not ignore
    PreTokenizer(("dbrx",), (LLAMA3,)),  # OLMo-2
    PreTokenizer(("qwen2", "deepseek-r1-qwen", "megrez"), (QWEN2,), nfc=True),
    PreTokenizer(("stablelm2",), (QWEN2,)),
    PreTokenizer(("tekken",), (TEKKEN,), ignore_merges=True, adds_bos=True),
    PreTokenizer(("deepseek-v3",), (DIGITS, CJK, DEEPSEEK3)),
)
"""llama.cpp's pre-tokenizers of byte-level BPE that are read and written"""

_BY_NAME = {name: row for row in PRE_TOKENIZERS for name in row.names}


def find_pre_tokenizer(spec: ByteLevelSpec) -> PreTokenizer | None:
    """The row of the table that splits like a tokenizer, if possible with its other properties; None if none does."""
    if not all(split.keep_gaps for split in spec.splits):
        return None
    patterns = tuple(_SAME.get(split.pattern, split.pattern) for split in spec.splits)
    rows = [row for row in PRE_TOKENIZERS if row.patterns == patterns]
    return min(rows, key=lambda row: (row.ignore_merges != spec.ignore_merges, row.nfc != spec.nfc), default=None)


def spec_from_gguf(metadata: Mapping[str, Any]) -> TokenizerSpec:
    """The tokenizer of a GGUF file.

    Args:
        metadata: the file's fields by name, such as ``tokenizer.ggml.model``; arrays as lists.

    Raises:
        ValueError: a field is missing or damaged, or its kind of tokenizer or pre-tokenizer is not known.
    """
    fields = _Fields(metadata)
    kind = fields.need("model")
    if kind not in _READERS:
        raise ValueError(f"tokenizer.ggml.model is {kind!r}; known are {', '.join(sorted(_READERS))}")
    return _READERS[kind](fields)


_STOPS = ("eot_token_id", "eom_token_id")
"""Fields of tokens that end a response beside eos"""


class _Fields:
    """The fields ``tokenizer.ggml.*``."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: list[str] = list(self.need("tokens"))
        self.types = [self._type(number, index) for index, number in enumerate(self._rows("token_type"))]
        self.chat_template: str | None = metadata.get("tokenizer.chat_template")

    def get(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}", default)

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ValueError(f"the GGUF file has no tokenizer.ggml.{name}")
        return value

    def _rows(self, name: str) -> Sequence[Any]:
        rows: Sequence[Any] = self.need(name)
        if len(rows) != len(self.tokens):
            raise ValueError(f"tokenizer.ggml.{name} has {len(rows)} entries for {len(self.tokens)} tokens")
        return rows

    def _type(self, number: Any, index: int) -> TokenType:
        if number not in list(TokenType):
            known = f"{min(TokenType):d} to {max(TokenType):d}"
            raise ValueError(f"tokenizer.ggml.token_type is {number} for token {index}; known are {known}")
        return TokenType(number)

    def token_id(self, name: str) -> int | None:
        """The field of a token's id; None if the file does not have it."""
        number = self.get(name)
        if number is None:
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise ValueError(f"tokenizer.ggml.{name} is {number!r}, but there are {len(self.tokens)} tokens")
        return number

    def scores(self) -> Sequence[float]:
        return self._rows("scores")

    def added(self) -> tuple[AddedToken, ...]:
        kinds = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
        rows = enumerate(zip(self.tokens, self.types, strict=True))
        return tuple(AddedToken(i, text, special=kinds[kind]) for i, (text, kind) in rows if kind in kinds)

    def of_type(self, *kinds: TokenType) -> dict[str, int]:
        rows = enumerate(zip(self.tokens, self.types, strict=True))
        return {text: i for i, (text, kind) in rows if kind in kinds}

    def shared(self, *, adds_bos: bool) -> dict[str, Any]:
        """What every kind of `TokenizerSpec` has."""
        ids = {role: self.token_id(field) for role, field in _ROLES.items()}
        bos = ids["bos_token"]
        opens = bool(self.get("add_bos_token", adds_bos))
        return {
            "added": self.added(),
            "post_processor": begins_with(self.tokens[bos], bos) if opens and bos is not None else None,
            "config": {role: self.tokens[number] for role, number in ids.items() if number is not None},
            "chat_template": self.chat_template,
            "stops": tuple(number for name in _STOPS if (number := self.token_id(name)) is not None),
        }


def _read_byte_level(fields: _Fields) -> TokenizerSpec:
    name = fields.need("pre")
    if name not in _BY_NAME:
        raise ValueError(f"tokenizer.ggml.pre is {name!r}; known are {', '.join(sorted(_BY_NAME))}")
    row = _BY_NAME[name]
    names = fields.of_type(TokenType.NORMAL)
    ranks, made = parse_merges(fields.need("merges"), names)
    return ByteLevelSpec(
        vocab={_bytes_of(text): number for text, number in names.items()},
        ranks=ranks,
        made=made,
        splits=tuple(map(Split, row.patterns)),
        nfc=row.nfc,
        ignore_merges=row.ignore_merges,
        **fields.shared(adds_bos=row.adds_bos),
    )


def _bytes_of(text: str) -> bytes:
    try:
        return chars_to_bytes(text)
    except ValueError:  # written as text; no merge makes it
        return text.encode()


def _read_sentencepiece(fields: _Fields) -> TokenizerSpec:
    """SentencePiece's BPE: a pair is merged if it makes a token, in order of the scores."""
    for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if fields.get(name):
            raise ValueError(f"tokenizer.ggml.{name} is set, which is not supported")
    prefix = bool(fields.get("add_space_prefix", True))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = fields.token_id("unknown_token_id")
    names = {text: i for i, text in enumerate(fields.tokens) if fields.types[i] != TokenType.UNUSED}
    rest = {
        "normalizer": prepend if prefix else replace,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else fields.tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": names,
            "merges": scored_merges(fields.of_type(TokenType.NORMAL), fields.scores()),
        },
    }
    return LibrarySpec(rest=rest, **fields.shared(adds_bos=True))


def scored_merges(names: Mapping[str, int], scores: Sequence[float] | Mapping[int, float]) -> list[list[str]]:
    """All pairs of tokens that make a token, in the order in which SentencePiece merges them.

    Args:
        names: id of each token that text can become.
        scores: of each id; the highest is merged first, of equal ones the pair with the longest left token (as in
            transformers' conversion, so that a run of spaces grows from its start).
    """
    found = [
        (-scores[number], -i, -len(text), number, text[:i], text[i:])
        for text, number in names.items()
        for i in range(1, len(text))
        if text[:i] in names and text[i:] in names
    ]
    return [[left, right] for *_, left, right in sorted(found)]


_READERS = {"gpt2": _read_byte_level, "llama": _read_sentencepiece}
