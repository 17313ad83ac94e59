"""Byte-level BPE: its data, its form in tokenizer.json, and its encoder.

tokenizer.json writes tokens in GPT-2's byte alphabet (openai/gpt-2, ``bytes_to_unicode``), which has one printable
character per byte: printable Latin-1 bytes stand for themselves, the others, in order, are U+0100 and up.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from align.tokenizer.bpe import Merger, Pair, WordCache
from align.tokenizer.public_patterns import DIGIT, GPT2, TOTAL
from align.tokenizer.spec import AddedToken, Coder, TokenizerSpec, describe_added, parse_added, typecode_for
from align.tokenizer.splitting import Split, UnsupportedPatternError, check_splits, split_words

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

BYTE_ORDER = bytes(_PRINTABLE + _OTHERS)
"""The 256 bytes sorted by their character: ids 0 to 255 of GPT-2, of Hugging Face's trainer, and of ours"""

_TO_CHARS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_OTHERS)}
_TO_BYTES = {ord(char): byte for byte, char in _TO_CHARS.items()}
_CACHED_WORDS = 1 << 18
_SPACE = re.compile(r"\s+")


class OtherKindError(ValueError):
    """A tokenizer.json that is intact but not a byte-level BPE that is read here."""


@dataclass(frozen=True, kw_only=True)
class ByteLevelSpec(TokenizerSpec):
    """Everything that decides the ids of a byte-level BPE tokenizer."""

    vocab: dict[bytes, int]
    """Id of each token that BPE produces"""
    ranks: dict[Pair, int]
    """Rank of each pair of ids that is merged, from 0"""
    made: list[int]
    """Id that the pair of each rank becomes"""
    splits: tuple[Split, ...]
    """How text is split into words"""
    nfc: bool = False
    """Text is normalized to Unicode NFC first (Qwen, GPT-NeoX)"""
    ignore_merges: bool = False
    """A word that is a token becomes that token without merging (Llama-3)"""

    def coder(self) -> Coder:
        """See `TokenizerSpec`."""
        return ByteLevelCoder(self)

    def id_of(self, name: str) -> int | None:
        """See `TokenizerSpec`."""
        found = next((token.id for token in self.added if token.content == name), None)
        return self.vocab.get(name.encode()) if found is None else found

    def model_facts(self) -> Iterable[object]:
        """See `TokenizerSpec`."""
        added = {token.content.encode(): token.id for token in self.added}  # which some files list here too
        tokens = sorted((i, token.hex()) for token, i in self.vocab.items() if added.get(token) != i)
        merges = [(a, b, self.made[rank]) for (a, b), rank in self.ranks.items()]
        return tokens, merges, self.splits, self.nfc, self.ignore_merges

    def tokenizer_json(self) -> dict[str, Any]:
        """See `TokenizerSpec`."""
        added_ids = {token.content.encode(): token.id for token in self.added}
        name_of = {
            number: token.decode() if added_ids.get(token) == number else bytes_to_chars(token)
            for token, number in self.vocab.items()
        }
        names = {name_of[number]: number for number in sorted(name_of)}
        steps: list[dict[str, Any]] = [
            {
                "type": "Split",
                "pattern": {"Regex": split.pattern},
                "behavior": "Isolated" if split.keep_gaps else "Removed",
                "invert": not split.keep_gaps,
            }
            for split in self.splits
        ]
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": describe_added(self.added),
            "normalizer": {"type": "NFC"} if self.nfc else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": self.post_processor,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self.ignore_merges,
                "vocab": with_placed(names, self.added),
                "merges": [[name_of[a], name_of[b]] for a, b in self.ranks],
            },
        }


def with_placed(vocab: dict[str, int], added: Sequence[AddedToken]) -> dict[str, int]:
    """The vocabulary, with the added tokens in it if `tokenizers` would give them other ids than theirs.

    It numbers added tokens that the vocabulary lacks from the vocabulary's size on, in order.
    """
    outside = [token.id for token in added if token.content not in vocab]
    if outside == list(range(len(vocab), len(vocab) + len(outside))):
        return vocab
    return vocab | {token.content: token.id for token in added}


