"""llama.cpp's token ids against ours."""

import unicodedata
from dataclasses import replace

import gguf
import pytest
from export_models import SHAPE, TEXTS, random_network, write_model
from naming import naming
from peers import gemma, llama, mistral, prefixed, scripted, unigram

from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE, write_gguf
from align.export.gguf_tokenizer import pre_tokenizer_name, token_table
from align.export.source import open_source
from align.export.verify_llama import LlamaReading
from align.model.config import GPTConfig
from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.gguf_metadata import PRE_TOKENIZERS, spec_from_gguf
from align.tokenizer.public_patterns import TEKKEN
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


def _byte_level(row) -> Tokenizer:
    """A tokenizer under one of llama.cpp's names, trained on the first of its patterns that has letters."""
    trained = train_tokenizer(TEXTS * 3, vocab_size=450, pattern=row.patterns[-1])
    splits = tuple(map(Split, row.patterns))
    # A token that no merge makes, which only ignore_merges can give.
    vocab = {**trained.spec.vocab, b" zqxjk": 450}
    changes = {"splits": splits, "nfc": row.nfc, "ignore_merges": row.ignore_merges, "vocab": vocab}
    return Tokenizer(replace(trained.spec, **changes))


def _sentencepiece(build, bos: str, eos: str, folder) -> Tokenizer:
    build().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(f'{{"bos_token": "{bos}", "eos_token": "{eos}"}}')
    return Tokenizer.load(folder)


def _metadata(file) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


KINDS = {row.names[0]: row for row in PRE_TOKENIZERS if row.names[0] != "smaug-bpe"}  # which is written as llama-bpe


@pytest.mark.parametrize("kind", [*KINDS, "llama", "gemma"])
def test_ids_agree(tmp_path, kind):
    """Ours, llama.cpp's, and those of the tokenizer read back from the file."""
    if kind == "llama":
        tokenizer = _sentencepiece(llama, "<s>", "</s>", tmp_path)
    elif kind == "gemma":
        tokenizer = _sentencepiece(gemma, "<bos>", "<eos>", tmp_path)
    else:
        tokenizer = _byte_level(KINDS[kind])
        assert pre_tokenizer_name(tokenizer) == kind
    reading = reading_of(tmp_path, tokenizer)
    again = Tokenizer(spec_from_gguf(_metadata(tmp_path / FILE)))
    for text in [*AWKWARD, " zqxjk zqxjk", *(f"a{' ' * count}b" for count in (2, 3, 5, 17, 33))]:
        text = unicodedata.normalize("NFC", text)  # llama.cpp normalizes nothing
        assert reading.tokenize(text) == tokenizer.encode(text), repr(text)
        assert again.encode(text) == tokenizer.encode(text), repr(text)
        assert again.encode_template(text) == tokenizer.encode_template(text)
    names = ("special_tokens", "opening_ids", "bos_id", "eos_id", "pad_id", "vocab_size")
    assert [getattr(again, name) for name in names] == [getattr(tokenizer, name) for name in names]
    reading.close()


@pytest.mark.parametrize("pad", ["<|end|>", "<|pad|>", None])
@pytest.mark.parametrize("unknown", ["<|pad|>", None])
def test_a_file_is_the_same_tokenizer(tmp_path, tokenizer, pad, unknown):
    """SmolLM2 pads with the token that ends a turn, and names an unknown token; other files name neither."""
    roles = {"pad_token": pad, "unk_token": unknown}
    named = {role: name for role, name in roles.items() if name is not None}
    config = {role: name for role, name in tokenizer.spec.config.items() if role not in roles} | named
    source = changed(tokenizer, config=config)
    reading_of(tmp_path, source).close()
    metadata = _metadata(tmp_path / FILE)
    ids = tokenizer.special_tokens
    assert metadata.get("tokenizer.ggml.padding_token_id") == ids.get(pad)
    assert metadata.get("tokenizer.ggml.unknown_token_id") == ids.get(unknown)
    again = Tokenizer(spec_from_gguf(metadata))
    assert again.pad_id == source.pad_id
    assert [again.spec.named(role) for role in roles] == [pad, unknown]


def test_chats_agree(tmp_path):
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=450)
    reading = reading_of(tmp_path, tokenizer)
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


def test_the_other_way_of_merging_is_accepted_where_no_word_tells(tokenizer):
    """llama.cpp has no name for gpt-2's pattern with ignore_merges, nor for tekken's without."""
    spec = changed(tokenizer, splits=(Split(TEKKEN),))
    assert pre_tokenizer_name(spec) == "tekken"
    vocab = {**tokenizer.spec.vocab, b"zqxjk": 1000}
    with pytest.raises(ValueError, match=naming(1000)):
        pre_tokenizer_name(changed(spec, vocab=vocab))
    assert pre_tokenizer_name(changed(spec, vocab=vocab, ignore_merges=True)) == "tekken"


@pytest.mark.parametrize(
    ("build", "message"),
    [(mistral, "Metaspace"), (unigram, "Unigram"), (prefixed, "byte fallback"), (scripted, "byte fallback")],
)
def test_what_llama_cpp_would_encode_otherwise_is_refused(tmp_path, build, message):
    with pytest.raises(ValueError, match=message):
        pre_tokenizer_name(_sentencepiece(build, "<s>", "</s>", tmp_path))


def test_merges_that_scores_cannot_express_are_refused(tmp_path):
    """llama.cpp merges whatever makes a token: a missing pair, or a token made at two ranks, gives other ids."""
    tokenizer = _sentencepiece(llama, "<s>", "</s>", tmp_path)
    model = tokenizer.spec.rest["model"]
    merges = model["merges"]
    for wrong, message in ((merges[:-1], "never merges"), ([merges[-1], *merges], "in turns")):
        rest = {**tokenizer.spec.rest, "model": model | {"merges": wrong}}
        with pytest.raises(ValueError, match=message):
            pre_tokenizer_name(changed(tokenizer, rest=rest))
