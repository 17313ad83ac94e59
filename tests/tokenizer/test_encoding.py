"""Round trips, odd input and speed of growth."""

import pickle
import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as PeerTokenizer

from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.bpe import Merger, WordCache
from align.tokenizer.files import PLAIN_CONFIG
from align.tokenizer.spec import AddedToken, begins_with

ODD_TEXTS = [
    "",
    "\0",
    "a\0b",
    "😀",
    "👩‍👩‍👧‍👦",
    "漢字かな",
    "e\u0301\u0323",
    "\ufeffx",
    "\U0010ffff",
    "\r\n \t\x1c\x85",
    "<|end|><|bos|>",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.encode(text.encode()) == ids
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@given(st.text())
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary())
def test_any_bytes_round_trip(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


@given(st.lists(st.sampled_from(["ab", "é", "😀", "漢", " the", "\xff"]), max_size=8), st.randoms())
def test_stream_decoder_never_cuts_a_character(tokenizer, parts, rng):
    """Encoding bytes one by one gives ids that each hold a part of a character; the pieces must join to the whole."""
    ids = [i for part in parts for byte in part.encode() for i in tokenizer.encode(bytes([byte]))]
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(i) for i in ids]
    assert "".join(pieces) == "".join(parts)
    assert decoder.flush() == ""


def test_stream_decoder_replaces_what_never_became_whole(tokenizer):
    """b'\\xf0\\x9f' starts an emoji that does not come: one U+FFFD at the end, as in decode."""
    decoder = tokenizer.stream_decoder()
    ids = tokenizer.encode(b"a\xf0\x9f")
    assert [decoder.push(i) for i in ids] == ["a"] + [""] * (len(ids) - 1)
    assert decoder.flush() == "\ufffd"
    assert tokenizer.decode(ids) == "a\ufffd"


