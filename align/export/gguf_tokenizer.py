"""Write a tokenizer into a GGUF file: tokens, types, merges or scores, and the name of its pre-tokenizer."""

import re
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from align.tokenizer import Tokenizer
from align.tokenizer.byte_level import ByteLevelSpec, bytes_to_chars
from align.tokenizer.gguf_metadata import PRE_TOKENIZERS, TokenType, find_pre_tokenizer, scored_merges
from align.tokenizer.library import LibrarySpec
from align.tokenizer.plain_template import plain_template
from align.tokenizer.spec import TokenizerSpec
from align.tokenizer.splitting import split_words

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenTable(NamedTuple):
    """The vocabulary of a GGUF file, by id.

    Attributes:
        texts: each token as GGUF writes it, added tokens as plain text.
        types: of each token.
    """

    texts: list[str]
    types: list[TokenType]


class _Form(ABC):
    """A kind of tokenizer as GGUF writes it."""

    pre = "default"
    """llama.cpp's name for the pre-tokenizer"""

    @abstractmethod
    def texts(self) -> dict[int, str]:
        """The tokens of the model by id, without added ones."""

    @abstractmethod
    def write(self, writer: Any, table: TokenTable) -> None:
        """Write the fields that other kinds don't have."""

    def type_of(self, text: str) -> TokenType:
        """The type of a token of the model."""
        return TokenType.NORMAL