class ByteLevelCoder:
    """Encodes with a byte-level BPE; see `Coder`."""

    strips_start = False

    def __init__(self, spec: ByteLevelSpec) -> None:
        """Prepare the tables."""
        self.spec = spec
        added = {token.id: token.content.encode() for token in spec.added}
        self.pieces: dict[int, bytes] = {number: token for token, number in spec.vocab.items()} | added
        self.typecode = typecode_for(max(self.pieces) + 1)
        byte_ids = {byte: number for byte in range(256) if (number := spec.vocab.get(bytes([byte]))) is not None}
        self.missing_bytes = bytes(byte for byte in range(256) if byte not in byte_ids)
        self._merger = Merger(byte_ids, spec.ranks, spec.made, self.pieces)
        self._any = _Finder(spec.added)
        self._plain = _Finder([token for token in spec.added if not token.special])
        self._start_caches()

    def _start_caches(self) -> None:
        self._ids_cache: WordCache[str, tuple[int, ...]] = WordCache(
            lambda word: tuple(self._encode_word(word.encode())), _CACHED_WORDS
        )
        self._packed_cache: WordCache[str, bytes] = WordCache(
            lambda word: self._pack_ids(self._encode_word(word.encode())), _CACHED_WORDS
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickle everything but the caches."""
        return {key: value for key, value in self.__dict__.items() if not key.endswith("_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the coder with empty caches."""
        self.__dict__.update(state)
        self._start_caches()

    def encode(self, text: str) -> list[int]:
        """See `Coder`."""
        return self._encode(text, self._plain)

    def encode_template(self, text: str) -> list[int]:
        """See `Coder`."""
        return self._encode(text, self._any)

    def encode_invalid(self, data: bytes) -> list[int]:
        """See `Coder`; an invalid byte is split like a symbol and kept."""
        words = split_words(data.decode(errors="surrogateescape"), self.spec.splits)
        return [i for word in words for i in self._encode_word(word.encode(errors="surrogateescape"))]

    def pack(self, text: str) -> bytes:
        """See `Coder`."""
        packed: list[bytes] = []
        for part, added in self._segments(text, self._plain):
            packed.append(b"".join(map(self._packed_cache.__getitem__, split_words(part, self.spec.splits))))
            if added is not None:
                packed.append(self._pack_ids((added,)))
        return b"".join(packed)

    def first(self, piece: bytes) -> bytes:
        """See `Coder`."""
        return piece

    def _encode(self, text: str, find: "_Finder") -> list[int]:
        ids: list[int] = []
        for part, added in self._segments(text, find):
            ids += chain.from_iterable(map(self._ids_cache.__getitem__, split_words(part, self.spec.splits)))
            if added is not None:
                ids.append(added)
        return ids

    def _segments(self, text: str, find: "_Finder") -> Iterator[tuple[str, int | None]]:
        """Split a text at its added tokens: normalized ordinary text, each with the id of the added token after it.

        Tokens that are matched after normalization are searched for in what the others leave.
        """
        for part, added in find.raw(text):
            if self.spec.nfc and not part.isascii():
                part = unicodedata.normalize("NFC", part)
            yield from find.normalized(part)
            if added is not None:
                yield "", added

    def _encode_word(self, word: bytes) -> list[int]:
        if self.spec.ignore_merges and (number := self.spec.vocab.get(word)) is not None:
            return [number]
        return self._merger.merge(word)

    def _pack_ids(self, ids: Sequence[int]) -> bytes:
        return array(self.typecode, ids).tobytes()


class _Finder:
    """Finds added tokens in a text, the longest first."""

    def __init__(self, added: Sequence[AddedToken]) -> None:
        self._tokens = {token.content: token for token in added}
        self._raw = _pattern([token.content for token in added if not token.normalized])
        self._normalized = _pattern([token.content for token in added if token.normalized])

    def raw(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Text before each token that is matched before normalization, and its id."""
        return self._segments(text, self._raw)

    def normalized(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Text before each token that is matched after normalization, and its id."""
        return self._segments(text, self._normalized)

    def _segments(self, text: str, pattern: re.Pattern[str] | None) -> Iterator[tuple[str, int | None]]:
        start = 0
        for match in pattern.finditer(text) if pattern else ():
            token = self._tokens[match.group()]
            part, start = text[start : match.start()], match.end()
            if token.rstrip and (space := _SPACE.match(text, start)):
                start = space.end()
            yield part.rstrip() if token.lstrip else part, token.id
        if start < len(text):
            yield text[start:], None


def _pattern(contents: list[str]) -> re.Pattern[str] | None:
    contents = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def bytes_to_chars(data: bytes) -> str:
    """Write bytes in the byte alphabet."""
    return data.decode("latin-1").translate(_TO_CHARS)


def chars_to_bytes(text: str) -> bytes:
    """Read bytes written in the byte alphabet.

    Raises:
        ValueError: a character is not in the alphabet.
    """
    try:
        return bytes([_TO_BYTES[ord(char)] for char in text])
    except KeyError as error:
        raise ValueError(f"{chr(error.args[0])!r} in token {text!r} is not a byte-level character") from None


def parse_byte_level(data: dict[str, Any]) -> ByteLevelSpec:
    """Read a tokenizer.json.

    Raises:
        OtherKindError: it is not a byte-level BPE, or has something that only `tokenizers` can apply exactly.
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
    model = data["model"]
    if model.get("type", "BPE") != "BPE":
        raise OtherKindError(f"the model is {model['type']}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise OtherKindError(f"model.{name} is {model[name]!r}")
    nfc = _parse_normalizer(data.get("normalizer"))
    splits = _parse_pre_tokenizer(data.get("pre_tokenizer"))
    added = parse_added(data)
    for token in added:
        if token.single_word:
            raise OtherKindError(f"added token {token.content!r} has single_word")
        if token.normalized and nfc and unicodedata.normalize("NFC", token.content) != token.content:
            raise OtherKindError(f"added token {token.content!r} is matched after NFC, which changes it")
    if wrong := next((item for item in model["vocab"].items() if type(item[1]) is not int or item[1] < 0), None):
        raise ValueError(f"token {wrong[0]!r} has the id {wrong[1]!r}; ids are integers from 0")
    added_ids = {token.content: token.id for token in added}
    # Added tokens may be listed in the vocabulary, by their content.
    vocab = {
        name.encode() if added_ids.get(name) == number else chars_to_bytes(name): number
        for name, number in model["vocab"].items()
    }
    ranks, made = parse_merges(model["merges"], model["vocab"])
    outside, first = [token for token in added if token.content not in model["vocab"]], len(model["vocab"])
    if moved := next((token for number, token in enumerate(outside, first) if token.id != number), None):
        raise ValueError(
            f"added token {moved.content!r} has the id {moved.id}, but the vocabulary has {first} tokens, after which "
            "`tokenizers` numbers added tokens without gaps; list it in the vocabulary"
        )
    return ByteLevelSpec(
        vocab=vocab,
        ranks=ranks,
        made=made,
        splits=splits,
        added=added,
        nfc=nfc,
        ignore_merges=bool(model.get("ignore_merges")),
        post_processor=data.get("post_processor"),
    )


def parse_merges(merges: Sequence[Any], names: dict[str, int]) -> tuple[dict[Pair, int], list[int]]:
    """Ranks and results of merges, each ``"a b"`` or ``["a", "b"]``.

    Raises:
        ValueError: a merge has tokens outside the vocabulary ``names``.
    """
    ranks: dict[Pair, int] = {}
    made: list[int] = []
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        result = names.get(left + right)
        if left not in names or right not in names or result is None:
            raise ValueError(f"merge {rank} ({left!r}, {right!r}) has tokens outside the vocabulary")
        ranks[names[left], names[right]] = rank
        made.append(result)
    return ranks, made


def _parse_normalizer(normalizer: dict[str, Any] | None) -> bool:
    """Whether text is normalized to NFC."""
    if normalizer is None:
        return False
    steps = normalizer.get("normalizers", [normalizer])
    for step in steps:
        if step["type"] != "NFC":
            raise OtherKindError(f"the normalizer is {step['type']}")
    return bool(steps)


def _parse_pre_tokenizer(pre_tokenizer: dict[str, Any] | None) -> tuple[Split, ...]:
    """How text is split into words."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise OtherKindError("the last pre-tokenizer is not ByteLevel")
    splits = []
    for step in steps:
        if step["type"] == "ByteLevel":
            if step is not steps[-1]:
                raise OtherKindError("the pre-tokenizer has ByteLevel before its end, where it maps bytes twice")
            if step.get("add_prefix_space"):
                raise OtherKindError("ByteLevel has add_prefix_space")
            if step.get("use_regex", True):
                splits.append(Split(GPT2))
        elif step["type"] == "Digits":
            splits.append(Split(DIGIT if step.get("individual_digits") else r"\p{N}+"))
        elif step["type"] == "Split":
            splits.append(_parse_split(step))
        else:
            raise OtherKindError(f"the pre-tokenizer has {step['type']}")
    try:
        check_splits(tuple(splits))
    except UnsupportedPatternError as error:
        raise OtherKindError(str(error)) from None
    return tuple(splits)


def _parse_split(step: dict[str, Any]) -> Split:
    pattern = step["pattern"]
    expression = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
    behaviour, invert = step["behavior"], bool(step.get("invert"))
    if behaviour == "Isolated" or (behaviour == "Removed" and invert and expression in TOTAL):
        return Split(expression)
    if behaviour == "Removed" and invert:
        return Split(expression, keep_gaps=False)
    raise OtherKindError(f"the Split pre-tokenizer has behavior {behaviour} with invert {invert}")
