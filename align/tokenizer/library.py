"""Tokenizers that are not byte-level BPE, through Hugging Face's ``tokenizers`` library.

SentencePiece's BPE with byte fallback (Llama-2, Mistral, Gemma) and unigram models have many variants of normalizers
and pre-tokenizers. The library applies them, so ids equal its own. What this module adds:

1. Names of special tokens in ordinary text stay text (``encode_special_tokens``). A unigram model could also produce
   them from its vocabulary, so there they get names that no text has.
2. The exact bytes of each id, from the steps of the decoder, so that text can be decoded id by id.
3. Bytes that are not UTF-8 become byte tokens, where the vocabulary has them.

The library is imported when such a tokenizer is loaded.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

from align.tokenizer.byte_level import chars_to_bytes, with_placed
from align.tokenizer.spec import Coder, TokenizerSpec, describe_added, parse_added, typecode_for

if TYPE_CHECKING:
    import tokenizers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Characters for bytes that are not UTF-8 while the library encodes: noncharacters, which have no other use.
_STAND_INS = ("\U0010fffe", "\U0010ffff", "\U000ffffe", "\U000fffff")
_HIDDEN = "\U000efffe"  # begins the names of special tokens that a unigram model must not find


@dataclass(frozen=True, kw_only=True)
class LibrarySpec(TokenizerSpec):
    """A tokenizer that the ``tokenizers`` library applies."""

    rest: dict[str, Any]
    """tokenizer.json without added tokens, post-processor, truncation and padding"""

    def coder(self) -> Coder:
        """See `TokenizerSpec`."""
        return LibraryCoder(self)

    def tokenizer_json(self) -> dict[str, Any]:
        """See `TokenizerSpec`."""
        model = self.rest["model"]
        if isinstance(model.get("vocab"), dict):
            model = model | {"vocab": with_placed(model["vocab"], self.added)}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": describe_added(self.added),
            **self.rest,
            "model": model,
            "post_processor": self.post_processor,
        }

    def id_of(self, name: str) -> int | None:
        """See `TokenizerSpec`."""
        found = next((token.id for token in self.added if token.content == name), None)
        return self.model_names.get(name) if found is None else found

    def model_facts(self) -> Iterable[object]:
        """See `TokenizerSpec`."""
        return (self.rest,)

    @cached_property
    def model_names(self) -> dict[str, int]:
        """Id of each token of the model."""
        vocab = self.rest["model"]["vocab"]
        return vocab if isinstance(vocab, dict) else {name: number for number, (name, _) in enumerate(vocab)}


def parse_library(data: dict[str, Any], reason: str) -> LibrarySpec:
    """Read a tokenizer.json of any kind.

    Args:
        data: its content.
        reason: why align can't apply it itself.

    Raises:
        ValueError: the library is missing, or the tokenizer can't be decoded id by id, or is random.
        KeyError, TypeError, AttributeError: it is damaged.
    """
    own = ("version", "truncation", "padding", "added_tokens", "post_processor")
    if data["model"].get("dropout"):
        raise ValueError(f"model.dropout is {data['model']['dropout']!r}, with which ids are random; set it to null")
    spec = LibrarySpec(
        rest={name: value for name, value in data.items() if name not in own},
        added=parse_added(data),
        post_processor=data.get("post_processor"),
    )
    _Decoder(spec.rest.get("decoder"))
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise ValueError(f"{reason}: reading it needs the package tokenizers (pip install tokenizers)") from None
    return spec


class LibraryCoder:
    """Encodes with the library; see `Coder`."""

    def __init__(self, spec: LibrarySpec) -> None:
        """Prepare the tables.

        Raises:
            ValueError: the library can't read the tokenizer, or gives tokens other ids than the file says.
        """
        self.spec = spec
        decoder = _Decoder(spec.rest.get("decoder"))
        self.strips_start, self.first = decoder.strips_start, decoder.first
        special = {token.content for token in spec.added if token.special}
        names = spec.model_names | {token.content: token.id for token in spec.added}
        self.pieces = {
            number: name.encode() if name in special else decoder.piece(name) for name, number in names.items()
        }
        self.typecode = typecode_for(max(self.pieces) + 1)
        model = spec.rest["model"]
        unknown = spec.id_of(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")
        self._special = {token.id for token in spec.added if token.special} - {unknown}
        found = {match[1]: number for name, number in names.items() if (match := _BYTE.fullmatch(name))}
        self._byte_ids = {int(byte, 16): number for byte, number in found.items()} if decoder.byte_fallback else {}
        self.missing_bytes = bytes(b for b in range(256) if b not in self._byte_ids) if decoder.byte_fallback else b""
        for token in spec.added:
            if (number := self._ordinary.token_to_id(self._hidden(token.content, token.id))) != token.id:
                raise ValueError(f"added token {token.content!r}: its id is {token.id}, but tokenizers reads {number}")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the data only; the library's objects are built again."""
        return {"spec": self.spec}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build everything again."""
        self.__init__(state["spec"])  # type: ignore[misc]

    def encode(self, text: str) -> list[int]:
        """See `Coder`."""
        ids = _encode(self._ordinary, text)
        if not self._special.isdisjoint(ids):
            names = sorted(self.pieces[i].decode() for i in self._special.intersection(ids))
            raise ValueError(f"the text {text[:80]!r} is encoded to the special token {names[0]!r}; remove it")
        return ids

    def encode_template(self, text: str) -> list[int]:
        """See `Coder`."""
        return _encode(self._templates, text)

    def encode_invalid(self, data: bytes) -> list[int]:
        """See `Coder`; without byte tokens, what is not UTF-8 becomes U+FFFD."""
        text = data.decode(errors="surrogateescape")
        stand_in = next((char for char in _STAND_INS if char not in text), None)
        if not self._byte_ids or stand_in is None:
            return self.encode(data.decode(errors="replace"))
        invalid = [ord(char) - 0xDC00 for char in text if "\udc80" <= char <= "\udcff"]
        ids = self.encode(re.sub("[\udc80-\udcff]", stand_in, text))
        mark = [self._byte_ids.get(byte, -1) for byte in stand_in.encode()]
        out: list[int] = []
        for number in ids:
            out.append(number)
            if out[-len(mark) :] == mark:
                out[-len(mark) :] = [i for i in [self._byte_ids.get(invalid.pop(0))] if i is not None]
        return out

    def pack(self, text: str) -> bytes:
        """See `Coder`."""
        return array(self.typecode, self.encode(text)).tobytes()

    @cached_property
    def _unigram(self) -> bool:
        return self.spec.rest["model"].get("type") == "Unigram"

    def _hidden(self, name: str, number: int) -> str:
        return f"{_HIDDEN}{number}" if self._unigram and number in self._special else name

    @cached_property
    def _ordinary(self) -> "tokenizers.Tokenizer":
        """The library's tokenizer for ordinary text."""
        data = self.spec.tokenizer_json() | {"post_processor": None}
        if self._unigram:
            rows = enumerate(data["model"]["vocab"])
            data["model"] = data["model"] | {"vocab": [[self._hidden(name, i), score] for i, (name, score) in rows]}
            data["added_tokens"] = [
                token | {"content": self._hidden(token["content"], token["id"])} for token in data["added_tokens"]
            ]
        peer = _peer(data)
        peer.encode_special_tokens = True
        return peer

    @cached_property
    def _templates(self) -> "tokenizers.Tokenizer":
        """The library's tokenizer for the text of chat templates."""
        return _peer(self.spec.tokenizer_json() | {"post_processor": None})


