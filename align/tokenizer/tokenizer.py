"""The tokenizer: encodes text, decodes ids, and renders chats with a loss mask."""

import codecs
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from align.tokenizer import chat_template as chat
from align.tokenizer.bpe import Merger, WordCache
from align.tokenizer.files import PLAIN_CONFIG, AddedToken, TokenizerSpec, read_spec, write_spec
from align.tokenizer.process_pool import chunked, ordered_map
from align.tokenizer.splitting import Split, split_words

_CACHED_WORDS = 1 << 18
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"\s+")
_PARALLEL_FROM = 1 << 20  # characters; for less text, starting processes takes longer than they save

_EOS_NAMES = ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
_END_OF_TURN_NAMES = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>")


def own_special_tokens(first_id: int) -> tuple[AddedToken, ...]:
    """The special tokens of the tokenizers that we train, with ids from ``first_id``."""
    names = (chat.PAD, chat.BOS, chat.EOS, *chat.ROLE_TOKENS.values(), chat.END)
    return tuple(AddedToken(first_id + i, name) for i, name in enumerate(names))


class Tokenizer:
    """A byte-level BPE tokenizer.

    Attributes:
        spec: everything that decides ids.
        vocab_size: largest id + 1, special tokens included.
        special_tokens: name -> id of the tokens that ordinary text can't produce.
        dtype: uint16 if every id fits, else uint32.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        """Create a tokenizer from its data; `load` and `train_tokenizer` are the usual ways."""
        self.spec = spec
        self.special_tokens: dict[str, int] = {t.content: t.id for t in spec.added if t.special}
        added = {t.id: t.content.encode() for t in spec.added}
        self.vocab_size: int = max(max(spec.vocab.values()), max(added, default=0)) + 1
        self._typecode: Literal["H", "I"] = "H" if self.vocab_size <= 1 << 16 else "I"
        self.dtype = np.dtype(self._typecode)
        self._name_of: dict[int, bytes] = {number: token for token, number in spec.vocab.items()} | added
        self._text_of = self._name_of | dict.fromkeys(self.special_tokens.values(), b"")
        byte_ids = {byte: number for byte in range(256) if (number := spec.vocab.get(bytes([byte]))) is not None}
        self._merger = Merger(byte_ids, spec.ranks, spec.made, self._name_of)
        self._added = {t.content: t for t in spec.added}
        self._find_any = _added_pattern(spec.added)
        self._find_plain = _added_pattern([t for t in spec.added if not t.special])
        self._start_caches()

    def _start_caches(self) -> None:
        self._ids_cache: WordCache[str, tuple[int, ...]] = WordCache(
            lambda word: tuple(self._encode_word(word.encode())), _CACHED_WORDS
        )
        self._packed_cache: WordCache[str, bytes] = WordCache(
            lambda word: self._pack(self._encode_word(word.encode())), _CACHED_WORDS
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickle everything but the caches."""
        return {key: value for key, value in self.__dict__.items() if not key.endswith("_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the tokenizer with empty caches."""
        self.__dict__.update(state)
        self._start_caches()

    @classmethod
    def from_merges(
        cls, tokens: list[bytes], merges: Mapping[tuple[int, int], int], *, splits: tuple[Split, ...]
    ) -> "Tokenizer":
        """A tokenizer with our chat template, from tokens by id and merges in order; our special tokens follow."""
        return cls(
            TokenizerSpec(
                vocab={token: i for i, token in enumerate(tokens)},
                ranks={pair: rank for rank, pair in enumerate(merges)},
                made=list(merges.values()),
                splits=splits,
                added=own_special_tokens(len(tokens)),
                config=PLAIN_CONFIG | {"bos_token": chat.BOS, "eos_token": chat.EOS, "pad_token": chat.PAD},
                chat_template=chat.TEMPLATE,
            )
        )

    @classmethod
    def load(cls, source: str | Path) -> "Tokenizer":
        """Load a tokenizer.

        Args:
            source: model directory, tokenizer.json, or Hub id (``owner/name``).

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: its files are damaged, or it is not byte-level BPE.
        """
        return cls(read_spec(source))

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers can read."""
        write_spec(self.spec, Path(directory))

    # -- text to ids ---------------------------------------------------------------------------------------------------

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of ordinary text, in which names of special tokens have no special meaning.

        Args:
            text: a string, or bytes, which may be invalid UTF-8.

        Raises:
            ValueError: the string contains a lone surrogate, which has no UTF-8 form.
        """
        if isinstance(text, bytes):
            try:
                return self._encode(text.decode(), self._find_plain)
            except UnicodeDecodeError:
                return self._encode_invalid(text)
        return self._encode(text, self._find_plain)

    def encode_batch(self, texts: Sequence[str], *, processes: int = 1) -> list[list[int]]:
        """Encode many texts, on several processes if they are long enough for that to pay off."""
        if processes == 1 or sum(map(len, texts)) < _PARALLEL_FROM:
            return [self.encode(text) for text in texts]
        packed = ordered_map(partial(_pack_texts, self), chunked(texts), processes)
        shared = list(range(self.vocab_size)).__getitem__  # one object per id, not per token
        return [list(map(shared, memoryview(data).cast(self._typecode))) for chunk in packed for data in chunk]

    def encode_to_array(
        self, texts: Iterable[str], *, prefix: Sequence[int] = (), suffix: Sequence[int] = (), processes: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode many texts to one array, the fast way to tokenize a corpus.

        Args:
            texts: read once.
            prefix: ids before each text.
            suffix: ids after each text.
            processes: processes that encode.

        Returns:
            ``ids`` ``[N]`` of `dtype`, and ``offsets`` ``[texts + 1]`` int64: text i with prefix and suffix is
            ``ids[offsets[i]:offsets[i + 1]]``.
        """
        before, after = self._pack(prefix), self._pack(suffix)
        parts: list[bytes] = []
        for chunk in ordered_map(partial(_pack_texts, self), chunked(texts), processes):
            parts += [before + data + after for data in chunk]
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) // self.dtype.itemsize for part in parts], out=offsets[1:])
        return np.frombuffer(b"".join(parts), self.dtype), offsets

    def encode_template(self, text: str) -> list[int]:
        """The ids of a chat template's text, in which the names of all added tokens stand for them."""
        return self._encode(text, self._find_any)

    def _encode(self, text: str, find: re.Pattern[str] | None) -> list[int]:
        ids: list[int] = []
        try:
            for part, added in self._segments(text, find):
                ids += chain.from_iterable(map(self._ids_cache.__getitem__, self._split(part)))
                if added is not None:
                    ids.append(added)
        except UnicodeEncodeError:
            raise _surrogate_error(text) from None
        return ids

    def _encode_packed(self, text: str) -> bytes:
        """The ids of ordinary text, as the bytes of an array of `dtype`."""
        packed: list[bytes] = []
        try:
            for part, added in self._segments(text, self._find_plain):
                packed.append(b"".join(map(self._packed_cache.__getitem__, self._split(part))))
                if added is not None:
                    packed.append(self._pack((added,)))
        except UnicodeEncodeError:
            raise _surrogate_error(text) from None
        return b"".join(packed)

    def _encode_invalid(self, data: bytes) -> list[int]:
        """The ids of bytes that are not UTF-8; an invalid byte is split like a symbol and kept."""
        words = self._split(data.decode(errors="surrogateescape"))
        return [i for word in words for i in self._encode_word(word.encode(errors="surrogateescape"))]

    def _segments(self, text: str, find: re.Pattern[str] | None) -> Iterator[tuple[str, int | None]]:
        """Split a text at its added tokens: ordinary text, each with the id of the added token after it."""
        start = 0
        for match in find.finditer(text) if find else ():
            token = self._added[match.group()]
            part, start = text[start : match.start()], match.end()
            if token.rstrip and (space := _SPACE.match(text, start)):
                start = space.end()
            yield part.rstrip() if token.lstrip else part, token.id
        if start < len(text):
            yield text[start:], None

    def _split(self, text: str) -> list[str]:
        if self.spec.nfc and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        return split_words(text, self.spec.splits)

    def _encode_word(self, word: bytes) -> list[int]:
        if self.spec.ignore_merges and (number := self.spec.vocab.get(word)) is not None:
            return [number]
        return self._merger.merge(word)

    def _pack(self, ids: Sequence[int]) -> bytes:
        return array(self._typecode, ids).tobytes()

    # -- ids to text ---------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: ids of this tokenizer.
            skip_special: leave special tokens out instead of writing their names.

        Raises:
            ValueError: an id is not one of this tokenizer's.
        """
        return self.decode_bytes(ids, skip_special=skip_special).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """The exact bytes of ids, which may be invalid UTF-8; otherwise like `decode`."""
        table = self._text_of if skip_special else self._name_of
        try:
            return b"".join(map(table.__getitem__, map(int, ids)))
        except KeyError as error:
            raise ValueError(
                f"id {error.args[0]} is not in the tokenizer, whose ids are 0 to {self.vocab_size - 1}"
            ) from None

    def stream_decoder(self, *, skip_special: bool = True) -> "StreamDecoder":
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self, skip_special=skip_special)

    def token_text(self, number: int) -> str:
        """A token for display: special tokens by name, incomplete characters as U+FFFD."""
        return self.decode((number,), skip_special=False)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """``[vocab_size]`` int32: UTF-8 bytes of each id, 0 for special tokens and unused ids."""
        return np.array([len(self._text_of.get(i, b"")) for i in range(self.vocab_size)], dtype=np.int32)

    # -- chats ---------------------------------------------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False
    ) -> chat.RenderedChat:
        """The ids of a chat and the mask of the assistant's tokens.

        Args:
            messages: each with ``role`` (system, user or assistant) and ``content``.
            add_generation_prompt: end with the beginning of the assistant's turn.

        Raises:
            ValueError: a message has another form, or the tokenizer has no chat template.
        """
        return chat.render_chat(self, messages, add_generation_prompt=add_generation_prompt)

    def _named(self, role: str) -> int | None:
        """The id of a token that tokenizer_config.json names, as a string or as an object with its content."""
        name = self.spec.config.get(role)
        name = name.get("content") if isinstance(name, dict) else name
        return self._id_of(name) if isinstance(name, str) else None

    def _id_of(self, name: str) -> int | None:
        return self._added[name].id if name in self._added else self.spec.vocab.get(name.encode())

    @cached_property
    def bos_id(self) -> int | None:
        """The token that begins a text: from tokenizer_config.json, else from the post-processor."""
        if (named := self._named("bos_token")) is not None:
            return named
        # Llama-3 defines it only here.
        for step in _post_processor_steps(self.spec.post_processor):
            first = (step.get("single") or [{}])[0].get("SpecialToken")
            if first:
                return self._id_of(first["id"])
        return None

    @cached_property
    def eos_id(self) -> int | None:
        """The token that ends a text: from tokenizer_config.json, else by well-known name."""
        named = self._named("eos_token")
        return named if named is not None else self._first_special(_EOS_NAMES)

    @cached_property
    def pad_id(self) -> int | None:
        """The padding token; never one of ``stop_ids``, which would then be masked."""
        named = self._named("pad_token")
        if named is not None and named not in self.stop_ids:
            return named
        return self._first_special(name for name in _PAD_NAMES if self._id_of(name) not in self.stop_ids)

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The special token that the chat template writes after the assistant's content."""
        if self.spec.chat_template is None:
            return self._first_special(_END_OF_TURN_NAMES)
        return chat.end_of_turn(self)

    @cached_property
    def opening_ids(self) -> tuple[int, ...]:
        """What begins a document, in training and in sampling: bos, unless bos and eos are the same."""
        return () if self.bos_id is None or self.bos_id == self.eos_id else (self.bos_id,)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response: eos and the end of a turn."""
        return tuple(dict.fromkeys(i for i in (self.eos_id, self.end_of_turn_id) if i is not None))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids, in hexadecimal."""
        return self.spec.fingerprint()

    def _first_special(self, names: Iterable[str]) -> int | None:
        return next((self.special_tokens[name] for name in names if name in self.special_tokens), None)


class StreamDecoder:
    """Decodes ids as they come; the bytes of an incomplete character wait for the rest.

    The texts joined equal `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        """Start without waiting bytes.

        Args:
            tokenizer: that made the ids.
            skip_special: leave special tokens out instead of writing their names.
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this id completes; empty if it ends inside a character."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token,), skip_special=self._skip_special))

    def flush(self) -> str:
        """The rest, after the last id: U+FFFD if a character is incomplete."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _pack_texts(tokenizer: Tokenizer, texts: list[str]) -> list[bytes]:
    """The work of one process in `Tokenizer.encode_to_array`."""
    return [tokenizer._encode_packed(text) for text in texts]


def _added_pattern(added: Sequence[AddedToken]) -> re.Pattern[str] | None:
    """A pattern that finds added tokens in a text, the longest first; None if there are none."""
    contents = sorted((token.content for token in added), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def _post_processor_steps(post_processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if post_processor is None:
        return []
    return post_processor.get("processors", [post_processor])


def _surrogate_error(text: str) -> ValueError:
    found = _SURROGATE.search(text)
    position, char = (found.start(), found.group()) if found else (0, "")
    return ValueError(
        f"character {position} is the lone surrogate U+{ord(char):04X}, which has no UTF-8 form; "
        "pass bytes to encode data that is not text"
    )
