"""A tokenizer as data: what all kinds share, and the interface of what encodes with it."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

Typecode = Literal["H", "I"]


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text itself, before the model sees it."""

    id: int
    """Its id"""
    content: str
    """The text it stands for"""
    special: bool = True
    """True: only chat templates produce it; False: ordinary text with its content does too"""
    lstrip: bool = False
    """Its match includes the whitespace before it"""
    rstrip: bool = False
    """Its match includes the whitespace after it"""
    normalized: bool = False
    """It is matched after normalization, and after all tokens that are not"""
    single_word: bool = False
    """It is matched only between characters that are not part of words"""


class Coder(Protocol):
    """Turns text into ids, and knows the bytes of each id."""

    pieces: dict[int, bytes]
    """Bytes of each id, added tokens by their content"""
    typecode: Typecode
    """array's typecode for ids: uint16 if every id fits, else uint32"""
    missing_bytes: bytes
    """Bytes that no token can express"""
    strips_start: bool
    """Whether `first` changes any piece"""

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text; names of special tokens are text."""
        ...

    def encode_template(self, text: str) -> list[int]:
        """The ids of a text in which the names of all added tokens stand for them."""
        ...

    def encode_invalid(self, data: bytes) -> list[int]:
        """The ids of bytes that are not UTF-8."""
        ...

    def pack(self, text: str) -> bytes:
        """`encode` as the bytes of an array of `typecode`."""
        ...

    def first(self, piece: bytes) -> bytes:
        """What is left of a piece that begins a text."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec(ABC):
    """Everything that decides the ids of a tokenizer; subclasses add the model."""

    added: tuple[AddedToken, ...] = ()
    """Special and other added tokens, by id"""
    post_processor: dict[str, Any] | None = None
    """What a reader adds around a text, as in tokenizer.json"""
    config: dict[str, Any] = field(default_factory=dict)
    """tokenizer_config.json without the chat template"""
    chat_template: str | None = None
    """Jinja source"""
    stops: tuple[int, ...] = ()
    """Ids that the model's own generation settings name as the end of a response; they decide no ids of texts"""

    @abstractmethod
    def coder(self) -> Coder:
        """What encodes with this tokenizer."""

    @abstractmethod
    def tokenizer_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""

    @abstractmethod
    def id_of(self, name: str) -> int | None:
        """The id of a token by its text; None if there is none."""

    @abstractmethod
    def model_facts(self) -> Iterable[object]:
        """What of the model decides ids, as JSON-able objects, for `fingerprint`."""

    def named(self, role: str) -> str | None:
        """The text of the token that tokenizer_config.json names for a role (``eos_token``), or None."""
        return token_text(self.config.get(role))

    @property
    def opening(self) -> tuple[str, ...]:
        """The tokens that begin a document.

        Of the tokenizers that we train, what tokenizer_config.json says under ``OPENING``. Of others, what they put
        before a text: ``add_bos_token`` of tokenizer_config.json decides if it is there, as in transformers; else the
        post-processor.
        """
        own = self.config.get(OPENING)
        return self.added_before if own is None else (own,)

    @property
    def added_before(self) -> tuple[str, ...]:
        """The tokens that other programs put before every text, as transformers does."""
        adds_bos, bos = self.config.get("add_bos_token"), self.named("bos_token")
        if adds_bos is not None and bos is not None:
            return (bos,) if adds_bos else ()
        return next(filter(None, map(_opening, _steps(self.post_processor))), ())

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids, in hexadecimal."""
        digest = hashlib.sha256()
        added = [(t.id, t.content, t.special, t.lstrip, t.rstrip, t.normalized, t.single_word) for t in self.added]
        roles = sorted((role, self.named(role)) for role in self.config if role.endswith("_token"))
        for part in (*self.model_facts(), added, self.opening, roles, self.chat_template):
            digest.update(json.dumps(part, sort_keys=True).encode())
        return digest.hexdigest()


def token_text(value: Any) -> str | None:
    """The text of a token in a configuration: a string, or an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


OPENING = "document_prefix"
"""Setting of tokenizer_config.json, read by align alone: the token that begins a document.

A post-processor would say it to other programs too, but lm-evaluation-harness puts a bos of its own before each text of
a rolling perplexity: with both, the first token is predicted after two of them, which training never saw.
"""


def begins_with(name: str, number: int) -> dict[str, Any]:
    """A post-processor that puts one token before each text."""
    token = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [token, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            token,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": name, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }


def typecode_for(vocab_size: int) -> Typecode:
    """The smallest array type that holds every id."""
    return "H" if vocab_size <= 1 << 16 else "I"


def parse_added(data: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """The added tokens of a tokenizer.json.

    Raises:
        ValueError: they are no list, or two have the same id, or one is no id.
    """
    tokens = data.get("added_tokens", [])
    if not isinstance(tokens, list):
        raise ValueError(f"added_tokens is {tokens!r}; it must be a list")
    added = tuple(AddedToken(**{name: token[name] for name in _TOKEN_FIELDS if name in token}) for token in tokens)
    ids = [token.id for token in added]
    if any(type(number) is not int or number < 0 for number in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"added_tokens have the ids {ids[:8]}; they must be integers from 0, each once")
    return added


def describe_added(added: Sequence[AddedToken]) -> list[dict[str, Any]]:
    """The opposite of `parse_added`."""
    return [{name: getattr(token, name) for name in _TOKEN_FIELDS} for token in added]


_TOKEN_FIELDS = tuple(f.name for f in fields(AddedToken))


def _steps(post_processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if post_processor is None:
        return []
    steps: list[dict[str, Any]] = post_processor.get("processors", [post_processor])
    return steps


def _opening(step: dict[str, Any]) -> tuple[str, ...]:
    """The tokens that one post-processor puts before a text."""
    if "cls" in step:  # BERT's and RoBERTa's
        return (step["cls"][0],)
    names: list[str] = []
    for item in step.get("single", ()):
        if "SpecialToken" not in item:
            break
        name = item["SpecialToken"]["id"]
        names += step.get("special_tokens", {}).get(name, {}).get("tokens", [name])
    return tuple(names)