def _encode(peer: "tokenizers.Tokenizer", text: str) -> list[int]:
    try:
        ids: list[int] = peer.encode(text, add_special_tokens=False).ids
    except TypeError:
        text.encode()  # a lone surrogate, for which the library blames the type
        raise
    return ids


def _peer(data: dict[str, Any]) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"tokenizers can't read it: {error}") from None


class _Decoder:
    """The steps of a decoder, as far as they act on each token alone, and on the start of a text."""

    def __init__(self, decoder: dict[str, Any] | None) -> None:
        if decoder is None:
            raise ValueError("it has no decoder, so ids have no exact text")
        self.byte_fallback = False
        self._changes: list[Callable[[str], str]] = []
        self._byte_level = False
        self._first: Callable[[bytes], bytes] | None = None
        for step in decoder.get("decoders", [decoder]):
            self._add(step)
        self.strips_start = self._first is not None

    def _add(self, step: dict[str, Any]) -> None:
        kind = step["type"]
        if kind == "Fuse":
            return
        if kind == "ByteFallback":
            self.byte_fallback = True
        elif kind == "ByteLevel":
            self._byte_level = True
        elif kind == "Replace" and "String" in step["pattern"]:
            old, new = step["pattern"]["String"], step["content"]
            self._changes.append(lambda text: text.replace(old, new))
        elif kind == "Metaspace":
            self._changes.append(lambda text: text.replace(step["replacement"], " "))
            if step.get("prepend_scheme", "always") != "never":
                self._first = lambda piece: piece.replace(b" ", b"")
        elif kind == "Strip" and step["content"] == " " and step["start"] == 1 and not step["stop"]:
            self._first = lambda piece: piece.removeprefix(b" ")
        else:
            raise ValueError(f"the decoder has {kind}, with which ids have no exact text")

    def piece(self, name: str) -> bytes:
        """The bytes of a token."""
        name = reduce(lambda text, change: change(text), self._changes, name)
        if self.byte_fallback and (match := _BYTE.fullmatch(name)):
            return bytes([int(match[1], 16)])
        if self._byte_level:
            try:
                return chars_to_bytes(name)
            except ValueError:
                pass
        return name.encode()

    def first(self, piece: bytes) -> bytes:
        """What is left of a piece that begins a text."""
        return piece if self._first is None else self._first(piece)