def test_special_tokens_in_decoding(tokenizer):
    end = tokenizer.end_of_turn_id
    ids = [*tokenizer.encode("a"), end]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special=False) == "a<|end|>"
    assert tokenizer.token_bytes[end] == 0


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_lone_surrogates_are_refused(tokenizer, text):
    place = next(i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff")
    for encode in (tokenizer.encode, lambda t: tokenizer.encode_to_array([t])):
        with pytest.raises(ValueError, match=rf"\b{place}\b.*U\+{ord(text[place]):04X}"):
            encode(text)


def test_invalid_bytes_leave_no_trace_in_the_cache(tokenizer):
    tokenizer.encode(b"\xff")
    with pytest.raises(ValueError, match=r"U\+DCFF"):
        tokenizer.encode("\udcff")


@pytest.mark.parametrize("number", [-1, 10**6])
def test_unknown_ids_are_refused(tokenizer, number):
    with pytest.raises(ValueError, match=rf"{number}\b.*\b599\b"):
        tokenizer.decode([number])


def test_batches_equal_single_texts(tokenizer, sentences):
    """On two processes too; 2 x 1 MB is enough for two chunks, so that order counts."""
    texts = [s * n for n, s in enumerate(sentences)] + [sentences[0] * 14_000, "", sentences[3] * 50_000]
    single = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == single
    assert tokenizer.encode_batch(texts, processes=2) == single
    for processes in (1, 2):
        ids, offsets = tokenizer.encode_to_array(texts, suffix=[tokenizer.eos_id], processes=processes)
        assert ids.dtype == np.uint16
        assert offsets[0] == 0
        assert offsets[-1] == len(ids)
        for i, expected in enumerate(single):
            assert ids[offsets[i] : offsets[i + 1]].tolist() == [*expected, tokenizer.eos_id]


def test_large_vocabularies_take_four_bytes(tokenizer):
    """An id of 70,000 does not fit in 16 bits."""
    large = Tokenizer(replace(tokenizer.spec, added=(AddedToken(70_000, "<far>", special=False),)))
    assert large.vocab_size == 70_001
    texts = ["a<far>b" * 60_000] * 3
    ids, _ = large.encode_to_array(texts)
    assert ids.dtype == np.uint32
    assert ids[:3].tolist() == [*tokenizer.encode("a"), 70_000, *tokenizer.encode("b")]
    assert large.encode_batch(texts, processes=2) == [large.encode(text) for text in texts]


def test_pickling_drops_caches(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert not copy._coder._ids_cache
    assert copy.encode("the quick") == tokenizer.encode("the quick")


def test_word_cache_is_bounded():
    """With room for 3 words, the fourth empties it; a word of 65 characters is never kept."""
    cache = WordCache(len, 3)
    assert [cache[word] for word in ("a", "bb", "ccc")] == [1, 2, 3]
    assert cache["dddd"] == 4
    assert dict(cache) == {"dddd": 4}
    assert cache["x" * 65] == 65
    assert len(cache) == 1


def _merge_plainly(merger: Merger, ids: list[int]) -> list[int]:
    """The rule word for word: lowest rank, leftmost; one merge at a time."""
    while True:
        ranked = [(merger.ranks[p], i) for i, p in enumerate(zip(ids, ids[1:], strict=False)) if p in merger.ranks]
        if not ranked:
            return ids
        rank, i = min(ranked)
        ids = [*ids[:i], merger.made[rank], *ids[i + 2 :]]


@st.composite
def _mergers(draw):
    """Tables over a and b whose merges come in any order, also two that make the same token."""
    tokens, ids, pairs = [bytes([b]) for b in range(256)], {}, []
    ids = {token: i for i, token in enumerate(tokens)}
    letters = [97, 98]
    for _ in range(draw(st.integers(1, 12))):
        a, b = draw(st.sampled_from(letters)), draw(st.sampled_from(letters))
        token = tokens[a] + tokens[b]
        if (a, b) in pairs or len(token) > 40:
            continue
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)
            letters.append(ids[token])
        pairs.append((a, b))
    pairs = draw(st.permutations(pairs))
    made = [ids[tokens[a] + tokens[b]] for a, b in pairs]
    return Merger(
        {byte: byte for byte in range(256)},
        {pair: rank for rank, pair in enumerate(pairs)},
        made,
        dict(enumerate(tokens)),
    )


@given(_mergers(), st.text("ab", max_size=200))
def test_all_ways_of_merging_agree(merger, text):
    data = text.encode()
    expected = _merge_plainly(merger, list(data))
    assert merger._merge_list(list(data)) == expected
    assert merger._merge_heap(list(data)) == expected
    assert merger._merge_windows(data) == expected
    assert merger.merge(data) == expected


@given(st.data())
def test_windows_that_do_not_agree_grow(data):
    """Short windows of a table made of long tokens seldom agree; the answer is exact all the same."""
    merger = data.draw(_mergers())
    text = data.draw(st.text("ab", max_size=60)).encode()
    expected = _merge_plainly(merger, list(text))
    for size in (2, 5, 16):
        joined = merger._join_windows(text, size)
        assert joined is None or joined == expected


@pytest.mark.parametrize(
    "kind", ["prose", "one letter", pytest.param("letters", marks=pytest.mark.slow), "spaces", "han"]
)
def test_ten_megabytes_on_one_line(tokenizer, kind):
    """10 MB without a line end, in most kinds without a single border between words; takes seconds, not hours."""
    rng = random.Random(0)
    line = {
        "prose": lambda: "the quick brown fox jumps over " * 322_581,
        "one letter": lambda: "a" * 10_000_000,
        "letters": lambda: "".join(rng.choices("etaoin", k=1_000_000)) * 10,
        "spaces": lambda: " " * 10_000_000,
        "han": lambda: "人工智能正在改变世界" * 333_334,
    }[kind]()
    start = time.process_time()
    ids = tokenizer.encode(line)
    assert time.process_time() - start < 60
    assert tokenizer.decode(ids) == line


def test_a_long_word_takes_linear_time(tokenizer):
    """Four times the word, four times the time; quadratic would be sixteen."""
    rng = random.Random(1)
    times = []
    for size in (100_000, 400_000):
        word = "".join(rng.choices("etaoinshr", k=size))
        start = time.process_time()
        tokenizer.encode(word)
        times.append(time.process_time() - start)
    assert times[1] < 8 * times[0]


def test_fingerprint_follows_the_ids(tokenizer):
    again = train_tokenizer(["the quick brown fox"] * 3, vocab_size=270)
    other = train_tokenizer(["the quick brown fax"] * 3, vocab_size=270)
    assert again.fingerprint == train_tokenizer(["the quick brown fox"] * 3, vocab_size=270).fingerprint
    assert len({tokenizer.fingerprint, again.fingerprint, other.fingerprint}) == 3
    assert Tokenizer(again.spec).fingerprint == again.fingerprint


def _opening(tokenizer, **changes) -> tuple[tuple[int, ...], int | None]:
    changed = Tokenizer(replace(tokenizer.spec, **changes))
    return changed.opening_ids, changed.bos_id


def test_a_document_opens_with_what_the_tokenizer_adds(tokenizer):
    """Ours say it. Of others the post-processor decides, or add_bos_token; bos_token alone adds nothing (SmolLM2)."""
    bos, eos = tokenizer.special_tokens["<|bos|>"], tokenizer.special_tokens["<|eos|>"]
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    assert tokenizer.opening_ids == (bos,)
    assert tokenizer.spec.post_processor is None
    assert _opening(tokenizer, config=names) == ((), bos)
    assert _opening(tokenizer, config=names | {"add_bos_token": True}) == ((bos,), bos)
    tokenizer = Tokenizer(replace(tokenizer.spec, config=names, post_processor=begins_with("<|bos|>", bos)))
    assert _opening(tokenizer, config=names | {"add_bos_token": False}) == ((), bos)
    assert _opening(tokenizer, config={}) == ((bos,), bos)
    other = begins_with("<|eos|>", eos)
    assert _opening(tokenizer, post_processor=other) == ((eos,), bos)
    assert _opening(tokenizer, post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}, other]}) == (
        (eos,),
        bos,
    )
    roberta = {"type": "RobertaProcessing", "sep": ["<|eos|>", eos], "cls": ["<|bos|>", bos]}
    assert _opening(tokenizer, post_processor=roberta) == ((bos,), bos)


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"bos_token": "<|bos|>", "eos_token": "<|end|>"}},
        {"config": {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}},
        {"config": PLAIN_CONFIG | {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}},
        {"chat_template": "{{ messages }}"},
        {"nfc": True},
        {"added": (AddedToken(599, "<|end|>", normalized=True),)},
    ],
)
def test_fingerprint_covers_whatever_decides_ids(tokenizer, change):
    assert Tokenizer(replace(tokenizer.spec, **change)).fingerprint != tokenizer.fingerprint


