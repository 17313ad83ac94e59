"""Tokenizers from the metadata of GGUF files, against those that the metadata came from."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from peers import BYTES, CORPUS, SENTENCES, gemma, llama, peer_trained
from tokenizers import Tokenizer as PeerTokenizer

from align.tokenizer import Tokenizer
from align.tokenizer.gguf_metadata import PRE_TOKENIZERS, TokenType, find_pre_tokenizer, spec_from_gguf
from align.tokenizer.public_patterns import GPT2, GPT2_LONG, LLAMA3
from align.tokenizer.splitting import PATTERNS, Split

TEXTS = [*SENTENCES, "", " ", "  a", "<|end|>x", "<s>", "a\n\n\nb", "1234567 12", "e\u0301", "\0", "it's IT'S"]
TEXTS += [f"a{' ' * count}b" for count in (2, 3, 5, 17, 33)]
REAL = Path(os.environ.get("ALIGN_SMOLLM2", "absent"))  # SmolLM2-135M-Instruct: the GGUF file and tokenizer.json


def byte_level(**changes) -> dict[str, object]:
    """The metadata of a small byte-level BPE with two control tokens, a user-defined and an unused one."""
    model = json.loads(peer_trained(None).to_str())["model"]
    names = sorted(model["vocab"], key=model["vocab"].get)
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*names, "<|bos|>", "<|end|>", "<sep>", "[PAD603]"],
        "token_type": [1] * len(names) + [3, 3, 4, 5],
        "merges": [" ".join(merge) for merge in model["merges"]],
        "bos_token_id": len(names),
        "eos_token_id": len(names) + 1,
    } | changes
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}


def sentencepiece(peer: PeerTokenizer, **changes) -> dict[str, object]:
    """The metadata that a SentencePiece model would have: a higher score for each token that is merged earlier."""
    model = json.loads(peer.to_str())["model"]
    names = sorted(model["vocab"], key=model["vocab"].get)
    made = list(dict.fromkeys("".join(merge) for merge in model["merges"]))
    added = {token.content: token.special for token in peer.get_added_tokens_decoder().values()}
    types = {name: TokenType.CONTROL if special else TokenType.USER_DEFINED for name, special in added.items()}
    types |= {"<unk>": TokenType.UNKNOWN} | dict.fromkeys(BYTES, TokenType.BYTE)
    fields = {
        "model": "llama",
        "tokens": names,
        "token_type": [int(types.get(name, TokenType.NORMAL)) for name in names],
        "scores": [
            -1e9 if set(name) == {"▁"} else -float(made.index(name)) if name in made else -1e4 for name in names
        ],
        "unknown_token_id": names.index("<unk>"),
    } | changes
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}


def test_byte_level_ids_and_names():
    tokenizer = Tokenizer(spec_from_gguf(byte_level() | {"tokenizer.chat_template": "{{ messages }}"}))
    peer = peer_trained(None)
    for text in TEXTS:
        assert tokenizer.encode(text) == peer.encode(text).ids
    assert tokenizer.special_tokens == {"<|bos|>": 600, "<|end|>": 601}
    assert tokenizer.encode("a<sep>") == [*peer.encode("a").ids, 602]
    assert tokenizer.vocab_size == 603
    assert not tokenizer.is_token(603)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.opening_ids) == (600, 601, ())
    assert tokenizer.spec.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("fields", "opens"),
    [
        ({"add_bos_token": True}, True),
        ({"add_bos_token": False, "pre": "llama-bpe"}, False),
        ({"pre": "llama-bpe"}, True),
        ({"pre": "qwen2"}, False),
        ({"pre": "llama-bpe", "bos_token_id": None}, False),
    ],
)
def test_bos_opens_a_text_as_in_llama_cpp(fields, opens):
    assert Tokenizer(spec_from_gguf(byte_level(**fields))).opening_ids == ((600,) if opens else ())


@pytest.mark.parametrize("row", PRE_TOKENIZERS, ids=lambda row: row.names[0])
def test_every_name_splits_and_is_found_again(row):
    for name in row.names:
        spec = spec_from_gguf(byte_level(pre=name))
        assert tuple(split.pattern for split in spec.splits) == row.patterns
        assert (spec.nfc, spec.ignore_merges) == (row.nfc, row.ignore_merges)
        assert find_pre_tokenizer(spec)[1:4] == row[1:4]


def test_patterns_that_match_the_same_share_a_name():
    spec = spec_from_gguf(byte_level())
    for pattern, name in ((GPT2_LONG, "gpt-2"), (PATTERNS["gpt4"], "dbrx"), (GPT2, "gpt-2"), (LLAMA3, "dbrx")):
        assert find_pre_tokenizer(replace(spec, splits=(Split(pattern),))).names[0] == name
    assert find_pre_tokenizer(replace(spec, splits=(Split(r"\p{L}+"),))) is None
    assert find_pre_tokenizer(replace(spec, splits=(Split(GPT2, keep_gaps=False),))) is None


@pytest.mark.parametrize("build", [llama, gemma])
def test_sentencepiece_ids(build, tmp_path):
    """The metadata has no merges: they follow from tokens and scores."""
    peer = build()
    bos = peer.token_to_id("<s>" if build is llama else "<bos>")
    metadata = sentencepiece(peer, add_space_prefix=build is llama, bos_token_id=bos)
    tokenizer = Tokenizer(spec_from_gguf(metadata))
    for text in TEXTS:
        assert tokenizer.encode_template(text) == peer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.opening_ids == (bos,)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("a b") == tokenizer.encode("a b")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"tokenizer\.ggml\.tokens"),
        (byte_level(model="t5"), r"model.*'t5'.*gpt2.*llama"),
        (byte_level(pre="falcon"), r"pre.*'falcon'.*llama-bpe"),
        (byte_level(pre=None), r"no tokenizer\.ggml\.pre"),
        (byte_level(merges=None), "merges"),
        (byte_level(token_type=[1]), "token_type.*1 .*604"),
        (byte_level(bos_token_id=604), r"bos_token_id.*604"),
        (byte_level(eot_token_id=999), r"eot_token_id.*999.*604"),
        (byte_level(eom_token_id=-1), r"eom_token_id.*-1.*604"),
        (byte_level(token_type=[1, 0] + [1] * 602), r"token_type.*\b0\b.*token 1"),
        (byte_level(merges=["a ☃"]), "merge 0"),
        (sentencepiece(llama(), scores=None), "scores"),
        (sentencepiece(llama(), remove_extra_whitespaces=True), "remove_extra_whitespaces"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_unknown_is_refused_by_name(metadata, message):
    with pytest.raises(ValueError, match=message):
        spec_from_gguf(metadata)


def hard_strings() -> list[str]:
    """A few hundred strings: all pairs of sentences, and all pairs of marks at the borders of words."""
    marks = [
        "'s",
        "'LL",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "7",
        "1234",
        "½",
        "é",
        "e\u0301",
        "漢",
        "😀",
        "!",
        "\x04",
    ]
    return [*TEXTS, *CORPUS, *(f"a{x}b{y}c" for x in marks for y in marks)]


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared: ALIGN_SMOLLM2")
def test_smollm2():
    """SmolLM2's GGUF against its tokenizer.json, in `tokenizers`."""
    import gguf

    (file,) = REAL.glob("*.gguf")
    fields = gguf.GGUFReader(file).fields
    tokenizer = Tokenizer(spec_from_gguf({name: field.contents() for name, field in fields.items() if "token" in name}))
    peer = PeerTokenizer.from_file(str(REAL / "tokenizer.json"))
    peer.encode_special_tokens = True
    loaded = Tokenizer.load(REAL)
    for text in hard_strings():
        expected = peer.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == loaded.encode(text) == expected
    assert len(tokenizer.missing_bytes) == 21
    assert tokenizer.fingerprint == loaded.fingerprint
    assert tokenizer.opening_ids == loaded.opening_ids == ()
