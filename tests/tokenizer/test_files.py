"""Tokenizer files: ours open in transformers, theirs open here, with the same ids."""

import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naming import naming
from tokenizers import AddedToken
from tokenizers import Tokenizer as PeerTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from align.tokenizer import Tokenizer
from align.tokenizer.given_template import with_chat_template
from align.tokenizer.spec import AddedToken as AlignToken

FAMILIES = ["gpt2", "llama", "qwen"]
ODD = [
    "",
    " ",
    "\0",
    "zqxjk zqxjk",
    "e\u0301 \u212b ﬁ",
    "a<think>b</think>",
    "a  \n\n\t b",
    "😀\U0001e900١٢٣",
    "\U000e0001",
]


@pytest.fixture(params=FAMILIES)
def directory(request):
    return request.getfixturevalue(f"{request.param}_directory")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(), st.sampled_from(ODD)))
def test_foreign_ids(directory, text):
    """As tokenizers gives them without a post-processor's tokens; no name of a special token comes up here."""
    peer = PeerTokenizer.from_file(str(directory / "tokenizer.json"))
    ids = _loaded(directory).encode(text)
    assert ids == peer.encode(text, add_special_tokens=False).ids
    assert _loaded(directory).decode(ids) == peer.decode(ids)


_cache: dict = {}


def _loaded(directory) -> Tokenizer:
    return _cache.setdefault(directory, Tokenizer.load(directory))


def test_foreign_ids_of_sentences(directory, sentences):
    peer = PeerTokenizer.from_file(str(directory / "tokenizer.json"))
    for text in [*sentences, "".join(sentences), *ODD]:
        assert _loaded(directory).encode(text) == peer.encode(text, add_special_tokens=False).ids


def test_special_names_in_ordinary_text(directory):
    """tokenizers with encode_special_tokens on does as we do: the names are text."""
    peer = PeerTokenizer.from_file(str(directory / "tokenizer.json"))
    peer.encode_special_tokens = True
    tokenizer = _loaded(directory)
    text = "a" + "b".join(tokenizer.special_tokens) + " <think> c"
    ids = tokenizer.encode(text)
    assert ids == peer.encode(text, add_special_tokens=False).ids
    assert not set(ids) & set(tokenizer.special_tokens.values())
    array, _ = tokenizer.encode_to_array([text])
    assert array.tolist() == ids


@given(text=st.lists(st.sampled_from(["<a>", "<b>", "<c>", "\n\n", " ", "\n", "x", "\t", "<", "é"])).map("".join))
def test_added_tokens_that_take_white_space(qwen_directory, text):
    """lstrip, rstrip, a token of white space alone, and one that is not special, as tokenizers finds them."""
    if "stripping" not in _cache:
        peer = PeerTokenizer.from_file(str(qwen_directory / "tokenizer.json"))
        added = {"<a>": {"lstrip": True}, "<b>": {"rstrip": True}, "\n\n": {}}
        peer.add_special_tokens([AddedToken(name, normalized=False, **strips) for name, strips in added.items()])
        peer.add_tokens([AddedToken("<c>", normalized=False, lstrip=True, rstrip=True)])
        file = qwen_directory.parent / "stripping.json"
        peer.save(str(file))
        _cache["stripping"] = peer, Tokenizer.load(file)
    peer, tokenizer = _cache["stripping"]
    assert tokenizer.encode_template(text) == peer.encode(text, add_special_tokens=False).ids


@given(text=st.text("caf\u00e9e\u0301\u0327 =\u0338"))
def test_added_tokens_that_are_matched_after_normalization(qwen_directory, text):
    """As GPT-NeoX's runs of spaces beside NFC: "cafe" + U+0301 holds no token "cafe", but "café" may be one."""
    if "normalized" not in _cache:
        peer = PeerTokenizer.from_file(str(qwen_directory / "tokenizer.json"))
        peer.add_tokens([AddedToken(name, normalized=True) for name in ("cafe", "fé", "  ", "=", "e  ")])
        peer.add_tokens([AddedToken("af", normalized=False)])
        file = qwen_directory.parent / "normalized.json"
        peer.save(str(file))
        _cache["normalized"] = peer, Tokenizer.load(file)
    peer, tokenizer = _cache["normalized"]
    assert tokenizer.encode(text) == peer.encode(text, add_special_tokens=False).ids


def test_written_files_name_no_class_and_no_machine(qwen_directory, tmp_path):
    """Gone is what transformers 5 adds and 4 refuses, and what only the writing class or machine needs."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/tokenizer.json").write_bytes((qwen_directory / "tokenizer.json").read_bytes())
    noise = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "is_local": True,
        "local_files_only": True,
        "add_bos_token": True,
        "auto_map": {"AutoTokenizer": "code.py"},
        "extra_special_tokens": ["<|im_start|>"],
    }
    kept = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "model_max_length": 99}
    end = {"eos_token": {"content": "<|im_end|>", "lstrip": False}}
    (tmp_path / "in/tokenizer_config.json").write_text(json.dumps(noise | kept | end))
    tokenizer = Tokenizer.load(tmp_path / "in")
    tokenizer.save(tmp_path / "out")
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert written == kept | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": ["<|im_start|>"],
    }
    start = tokenizer.special_tokens["<|im_start|>"]
    assert tokenizer.opening_ids == Tokenizer.load(tmp_path / "out").opening_ids == (start,)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a")["input_ids"] == [start, *tokenizer.encode("a")]


def test_added_tokens_in_transformers(directory, tmp_path):
    tokenizer = Tokenizer.load(directory).with_added_tokens(["<tool>", "</tool>"])
    tokenizer.save(tmp_path)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    assert peer.convert_tokens_to_ids(["<tool>", "</tool>"]) == [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]
    text = "a<tool> b</tool>"
    assert peer(text, add_special_tokens=False)["input_ids"] == tokenizer.encode_template(text)


def test_gaps_between_ids_survive_saving(gpt2_directory, tmp_path):
    """tokenizers numbers added tokens from the size of the vocabulary on; a token with another id must stand in it."""
    spec = Tokenizer.load(gpt2_directory).spec
    tokenizer = Tokenizer(replace(spec, added=(*spec.added, AlignToken(1000, "<far>"), AlignToken(900, "<near>"))))
    tokenizer.save(tmp_path)
    peer = PeerTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.load(tmp_path)
    for text in ("a<far>b<near>", "<|endoftext|>"):
        assert peer.encode(text).ids == again.encode_template(text) == tokenizer.encode_template(text)
    assert again.fingerprint == tokenizer.fingerprint


def test_names_of_special_ids(gpt2_directory, llama_directory, qwen_directory):
    """GPT-2: one token for bos and eos, no pad. Llama-3: bos from the post-processor, pad by its name, turns by the
    template. Qwen: no bos, eos is the end of turn, pad is <|endoftext|>."""
    expected = {
        gpt2_directory: ("<|endoftext|>", "<|endoftext|>", None, None),
        llama_directory: ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"),
        qwen_directory: (None, "<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    }
    for path, names in expected.items():
        t = Tokenizer.load(path)
        ids = [None if name is None else t.special_tokens[name] for name in names]
        assert [t.bos_id, t.eos_id, t.pad_id, t.end_of_turn_id] == ids
        assert t.stop_ids == tuple(dict.fromkeys(i for i in (ids[1], ids[3]) if i is not None))
        assert not t.token_bytes[list(t.special_tokens.values())].any()


def test_generation_settings_name_further_tokens_that_end_a_response(qwen_directory, tmp_path):
    """As Qwen2.5-Instruct does; its padding token stays, and an id that the tokenizer lacks is never sampled."""
    folder = shutil.copytree(qwen_directory, tmp_path / "model")
    before = Tokenizer.load(folder)
    (end,), text_end = before.stop_ids, before.special_tokens["<|endoftext|>"]
    named = {"eos_token_id": [end, text_end, before.vocab_size + 5], "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(named))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.stop_ids == (end, text_end)
    assert (tokenizer.pad_id, tokenizer.eos_id) == (before.pad_id, before.eos_id) == (text_end, end)
    assert tokenizer.fingerprint == before.fingerprint
    assert with_chat_template(tokenizer, "{{ messages[0].content }}").stop_ids == (end, text_end)
    assert tokenizer.with_added_tokens(["<|x|>"]).stop_ids == (end, text_end)
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").stop_ids == (end, text_end)
    tokenizer.save(folder)
    assert json.loads((folder / "generation_config.json").read_text()) == named
    before.save(tmp_path / "plain")
    assert not (tmp_path / "plain/generation_config.json").exists()


@pytest.mark.parametrize("value", ["2", [1, "2"], [True], 2.0])
def test_ids_that_end_a_response_are_integers(qwen_directory, tmp_path, value):
    folder = shutil.copytree(qwen_directory, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ValueError, match=naming("generation_config.json", "eos_token_id", repr(value))):
        Tokenizer.load(folder)


def test_bos_from_the_post_processor_alone(llama_directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((llama_directory / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos_id == tokenizer.special_tokens["<|begin_of_text|>"]
    assert tokenizer.eos_id == tokenizer.special_tokens["<|end_of_text|>"]
    assert tokenizer.end_of_turn_id == tokenizer.special_tokens["<|eot_id|>"]


def test_foreign_tokenizers_survive_saving(directory, tmp_path, sentences):
    original = Tokenizer.load(directory)
    original.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.spec == original.spec
    assert again.fingerprint == original.fingerprint
    before, after = (AutoTokenizer.from_pretrained(path) for path in (directory, tmp_path))
    for text in [*sentences, *ODD]:
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.eos_token_id == before.eos_token_id


# Without AutoTokenizer beside qwen2: whatever the files say, transformers 5 then cuts words as Qwen does.
@pytest.mark.parametrize(
    ("reader", "model_type"),
    [
        *((AutoTokenizer, model_type) for model_type in (None, "llama", "qwen3", "gpt2")),
        *((PreTrainedTokenizerFast, model_type) for model_type in (None, "llama", "qwen2")),
    ],
)
def test_our_ids_in_transformers(tokenizer, tmp_path, sentences, reader, model_type):
    """Also beside a config.json, from which AutoTokenizer might take a class of its own."""
    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 600}))
    peer = reader.from_pretrained(tmp_path)
    for text in [*sentences, *(text for text in ODD if "<" not in text)]:
        ids = tokenizer.encode(text)
        assert peer(text)["input_ids"] == ids
        assert peer.decode(ids) == text
    assert len(peer) == tokenizer.vocab_size
    assert peer.bos_token_id == tokenizer.bos_id
    assert peer.eos_token_id == tokenizer.eos_id
    assert peer.pad_token_id == tokenizer.pad_id
    ids = [*tokenizer.encode("a"), tokenizer.end_of_turn_id, tokenizer.eos_id]
    assert peer.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == "a"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_our_ids_in_tokenizers(tokenizer, tmp_path_factory, text):
    if "peer" not in _cache:
        directory = tmp_path_factory.mktemp("ours")
        tokenizer.save(directory)
        _cache["peer"] = PeerTokenizer.from_file(str(directory / "tokenizer.json"))
        _cache["peer"].encode_special_tokens = True
    assert _cache["peer"].encode(text).ids == tokenizer.encode(text)


def _token(content: str, number: int) -> dict[str, object]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **plain}


def _changed(path, tmp_path, change) -> str:
    data = json.loads((path / "tokenizer.json").read_text())
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"]["vocab"].pop("a"), "merge [0-9]+"),
        (lambda d: d["model"]["merges"].append(["q", "☃"]), r"merge.*\('q', '☃'\)"),
        (lambda d: d["model"]["vocab"].update({"☃": 9999}), "token.*'☃'"),
        (lambda d: d["model"]["vocab"].update({"a": "65"}), "token 'a'.*'65'"),
        (lambda d: d["model"]["vocab"].update({"a": -1}), "token 'a'.*-1"),
        (lambda d: d.update(added_tokens=3), "added_tokens.*3"),
        (lambda d: d.update(added_tokens=[_token("<x>", 600), _token("<y>", 600)]), "added_tokens.*600, 600"),
        (lambda d: d.update(added_tokens=[_token("<y>", 601), _token("<x>", 600)]), "added token '<y>'.*601"),
        (lambda d: d.update(added_tokens=[_token("<x>", 9000)]), "added token '<x>'.*9000"),
        (lambda d: d.pop("model"), "KeyError.*model"),
        (lambda d: d["model"].update(vocab=[1]), "AttributeError"),
        (lambda d: d["model"].update(dropout=0.1), r"model\.dropout.*0\.1"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}, decoder=None), "decoder"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}, decoder={"type": "WordPiece"}), "WordPiece"),
        (lambda d: d["model"].update(type="WordLevel"), "tokenizers.*read"),
    ],
)
def test_damaged_and_other_tokenizers_are_refused(gpt2_directory, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(_changed(gpt2_directory, tmp_path, change))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json.*JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer\.json.*list"):
        Tokenizer.load(tmp_path)


def test_an_unreachable_hub_id_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"\A.*someone/model.*no network.*\Z"):
        Tokenizer.load("someone/model")


def test_a_hub_id_loads(monkeypatch, qwen_directory):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(qwen_directory))
    assert Tokenizer.load("someone/model").fingerprint == Tokenizer.load(qwen_directory).fingerprint


def test_byte_level_before_the_end_is_left_to_tokenizers(gpt2_directory, tmp_path):
    """Two steps that map bytes: applied twice, as `tokenizers` does, or refused."""
    change = lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [d["pre_tokenizer"]] * 2})  # noqa: E731
    tokenizer = Tokenizer.load(_changed(gpt2_directory, tmp_path, change))
    peer = PeerTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("a bc  d") == peer.encode("a bc  d", add_special_tokens=False).ids
