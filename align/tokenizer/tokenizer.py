"""The tokenizer: encodes text, decodes ids, and renders chats with a loss mask."""

import codecs
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from align.tokenizer import chat_template as chat
from align.tokenizer.byte_level import ByteLevelSpec
from align.tokenizer.files import PLAIN_CONFIG, read_spec, write_spec
from align.tokenizer.process_pool import chunked, ordered_map
from align.tokenizer.spec import OPENING, AddedToken, TokenizerSpec
from align.tokenizer.splitting import Split

_SURROGATE = re.compile("[\ud800-\udfff]")
_PARALLEL_FROM = 1 << 20  # characters; for less text, starting processes takes longer than they save

_EOS_NAMES = ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
_END_OF_TURN_NAMES = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>")


def own_special_tokens(first_id: int) -> tuple[AddedToken, ...]:
    """The special tokens of the tokenizers that we train, with ids from ``first_id``."""
    names = (chat.PAD, chat.BOS, chat.EOS, *chat.ROLE_TOKENS.values(), chat.END)
    return tuple(AddedToken(first_id + i, name) for i, name in enumerate(names))


class Tokenizer:
    """A tokenizer: byte-level BPE, or any that the ``tokenizers`` library applies.

    Attributes:
        spec: everything that decides ids.
        vocab_size: largest id + 1, special tokens included.
        special_tokens: name -> id of the tokens that ordinary text can't produce, but for one that stands for unknown
            characters.
        dtype: uint16 if every id fits, else uint32.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        """Create a tokenizer from its data; `load` and `train_tokenizer` are the usual ways."""
        self.spec = spec
        self._coder = spec.coder()
        self.special_tokens: dict[str, int] = {t.content: t.id for t in spec.added if t.special}
        self.vocab_size: int = max(self._coder.pieces) + 1
        self.dtype = np.dtype(self._coder.typecode)
        self._name_of = self._coder.pieces
        self._text_of = {**self._name_of, **dict.fromkeys(self.special_tokens.values(), b"")}

    @classmethod
    def from_merges(
        cls, tokens: list[bytes], merges: Mapping[tuple[int, int], int], *, splits: tuple[Split, ...]
    ) -> "Tokenizer":
        """A tokenizer with our chat template, from tokens by id and merges in order; our special tokens follow."""
        roles = {"bos_token": chat.BOS, "eos_token": chat.EOS, "pad_token": chat.PAD, OPENING: chat.BOS}
        return cls(
            ByteLevelSpec(
                vocab={token: i for i, token in enumerate(tokens)},
                ranks={pair: rank for rank, pair in enumerate(merges)},
                made=list(merges.values()),
                splits=splits,
                added=own_special_tokens(len(tokens)),
                config=PLAIN_CONFIG | roles,
                chat_template=chat.TEMPLATE,
            )
        )

    @classmethod
    def load(cls, source: str | Path) -> "Tokenizer":
        """Load a tokenizer.

        Args:
            source: model directory, tokenizer.json, GGUF file, or Hub id (``owner/name``).

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: its files are damaged, or it is of a kind that is not supported, or needs the package
                ``tokenizers``, which is not installed.
        """
        spec = read_spec(source)
        try:
            return cls(spec)
        except ValueError as error:
            raise ValueError(f"{source}: not a tokenizer that align can read: {error}") from None

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers 4 and 5 can read.

        `stop_ids` that these files don't tell go to generation_config.json, unless the directory has one.
        """
        told = self.stop_ids == self._own_stop_ids
        write_spec(self.spec, Path(directory), stops=() if told else self.stop_ids)

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
                return self._coder.encode(text.decode())
            except UnicodeDecodeError:
                return self._coder.encode_invalid(text)
        try:
            return self._coder.encode(text)
        except UnicodeEncodeError:
            raise _surrogate_error(text) from None

    def encode_batch(self, texts: Sequence[str], *, processes: int = 1) -> list[list[int]]:
        """Encode many texts, on several processes if they are long enough for that to pay off."""
        if processes == 1 or sum(map(len, texts)) < _PARALLEL_FROM:
            return [self.encode(text) for text in texts]
        packed = ordered_map(partial(_pack_texts, self), chunked(texts), processes)
        shared = list(range(self.vocab_size)).__getitem__  # one object per id, not per token
        return [list(map(shared, memoryview(data).cast(self._coder.typecode))) for chunk in packed for data in chunk]

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
        try:
            return self._coder.encode_template(text)
        except UnicodeEncodeError:
            raise _surrogate_error(text) from None

    def _pack_text(self, text: str) -> bytes:
        """The ids of ordinary text, as the bytes of an array of `dtype`."""
        try:
            return self._coder.pack(text)
        except UnicodeEncodeError:
            raise _surrogate_error(text) from None

    def _pack(self, ids: Sequence[int]) -> bytes:
        return array(self._coder.typecode, ids).tobytes()

    # -- which ids there are -------------------------------------------------------------------------------------------

    @cached_property
    def real_ids(self) -> np.ndarray:
        """``[vocab_size]`` bool: whether each id is a token; the others are gaps, which no text produces."""
        real = np.zeros(self.vocab_size, dtype=bool)
        real[list(self._name_of)] = True
        return real

    @cached_property
    def missing_ids(self) -> tuple[int, ...]:
        """The gaps: ids below `vocab_size` that are no tokens, in order; empty for most tokenizers."""
        return tuple((~self.real_ids).nonzero()[0].tolist())

    def is_token(self, number: int) -> bool:
        """Whether an id is one of this tokenizer's; rows of an embedding beyond `vocab_size` are not."""
        return number in self._name_of

    @property
    def missing_bytes(self) -> bytes:
        """The bytes that no token can express, in order; encoding drops them. Empty for most tokenizers."""
        return self._coder.missing_bytes

    def dropped_bytes(self, text: str | bytes) -> int:
        """How many bytes of a text `encode` drops because no token can express them."""
        if not self.missing_bytes:
            return 0
        data = text.encode() if isinstance(text, str) else text
        return len(data) - len(data.translate(None, self.missing_bytes))

    def with_added_tokens(self, names: Sequence[str], *, special: bool = True) -> "Tokenizer":
        """This tokenizer with further tokens, whose ids follow the largest; those that it has keep theirs.

        Args:
            names: texts of the tokens, in order of their ids.
            special: True: only chat templates produce them; False: ordinary text with a name does too.

        Raises:
            ValueError: a name is empty or an ordinary token, or is an added token whose ``special`` differs.
        """
        have = {token.content: token for token in self.spec.added}
        added = list(self.spec.added)
        for name in dict.fromkeys(names):
            if name in have:
                if have[name].special != special:
                    raise ValueError(f"token {name!r}: special is {have[name].special} already, not {special}")
            elif not name or self.spec.id_of(name) is not None:
                raise ValueError(
                    f"token {name!r} is {'an ordinary token already' if name else 'empty'}; use another name"
                )
            else:
                number = self.vocab_size + len(added) - len(self.spec.added)
                added.append(AddedToken(number, name, special=special))
        return Tokenizer(replace(self.spec, added=tuple(added)))

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
            pieces = map(table.__getitem__, map(int, ids))
            if self._coder.strips_start and (start := next(filter(None, pieces), None)) is not None:
                return self._coder.first(start) + b"".join(pieces)
            return b"".join(pieces)
        except KeyError as error:
            raise _unknown_id(error.args[0], self.vocab_size) from None

    def stream_decoder(self, *, skip_special: bool = True) -> "StreamDecoder":
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self, skip_special=skip_special)

    def token_text(self, number: int) -> str:
        """A token for display: special tokens by name, incomplete characters as U+FFFD."""
        return self._piece(number, skip_special=False).decode(errors="replace")

    def _piece(self, number: int, *, skip_special: bool) -> bytes:
        """The bytes of one id inside a text."""
        try:
            return (self._text_of if skip_special else self._name_of)[int(number)]
        except KeyError:
            raise _unknown_id(number, self.vocab_size) from None

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """``[vocab_size]`` int32: UTF-8 bytes of each id, 0 for special tokens and unused ids."""
        return np.array([len(self._text_of.get(i, b"")) for i in range(self.vocab_size)], dtype=np.int32)

    # -- chats ---------------------------------------------------------------------------------------------------------

    def render_chat(
        self,
        messages: Sequence[chat.Message],
        *,
        tools: Sequence[chat.Tool] | None = None,
        add_generation_prompt: bool = False,
    ) -> chat.RenderedChat:
        """The ids of a chat and the mask of the assistant's tokens.

        Args:
            messages: each with ``role`` (system, developer, user, assistant or tool) and ``content``.
            tools: JSON schemas of the functions that the assistant may call.
            add_generation_prompt: end with the beginning of the assistant's turn.

        Raises:
            ValueError: a message has another form, the tokenizer has no chat template, or the template fails or makes
                the mask impossible.
        """
        return chat.render_chat(self, messages, tools=tools, add_generation_prompt=add_generation_prompt)

    def _named(self, role: str) -> int | None:
        """The id of a token that tokenizer_config.json names."""
        name = self.spec.named(role)
        return None if name is None else self.spec.id_of(name)

    @cached_property
    def bos_id(self) -> int | None:
        """The token that begins a text: from tokenizer_config.json, else from the post-processor (Llama-3)."""
        named = self._named("bos_token")
        return named if named is not None else next(iter(self.opening_ids), None)

    @cached_property
    def eos_id(self) -> int | None:
        """The token that ends a text: from tokenizer_config.json, else by well-known name."""
        named = self._named("eos_token")
        return named if named is not None else self._first_special(_EOS_NAMES)

    @cached_property
    def pad_id(self) -> int | None:
        """The padding token; never eos or the end of a turn, which would then be masked."""
        named = self._named("pad_token")
        if named is not None and named not in self._own_stop_ids:
            return named
        return self._first_special(name for name in _PAD_NAMES if self.spec.id_of(name) not in self._own_stop_ids)

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The special token that the chat template writes after the assistant's content."""
        if self.spec.chat_template is None:
            return self._first_special(_END_OF_TURN_NAMES)
        return chat.end_of_turn(self)

    @cached_property
    def opening_ids(self) -> tuple[int, ...]:
        """What begins a document, in training and in sampling; see ``TokenizerSpec.opening``.

        Not a foreign tokenizer's ``bos_token``: SmolLM2 names one that it never adds.
        """
        ids = [self.spec.id_of(name) for name in self.spec.opening]
        return tuple(number for number in ids if number is not None)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response: eos, the end of a turn, and those of the model's generation settings."""
        # Rows beyond the tokenizer's ids are never sampled.
        return tuple(dict.fromkeys((*self._own_stop_ids, *filter(self.is_token, self.spec.stops))))

    @cached_property
    def _own_stop_ids(self) -> tuple[int, ...]:
        """Eos and the end of a turn."""
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
        self._begun = not tokenizer._coder.strips_start

    def push(self, token: int) -> str:
        """The text that this id completes; empty if it ends inside a character."""
        piece = self._tokenizer._piece(token, skip_special=self._skip_special)
        if piece and not self._begun:
            self._begun, piece = True, self._tokenizer._coder.first(piece)
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """The rest, after the last id: U+FFFD if a character is incomplete."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _pack_texts(tokenizer: Tokenizer, texts: list[str]) -> list[bytes]:
    """The work of one process in `Tokenizer.encode_to_array`."""
    return [tokenizer._pack_text(text) for text in texts]


def _unknown_id(number: int, vocab_size: int) -> ValueError:
    return ValueError(f"id {number} is not in the tokenizer, whose ids are 0 to {vocab_size - 1}")


def _surrogate_error(text: str) -> ValueError:
    found = _SURROGATE.search(text)
    position, char = (found.start(), found.group()) if found else (0, "")
    return ValueError(
        f"character {position} is the lone surrogate U+{ord(char):04X}, which has no UTF-8 form; "
        "pass bytes to encode data that is not text"
    )
