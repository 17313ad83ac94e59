"""llama.cpp's token ids against ours."""

from dataclasses import replace

import pytest
from export_models import SHAPE, TEXTS, random_network, write_model
from naming import naming

from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE, write_gguf
from align.export.gguf_tokenizer import pre_tokenizer_name, token_table
from align.export.source import open_source
from align.export.verify_llama import LlamaReading
from align.model.config import GPTConfig
from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.spec import AddedToken
from align.tokenizer.splitting import Split

AWKWARD = [
    *TEXTS,
    "",
    " ",
    "\n\n\n a \r\n\r\n  b\t\t\tc   ",
    "I'll WE'RE don't 'S 's'd ''' he'd've",
    "1 12 123 1234 12345678 ٣٤٥ Ⅷ½",
    "<|user|> is text here <|end|>, and so is <|bos|>",
    "日本語のテキスト、한국어 텍스트, ไทย, हिन्दी, العربية",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 🇩🇪 👍🏽 ✌️",
    "((((a))))[b]{c}<d>--->>>===!!!???...,,,",
]


def reading_of(directory, tokenizer):
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **SHAPE)
    source = open_source(str(write_model(directory / "model", random_network(config), tokenizer)))
    write_gguf(source, directory, ExportSettings(format="gguf"))
    return LlamaReading(directory / FILE, context=64, vocab_size=tokenizer.vocab_size)


@pytest.mark.parametrize("pattern", ["gpt4", "gpt2"])
def test_ids_agree(tmp_path, pattern):
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=450, pattern=pattern)
    reading = reading_of(tmp_path, tokenizer)
    for text in AWKWARD:
        assert reading.tokenize(text) == tokenizer.encode(text), repr(text)
    for text in AWKWARD[:4]:
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
        assert reading.chat_ids(messages) == tokenizer.render_chat(messages, add_generation_prompt=True).ids
    reading.close()


def test_special_tokens_are_control_and_spare_rows_unused(tokenizer):
    table = token_table(tokenizer, tokenizer.vocab_size + 2)
    end = tokenizer.special_tokens["<|end|>"]
    assert (table.texts[end], table.types[end]) == ("<|end|>", 3)
    assert table.types[-2:] == [5, 5]
    assert table.types[: len(tokenizer.spec.vocab)] == [1] * len(tokenizer.spec.vocab)


def changed(tokenizer, **fields):
    return Tokenizer(replace(tokenizer.spec, **fields))


def test_a_pattern_without_a_name_is_refused(tokenizer):
    with pytest.raises(ValueError, match=naming(r"\p{L}+", "llama.cpp", "gpt-2")):
        pre_tokenizer_name(changed(tokenizer, splits=(Split(r"\p{L}+"),)))


def test_a_token_that_takes_space_along_is_refused(tokenizer):
    with pytest.raises(ValueError, match=naming("<|x|>")):
        pre_tokenizer_name(changed(tokenizer, added=(AddedToken(399, "<|x|>", rstrip=True),)))


def test_a_word_that_merges_do_not_make_is_refused(tokenizer):
    """llama.cpp's llama-bpe encodes a whole word as its token, which our merges don't."""
    vocab = {**tokenizer.spec.vocab, b"zqxjk": 1000}
    with pytest.raises(ValueError, match=naming(1000)):
        pre_tokenizer_name(changed(tokenizer, vocab=vocab))
    assert pre_tokenizer_name(changed(tokenizer, vocab=vocab, ignore_merges=True)) == "llama-bpe"