def test_fingerprint_ignores_what_decides_no_id(tokenizer):
    config = tokenizer.spec.config | {"model_max_length": 5, "bos_token": {"content": "<|bos|>", "lstrip": False}}
    assert Tokenizer(replace(tokenizer.spec, config=config)).fingerprint == tokenizer.fingerprint


def test_which_ids_are_tokens(tokenizer):
    """A token far beyond the others leaves a gap: 600 to 69,999."""
    far = Tokenizer(replace(tokenizer.spec, added=(*tokenizer.spec.added, AddedToken(70_000, "<far>"))))
    assert far.real_ids.shape == (70_001,)
    assert far.real_ids.sum() == 601
    assert not far.real_ids[600:70_000].any()
    assert [far.is_token(i) for i in (-1, 599, 600, 70_000, 70_001)] == [False, True, False, True, False]


def test_added_tokens_follow_the_last(tokenizer):
    more = tokenizer.with_added_tokens(["<tool>", "<|end|>", "<tool>", "</tool>"])
    assert more.vocab_size == 602
    assert {name: more.special_tokens[name] for name in ("<tool>", "</tool>")} == {"<tool>": 600, "</tool>": 601}
    assert more.encode("a<tool>b") == tokenizer.encode("a<tool>b")
    assert more.encode_template("a<tool>b") == [*tokenizer.encode("a"), 600, *tokenizer.encode("b")]
    assert more.fingerprint != tokenizer.fingerprint
    plain = tokenizer.with_added_tokens(["<sep>"], special=False)
    assert plain.encode("a<sep>") == [*tokenizer.encode("a"), 600]
    assert plain.decode([600]) == "<sep>"
    for names, special, message in ((["a"], True, "'a'"), ([""], True, "empty"), (["<|end|>"], False, "<|end|>")):
        with pytest.raises(ValueError, match=re.escape(message)):
            tokenizer.with_added_tokens(names, special=special)


def _without(tokenizer, missing: bytes) -> Tokenizer:
    """The tokenizer without the tokens that contain one of the bytes, and without their merges."""
    spec = tokenizer.spec
    vocab = {token: number for token, number in spec.vocab.items() if not set(token) & set(missing)}
    ids = set(vocab.values())
    kept = [(pair, spec.made[rank]) for pair, rank in spec.ranks.items() if {*pair, spec.made[rank]} <= ids]
    ranks = {pair: rank for rank, (pair, _) in enumerate(kept)}
    return Tokenizer(replace(spec, vocab=vocab, ranks=ranks, made=[made for _, made in kept]))


@given(data=st.one_of(st.binary(max_size=40), st.text("ab\x04é \n").map(str.encode)), times=st.sampled_from([1, 60]))
def test_missing_bytes_are_dropped(tokenizer, data, times):
    """Invalid UTF-8 and words longer than a window included: what comes back is the text without those bytes."""
    missing = b"\x04\n\xa9\xff"
    tokenizer = _without(tokenizer, missing)
    assert tokenizer.missing_bytes == missing
    data *= times
    ids = tokenizer.encode(data)
    rest = data.translate(None, missing)
    assert tokenizer.decode_bytes(ids) == rest
    assert tokenizer.dropped_bytes(data) == len(data) - len(rest)
    assert tokenizer.token_bytes[ids].sum() == len(rest)
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)


def test_missing_bytes_equal_tokenizers(tokenizer, sentences, tmp_path):
    tokenizer = _without(tokenizer, b"\x04 e\xa9")
    tokenizer.save(tmp_path)
    peer = PeerTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    peer.encode_special_tokens = True
    for text in [*sentences, *ODD_TEXTS, "a\x04b" * 100]:
        assert tokenizer.encode(text) == peer.encode(text, add_special_tokens=False).ids


def test_bytes_without_a_token_are_dropped_before_merging():
    """As `tokenizers` does: a missing byte leaves no id and its neighbours merge, in long words too."""
    merger = Merger({97: 0, 98: 1}, {(0, 1): 0}, [2], {0: b"a", 1: b"b", 2: b"ab"})
    assert merger.merge(b"a\x04b") == [2]
    assert merger.merge(b"a\x04b" * 100) == [2] * 100
