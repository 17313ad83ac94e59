"""Write a tokenizer into a GGUF file: tokens, types, merges, and the name of its split pattern.

GGUF files contain no regular expressions: llama.cpp knows a fixed list of split patterns by name, and a tokenizer with
another pattern can't be expressed.
"""

import re
from typing import Any, NamedTuple

from align.tokenizer import Tokenizer
from align.tokenizer.byte_level import bytes_to_chars
from align.tokenizer.splitting import PATTERNS, split_words

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Our gpt4 pattern is Llama-3's with possessive quantifiers, which match the same in less time.
PRE_TOKENIZERS = {PATTERNS["gpt2"]: "gpt-2", PATTERNS["gpt4"]: "llama-bpe", _LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
"""Split patterns and their names in llama.cpp"""
_TRAINING_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


class TokenTable(NamedTuple):
    """The vocabulary of a GGUF file, by id.

    Attributes:
        texts: each token in byte-level characters, added tokens as plain text.
        types: llama.cpp's: 1 normal, 3 control, 4 user-defined, 5 unused.
    """

    texts: list[str]
    types: list[int]


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for the tokenizer's split pattern.

    Raises:
        ValueError: it has none, or llama.cpp would encode some text differently.
    """
    spec = tokenizer.spec
    if not spec.ranks:
        raise ValueError("tokenizer: it has no merges, and llama.cpp reads no tokenizer without them")
    known = " or ".join(sorted({repr(name) for name in PRE_TOKENIZERS.values()}))
    if len(spec.splits) != 1 or not spec.splits[0].keep_gaps or spec.splits[0].pattern not in PRE_TOKENIZERS:
        shown = " then ".join(split.pattern for split in spec.splits) or "no pattern"
        raise ValueError(
            f"tokenizer: its split pattern is {shown}, which llama.cpp does not support; it supports {known}"
        )
    for token in spec.added:
        if token.lstrip or token.rstrip:
            raise ValueError(
                f"tokenizer: {token.content!r} strips adjacent white space, which a GGUF file can't express"
            )
    name = PRE_TOKENIZERS[spec.splits[0].pattern]
    # Under this name llama.cpp encodes a word that is a token as that token, ignoring the merges.
    if name == "llama-bpe" and not spec.ignore_merges:
        for word, number in spec.vocab.items():
            if _is_word(word, tokenizer) and tokenizer.encode(word) != [number]:
                raise ValueError(
                    f"tokenizer: its merges never produce token {number} ({word!r}), but llama.cpp's {name!r} "
                    "would: export it with --format hf"
                )
    return name


def _is_word(token: bytes, tokenizer: Tokenizer) -> bool:
    """Whether the token can be a whole word of a text."""
    try:
        return len(split_words(token.decode(), tokenizer.spec.splits)) == 1
    except UnicodeDecodeError:
        return False


def token_table(tokenizer: Tokenizer, vocab_size: int) -> TokenTable:
    """A token for every row of the embedding.

    Args:
        tokenizer: byte-level BPE.
        vocab_size: rows of the network's embedding; those beyond the tokenizer's ids become unused tokens.
    """
    texts = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    for token, number in tokenizer.spec.vocab.items():
        texts[number], types[number] = bytes_to_chars(token), _NORMAL
    for added in tokenizer.spec.added:
        texts[added.id], types[added.id] = added.content, _CONTROL if added.special else _USER_DEFINED
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
    table = token_table(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(table.texts)
    writer.add_token_types(table.types)
    writer.add_token_merges([f"{table.texts[a]} {table.texts[b]}" for a, b in tokenizer.spec.ranks])
    writer.add_eos_token_id(stops[0])
    if len(stops) > 1:
        writer.add_eot_token_id(stops[1])
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.pad_id is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(bool(tokenizer.opening_ids))
    writer.add_add_eos_token(False)
    if tokenizer.spec.chat_template is not None:
        # Not every reader's Jinja supports the tags that mark trained tokens.
        writer.add_chat_template(_TRAINING_TAGS.sub("", tokenizer.spec.chat_template))