class _ByteLevel(_Form):
    def __init__(self, tokenizer: Tokenizer, spec: ByteLevelSpec) -> None:
        if not spec.ranks:
            raise ValueError("tokenizer: it has no merges, and llama.cpp reads no tokenizer without them")
        row = find_pre_tokenizer(spec)
        if row is None:
            known = " or ".join(sorted(repr(row.names[0]) for row in PRE_TOKENIZERS))
            shown = " then ".join(split.pattern for split in spec.splits) or "no pattern"
            raise ValueError(
                f"tokenizer: its split pattern is {shown}, which llama.cpp does not support; it supports {known}"
            )
        self.spec, self.pre = spec, row.names[0]
        if row.ignore_merges != spec.ignore_merges:
            self._check_words(tokenizer)

    def _check_words(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer with a word that only one of the two ways of encoding makes a token of."""
        for word, number in self.spec.vocab.items():
            if self._is_word(word) and tokenizer.encode(word) != [number]:
                raise ValueError(
                    f"tokenizer: its merges never produce token {number} ({word!r}), but llama.cpp's {self.pre!r} "
                    "would: export it with --format hf"
                )

    def _is_word(self, token: bytes) -> bool:
        """Whether the token can be a whole word of a text."""
        try:
            return len(split_words(token.decode(), self.spec.splits)) == 1
        except UnicodeDecodeError:
            return False

    def texts(self) -> dict[int, str]:
        return {number: bytes_to_chars(token) for token, number in self.spec.vocab.items()}

    def write(self, writer: Any, table: TokenTable) -> None:
        writer.add_tokenizer_model("gpt2")
        if (unknown := _named(self.spec, "unk_token")) is not None:
            writer.add_unk_token_id(unknown)
        writer.add_token_merges([f"{table.texts[a]} {table.texts[b]}" for a, b in self.spec.ranks])


class _SentencePiece(_Form):
    """BPE with byte fallback, which llama.cpp merges by scores instead of by a list of merges."""

    def __init__(self, spec: LibrarySpec) -> None:
        model = spec.rest["model"]
        if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
            raise ValueError(
                f"tokenizer: its model is {model.get('type', 'BPE')} without byte fallback; llama.cpp supports "
                "byte-level BPE and SentencePiece's BPE with byte fallback"
            )
        self.spec = spec
        self.prefix = self._space_prefix()
        special = {token.content for token in spec.added if token.special}
        self._names = {
            name: number
            for name, number in spec.model_names.items()
            if name not in special and not _BYTE.fullmatch(name)
        }
        self._order = self._merge_order()

    def _space_prefix(self) -> bool:
        """Whether a space is put before each part of a text; llama.cpp knows no other variants."""
        normalizer = self.spec.rest.get("normalizer") or {}
        steps = [
            (step["type"], step.get("prepend")) for step in normalizer.get("normalizers", [normalizer or {"type": ""}])
        ]
        splits = self.spec.rest.get("pre_tokenizer")
        # Gemma's splits at spaces, of which the normalizer leaves none.
        if splits is None or (splits["type"] == "Split" and splits["pattern"] == {"String": " "}):
            if steps == [("Replace", None)]:
                return False
            if steps == [("Prepend", "▁"), ("Replace", None)]:
                return True
        kinds = [kind for kind, _ in steps if kind] + ([splits["type"]] if splits else [])
        raise ValueError(
            f"tokenizer: its normalizer and pre-tokenizer are {' then '.join(kinds) or 'none'}; llama.cpp replaces "
            "spaces, and puts one before each part of a text or before none"
        )

    def _merge_order(self) -> dict[str, int]:
        """The rank of each token that merges make.

        Runs of one character may share a rank: llama.cpp then merges from the left, as SentencePiece does.

        Raises:
            ValueError: llama.cpp, which merges whatever makes a token, would merge others or in another order.
        """
        merges = [m.split(" ") if isinstance(m, str) else m for m in self.spec.rest["model"]["merges"]]
        # Added tokens are matched before anything is merged, unless they hold what the normalizer writes for a space.
        matched = {token.content for token in self.spec.added if "▁" not in token.content}
        pairs = [(a, b) for a, b in merges if {a, b, a + b} <= self._names.keys() and a + b not in matched]
        ends: dict[str, tuple[int, int]] = {}
        for rank, (left, right) in enumerate(pairs):
            ends[left + right] = ends.get(left + right, (rank, rank))[0], rank
        order: dict[str, int] = {}
        shared: list[str] = []  # tokens whose merges are interleaved
        last = -1
        for made, (first, end) in ends.items():
            if first > last:
                shared = []
            shared.append(made)
            if len(shared) > 1 and len(set("".join(shared))) > 1:
                raise ValueError(
                    f"tokenizer: its merges make {shared[0]!r} and {made!r} in turns, which a GGUF file can't express"
                )
            order[made] = order[shared[0]] if len(shared) > 1 else len(order)
            last = max(last, end)
        scores = {number: -float(order.get(name, len(order))) for name, number in self._names.items()}
        possible = {(left, right) for left, right in scored_merges(self._names, scores) if left + right not in matched}
        if lacking := possible - set(pairs):
            left, right = min(lacking)
            raise ValueError(
                f"tokenizer: it never merges {left!r} and {right!r} to {left + right!r}, but llama.cpp would"
            )
        return order

    def texts(self) -> dict[int, str]:
        return {number: name for name, number in self.spec.model_names.items()}

    def type_of(self, text: str) -> TokenType:
        return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL

    def write(self, writer: Any, table: TokenTable) -> None:
        lowest = len(self._order)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(self._order.get(text, lowest)) for text in table.texts])
        writer.add_add_space_prefix(self.prefix)
        unknown = self.spec.rest["model"].get("unk_token")
        if unknown is not None and (number := self.spec.id_of(unknown)) is not None:
            table.types[number] = TokenType.UNKNOWN
            writer.add_unk_token_id(number)


def _named(spec: TokenizerSpec, role: str) -> int | None:
    """The id of a token that tokenizer_config.json names for a role."""
    name = spec.named(role)
    return None if name is None else spec.id_of(name)


def _form(tokenizer: Tokenizer) -> _Form:
    """The kind of tokenizer, checked.

    Raises:
        ValueError: GGUF can't express it.
    """
    spec = tokenizer.spec
    for token in spec.added:
        if token.lstrip or token.rstrip:
            raise ValueError(
                f"tokenizer: {token.content!r} strips adjacent white space, which a GGUF file can't express"
            )
    if isinstance(spec, ByteLevelSpec):
        return _ByteLevel(tokenizer, spec)
    assert isinstance(spec, LibrarySpec)
    return _SentencePiece(spec)


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for the tokenizer's pre-tokenizer; ``default`` for SentencePiece's.

    Raises:
        ValueError: it has none, or llama.cpp would encode some text differently.
    """
    return _form(tokenizer).pre


def token_table(tokenizer: Tokenizer, vocab_size: int) -> TokenTable:
    """A token for every row of the embedding.

    Args:
        tokenizer: of the network.
        vocab_size: rows of the network's embedding; those beyond the tokenizer's ids become unused tokens.
    """
    return _table(_form(tokenizer), tokenizer, vocab_size)


def _table(form: _Form, tokenizer: Tokenizer, vocab_size: int) -> TokenTable:
    texts = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for number, text in form.texts().items():
        texts[number], types[number] = text, form.type_of(text)
    for added in tokenizer.spec.added:
        texts[added.id] = added.content
        types[added.id] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    return TokenTable(texts, types)


def add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Write the tokenizer's fields.

    Args:
        writer: a ``gguf.GGUFWriter``.
        tokenizer: of the network.
        vocab_size: rows of the network's embedding.

    Raises:
        ValueError: GGUF can't express it.
    """
    stops = tokenizer.stop_ids
    if not stops:
        raise ValueError("tokenizer: it has no end-of-text token, and llama.cpp would take token 11 for it")
    form = _form(tokenizer)
    table = _table(form, tokenizer, vocab_size)
    form.write(writer, table)
    writer.add_tokenizer_pre(form.pre)
    writer.add_token_list(table.texts)
    writer.add_token_types(table.types)
    # llama.cpp stops at all three, and at tokens that it knows by name.
    for add, stop in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), stops, strict=False
    ):
        add(stop)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    # As the source names it, even if it ends texts too: who reads the file must find the same tokenizer.
    if (pad := _named(tokenizer.spec, "pad_token")) is not None:
        writer.add_pad_token_id(pad)
    writer.add_add_bos_token(bool(tokenizer.opening_ids))
    writer.add_add_eos_token(False)
    if tokenizer.spec.chat_template is not None:
        writer.add_chat_template(plain_template(tokenizer.spec.chat_template))
