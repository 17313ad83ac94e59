"""Tokenizers that the `tokenizers` library applies: SentencePiece's BPE, unigram, and some byte-level ones."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import SENTENCES, gemma, llama, mistral, prefixed, scripted, unigram
from tokenizers import Regex, decoders, models
from tokenizers import Tokenizer as PeerTokenizer
from transformers import AutoTokenizer

from align.tokenizer import Tokenizer

TEXTS = [
    *SENTENCES,
    *("", " ", "  a", "a  ", "\n", "a\nb", "</s>", "x</s><s>y", "<0x0A>", "▁a ▁", "\0", "\U0010fffe", "\U000efffe2"),
    *("😀\U0001e900١٢٣", "e\u0301 ﬁ Å", "<extra>", "a<extra> b", "\u2028x\u3000y", "🇩🇪" * 3),
]


KINDS: dict[str, Callable[[], PeerTokenizer]] = {
    kind.__name__: kind for kind in (llama, mistral, gemma, unigram, prefixed, scripted)
}
CONFIGS = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "unigram": {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Directory of each kind."""
    root = tmp_path_factory.mktemp("library")
    for name, build in KINDS.items():
        (root / name).mkdir()
        build().save(str(root / name / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        (root / name / "tokenizer_config.json").write_text(json.dumps(config | CONFIGS.get(name, {})))
    return root


_loaded: dict[Path, tuple[Tokenizer, PeerTokenizer]] = {}


def _both(directory: Path) -> tuple[Tokenizer, PeerTokenizer]:
    if directory not in _loaded:
        peer = PeerTokenizer.from_file(str(directory / "tokenizer.json"))
        _loaded[directory] = Tokenizer.load(directory), peer
    return _loaded[directory]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.one_of(st.text(), st.sampled_from(TEXTS), st.text("ab ▁<s>/\n漢😀")))
def test_ids_and_texts_equal_the_library(written, kind, text):
    tokenizer, peer = _both(written / kind)
    ids = tokenizer.encode_template(text)
    assert ids == peer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == peer.decode(ids)
    assert tokenizer.decode(ids, skip_special=False) == peer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.one_of(st.text(), st.sampled_from(TEXTS), st.text("ab ▁<s>/\n漢😀")))
def test_ordinary_text_has_no_special_tokens(written, kind, text):
    tokenizer, _ = _both(written / kind)
    ids = tokenizer.encode(text)
    unknown = tokenizer.special_tokens.get("<unk>")
    assert not set(ids) & (set(tokenizer.special_tokens.values()) - {unknown})
    if not any(name in text for name in tokenizer.special_tokens):
        assert ids == tokenizer.encode_template(text)
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)
    assert tokenizer.encode_to_array([text])[0].tolist() == ids


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma"])
@given(data=st.one_of(st.binary(), st.text("a \n漢😀").map(lambda text: text.encode()[1:])))
def test_any_bytes_round_trip(written, kind, data):
    tokenizer, _ = _both(written / kind)
    data = data.replace("▁".encode(), b"")
    ids = tokenizer.encode(data)
    taken = kind == "mistral" and data.startswith(b" ")  # for the one that Metaspace would put there
    assert tokenizer.decode_bytes(ids) == data[taken:]
    assert tokenizer.token_bytes[ids].sum() == len(data) + (kind != "gemma" and not taken and len(data) > 0)
    assert tokenizer.missing_bytes == b""


def test_names_that_a_unigram_model_could_find(written):
    """Its vocabulary holds </s> as any other piece; tokenizers finds it in text even with encode_special_tokens."""
    tokenizer, peer = _both(written / "unigram")
    peer = PeerTokenizer.from_str(peer.to_str())
    peer.encode_special_tokens = True
    end = tokenizer.special_tokens["</s>"]
    assert end in peer.encode("a </s>").ids
    assert end not in tokenizer.encode("a </s>")
    assert end in tokenizer.encode_template("a </s>")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_files_give_the_same_ids(written, kind, tmp_path):
    tokenizer, peer = _both(written / kind)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == peer.encode(text).ids
        assert again.encode(text) == tokenizer.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_documents_open_as_the_post_processor_says(written):
    for kind in KINDS:
        tokenizer, peer = _both(written / kind)
        assert [*tokenizer.opening_ids, *tokenizer.encode("a")] == peer.encode("a").ids


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens(written, kind, tmp_path):
    tokenizer, _ = _both(written / kind)
    more = tokenizer.with_added_tokens(["<tool>", "</tool>"])
    assert [more.special_tokens[name] for name in ("<tool>", "</tool>")] == [tokenizer.vocab_size, more.vocab_size - 1]
    assert more.encode("a b") == tokenizer.encode("a b")
    more.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a<tool>", add_special_tokens=False)["input_ids"] == more.encode_template("a<tool>")
    assert more.encode_template("a<tool>")[-1] == tokenizer.vocab_size
    assert len(theirs) == more.vocab_size


def test_lone_surrogates_are_refused(written):
    tokenizer, _ = _both(written / "llama")
    for encode in (tokenizer.encode, tokenizer.encode_template, lambda text: tokenizer.encode_to_array([text])):
        with pytest.raises(ValueError, match=r"\b1\b.*U\+D800"):
            encode("a\ud800")


def test_what_cannot_be_decoded_id_by_id_is_refused(tmp_path):
    """As saved by tokenizers itself: WordPiece, and a BPE without a decoder."""
    wordpiece = PeerTokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    wordpiece.decoder = decoders.WordPiece()
    bare = PeerTokenizer(models.BPE({"a": 0}, []))
    split = PeerTokenizer(models.BPE({"a": 0}, []))
    split.decoder = decoders.Replace(Regex("a"), "b")
    for name, peer, message in (("w", wordpiece, "WordPiece"), ("b", bare, "decoder"), ("r", split, "Replace")):
        peer.save(str(tmp_path / f"{name}.json"))
        with pytest.raises(ValueError, match=rf"{name}\.json.*{message}"):
            Tokenizer.load(tmp_path / f"{name}.json")


def test_the_missing_package_is_named(written):
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from align.tokenizer import Tokenizer\n"
        f"try:\n    Tokenizer.load({str(written / 'llama')!r})\nexcept ValueError as error:\n    print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install tokenizers" in shown
    assert str(written / "llama" / "tokenizer.json") in shown
    assert "byte_fallback" in shown
