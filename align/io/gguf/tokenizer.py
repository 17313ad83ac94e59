"""The tokenizer of a GGUF file."""

from typing import Any

from align.io.gguf.metadata import Metadata
from align.tokenizer import Tokenizer
from align.tokenizer.byte_level import ByteLevelSpec, chars_to_bytes
from align.tokenizer.files import PLAIN_CONFIG
from align.tokenizer.public_patterns import DIGIT, GPT2, LLAMA3, QWEN2
from align.tokenizer.spec import AddedToken
from align.tokenizer.splitting import Split

_SPLITS = {
    "gpt-2": (Split(GPT2),),
    "smollm": (Split(DIGIT), Split(GPT2)),
    "llama-bpe": (Split(LLAMA3),),
    "qwen2": (Split(QWEN2),),
}

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


def tokenizer_of(metadata: Metadata) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        ValueError: its model or its pre-tokenizer is not supported.
    """
    values = metadata.values
    for key, supported in (("model", ("gpt2",)), ("pre", tuple(_SPLITS))):
        if (value := values.get(f"tokenizer.ggml.{key}")) not in supported:
            raise ValueError(
                f"{metadata.path}: tokenizer.ggml.{key} is {value!r}; supported: {' or '.join(map(repr, supported))}"
            )
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    types: list[int] = values.get("tokenizer.ggml.token_type", [1] * len(tokens))
    added = tuple(
        AddedToken(number, text, special=kind == _CONTROL)
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    )
    vocab = {
        chars_to_bytes(text): number
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in (_CONTROL, _USER_DEFINED, _UNUSED)
    }
    names = {text: number for number, text in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]]
    config: dict[str, Any] = {**PLAIN_CONFIG}
    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    for role, key in roles.items():
        if (number := values.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[role] = tokens[number]
    config["add_bos_token"] = bool(values.get("tokenizer.ggml.add_bos_token", False))
    return Tokenizer(
        ByteLevelSpec(
            vocab=vocab,
            ranks={(names[a], names[b]): rank for rank, (a, b) in enumerate(pairs)},
            made=[names[a + b] for a, b in pairs],
            splits=_SPLITS[values["tokenizer.ggml.pre"]],
            added=added,
            ignore_merges=values["tokenizer.ggml.pre"] == "llama-bpe",
            config=config,
            chat_template=values.get("tokenizer.chat_template"),
        )
    )
