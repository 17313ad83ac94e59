"""Prompts as texts, as chats and as ids."""

from dataclasses import replace

import pytest

from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.prompts import answers_chats, as_messages, as_text, encode_prompt
from align.tokenizer.spec import OPENING

ASKED = [{"role": "user", "content": "ab"}]
CHAT = [*ASKED, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, in the order of GPT-2: ! (byte 33) is 0, a (97) is 64, b is 65."""
    return train_tokenizer(["ab ab"], vocab_size=256 + 7)


def test_texts_are_continued_and_chats_answered(tokenizer):
    special = tokenizer.special_tokens
    text = [special["<|bos|>"], 64, 65]
    turn = [special[name] for name in ("<|bos|>", "<|user|>")] + [64, 65]
    turn += [special[name] for name in ("<|end|>", "<|assistant|>")]
    assert encode_prompt(tokenizer, "ab") == encode_prompt(tokenizer, "ab", chat=False) == text
    assert encode_prompt(tokenizer, ASKED, chat=False) == text
    assert encode_prompt(tokenizer, ASKED) == encode_prompt(tokenizer, "ab", chat=True) == turn
    assert encode_prompt(tokenizer, CHAT) == encode_prompt(tokenizer, CHAT, chat=True)
    with pytest.raises(ValueError, match=r"\b3 messages"):
        encode_prompt(tokenizer, CHAT, chat=False)
    told = [{"role": "system", "content": "s"}, *ASKED]
    assert encode_prompt(tokenizer, "ab", chat=True, system="s") == encode_prompt(tokenizer, told)
    assert encode_prompt(tokenizer, told, system="t") == encode_prompt(tokenizer, told)
    with pytest.raises(ValueError, match="'s'"):
        encode_prompt(tokenizer, "ab", system="s")
    assert (as_messages("ab"), as_text("ab"), as_text(CHAT)) == (ASKED, "ab", "b")


def test_a_text_opens_as_its_tokenizer_opens_it(tokenizer):
    """SmolLM2 names a bos that it never adds; then a prompt to continue has none either."""
    config = {name: value for name, value in tokenizer.spec.config.items() if name != OPENING}
    silent = Tokenizer(replace(tokenizer.spec, config=config))
    assert silent.bos_id == tokenizer.bos_id
    assert encode_prompt(silent, "ab") == [64, 65]
    with pytest.raises(ValueError, match="empty"):
        encode_prompt(silent, "")


def test_who_answers_chats(tokenizer):
    assert answers_chats(tokenizer, "sft")
    assert answers_chats(tokenizer, None)
    assert not answers_chats(tokenizer, "pretrain")
