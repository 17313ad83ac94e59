"""Merges by hand, and equal to Hugging Face's trainer."""

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as PeerTokenizer

from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.bpe_training import sample_texts
from align.tokenizer.files import read_spec
from align.tokenizer.splitting import PATTERNS

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SPECIALS = 7


def _peer(texts: list[str], size: int, pattern: str) -> dict:
    peer = PeerTokenizer(models.BPE())
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    peer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return json.loads(peer.to_str())["model"]


def _ours(tokenizer: Tokenizer, directory: Path) -> dict:
    tokenizer.save(directory)
    return json.loads((directory / "tokenizer.json").read_text())["model"]


def _token_texts(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token_text(i) for i in range(256, tokenizer.vocab_size - SPECIALS)]


def test_merges_by_hand():
    """Words: abab x2, ab x3, ba x1. Pairs: ab 2*2+3 = 7, ba 2+1 = 3. First ab (7); then abab is [ab][ab] with count 2,
    and ba is left with 1. So ab, abab, ba."""
    tokenizer = train_tokenizer(["abab", "abab", "ab", "ab", "ab", "ba"], vocab_size=256 + 3 + SPECIALS)
    assert _token_texts(tokenizer) == ["ab", "abab", "ba"]
    assert tokenizer.encode("ababba") == [256 + 1, 256 + 2]


def test_ties_go_to_the_lower_ids():
    """xy, zx, yz occur twice each. Ids follow the byte alphabet (x < y < z): (x,y) < (y,z) < (z,x)."""
    tokenizer = train_tokenizer(["zx", "yz", "xy"] * 2, vocab_size=256 + 3 + SPECIALS)
    assert _token_texts(tokenizer) == ["xy", "yz", "zx"]


def test_runs_merge_from_the_left():
    """aaaaa becomes [aa][aa]a. Then (aa,a) and (aa,aa) occur once, and a is the lower id: [aa][aaa]. Last aaaaa."""
    tokenizer = train_tokenizer(["aaaaa"], vocab_size=256 + 3 + SPECIALS)
    assert _token_texts(tokenizer) == ["aa", "aaa", "aaaaa"]


def test_special_tokens_come_last(tokenizer):
    names = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert tokenizer.special_tokens == {name: 593 + i for i, name in enumerate(names)}
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_turn_id) == (593, 594, 595, 599)
    assert tokenizer.stop_ids == (595, 599)
    assert tokenizer.vocab_size == 600
    assert tokenizer.token_bytes.shape == (600,)


@settings(max_examples=60)
@given(st.lists(st.text("ab ='\n", max_size=30), min_size=1, max_size=8), st.integers(0, 60))
def test_merges_equal_tokenizers(tmp_path_factory, texts, merges):
    """Small alphabets make ties, overlapping pairs and tokens made in two ways, the hard cases."""
    if not any(texts):
        return
    directory = tmp_path_factory.mktemp("ours")
    for pattern in ("gpt2", r"[ab]+|[ =]+"):
        with warnings.catch_warnings(action="ignore"):
            ours = train_tokenizer(texts, vocab_size=256 + merges + SPECIALS, pattern=pattern)
        peer = _peer(texts, 256 + merges, PATTERNS.get(pattern, pattern))
        written = _ours(ours, directory)
        assert written["vocab"] == peer["vocab"]
        assert written["merges"] == peer["merges"]


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_merges_equal_tokenizers_on_prose_and_code(tmp_path, pattern):
    """Two thousand merges over this project's own sources, where runs of spaces and signs are made in many ways."""
    root = Path(__file__).resolve().parents[2]
    texts = [path.read_text() for folder in ("align", "tests") for path in sorted((root / folder).rglob("*.py"))]
    written = _ours(train_tokenizer(texts, vocab_size=2300 + SPECIALS, pattern=pattern), tmp_path)
    peer = _peer(texts, 2300, PATTERNS[pattern])
    assert written["vocab"] == peer["vocab"]
    assert written["merges"] == peer["merges"]


def test_merges_equal_tokenizers_on_real_text(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("needs ../shared data")
    texts = [(SHARED / "tinyshakespeare.txt").read_text(), (SHARED / "gsm8k-test.jsonl").read_text()]
    written = _ours(train_tokenizer(texts, vocab_size=8192 + SPECIALS), tmp_path)
    peer = _peer(texts, 8192, PATTERNS["gpt4"])
    assert written["vocab"] == peer["vocab"]
    assert written["merges"] == peer["merges"]


def test_processes_do_not_change_the_result(sentences):
    texts = [sentence * 8000 for sentence in sentences]
    assert (
        train_tokenizer(texts, vocab_size=500, processes=2).fingerprint
        == train_tokenizer(texts, vocab_size=500).fingerprint
    )


def test_order_of_texts_does_not_change_the_result(sentences):
    assert (
        train_tokenizer(sentences[::-1], vocab_size=400).fingerprint
        == train_tokenizer(sentences, vocab_size=400).fingerprint
    )


def test_samples_have_the_size_asked_for_and_repeat():
    """100 pieces of 60,000 bytes; 600,000 wanted: ten pieces, the same each time, not simply the first ten."""
    texts = [chr(97 + i % 26) * 60_000 for i in range(100)]
    sample = sample_texts(iter(texts), 600_000)
    assert len(sample) == 10
    assert sample == sample_texts(iter(texts), 600_000)
    assert sorted(sample) != texts[:10]
    assert len(sample_texts(["x" * (16 << 16)], 100_000)) == 2
    assert sample_texts(["ab"], 10) == ["ab"]


def test_a_sample_decides_the_merges(sentences):
    texts = [sentence * 3000 for sentence in sentences]
    sampled = train_tokenizer(texts, vocab_size=400, sample_bytes=150_000)
    assert sampled.fingerprint == train_tokenizer(sample_texts(texts, 150_000), vocab_size=400).fingerprint


@pytest.mark.parametrize("char", ["a", "ab"])
def test_a_huge_word_is_counted_in_parts(char):
    """Words longer than 4096 characters are counted in parts, so training stays fast."""
    tokenizer = train_tokenizer([char * 500_000], vocab_size=256 + 5 + SPECIALS)
    assert tokenizer.decode(tokenizer.encode(char * 5000)) == char * 5000


def test_too_little_text_warns():
    with pytest.warns(UserWarning, match=r"vocab_size.*\b400\b.*\b264\b"):
        train_tokenizer(["ab"], vocab_size=400)


@pytest.mark.parametrize(
    ("texts", "settings_", "message"),
    [
        (["a"], {"vocab_size": 262}, r"vocab_size.*\b262\b.*\b263\b"),
        (["a"], {"vocab_size": 2_000_000}, r"vocab_size.*\b2000000\b.*\b1000000\b"),
        ([], {"vocab_size": 300}, "text"),
        (["", ""], {"vocab_size": 300}, "text"),
        (["a\ud800"], {"vocab_size": 300}, "lone surrogate"),
        (["a"], {"vocab_size": 300, "processes": 0}, r"processes\D*0\b"),
        (["a"], {"vocab_size": 300, "sample_bytes": 0}, r"sample_bytes\D*0\b"),
        (["a"], {"vocab_size": 300, "pattern": "gpt5("}, r"pattern.*gpt5\("),
    ],
)
def test_impossible_settings_are_refused(texts, settings_, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, **settings_)


def test_saved_and_read_again_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert read_spec(tmp_path) == tokenizer.spec
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint
