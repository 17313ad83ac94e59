"""TL;DR and HH as plain text, and the chat template of tokenizers that have none."""

import json

import pytest
from naming import naming
from transformers import AutoTokenizer

from align.data.formats import chats, pairs
from align.data.formats import prompt_records as prompts
from align.data.pair_data import PreferenceData, PromptData
from align.data.text_data import ChatData, TextData
from align.tokenizer import Tokenizer
from align.tokenizer.given_template import PLAIN, with_chat_template
from align.tokenizer.spec import OPENING

POST = "SUBREDDIT: r/cats\n\nTITLE: A cat\n\nPOST: one two\n\nthree four\n\nTL;DR:"
DIALOGUE = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


def user(text):
    return [{"role": "user", "content": text}]


def test_tldr():
    """trl-lib/tldr writes a space before the summary; trl-lib/tldr-preference has it in the data."""
    whole = [*user(POST), {"role": "assistant", "content": " A cat."}]
    assert chats.TLDR().read({"prompt": POST, "completion": " A cat."}).messages == whole
    assert chats.TLDR().read({"prompt": POST + " ", "completion": "A cat.\n"}).messages == whole
    pair = pairs.TLDR().read({"prompt": POST, "chosen": " A cat.", "rejected": "A dog."})
    assert pair == pairs.Pair(user(POST), " A cat.", " A dog.")
    assert prompts.TLDR().read({"prompt": POST, "completion": " A cat."}).messages == user(POST)


@pytest.mark.parametrize(
    ("limit", "post"),
    [(19, "one two\n\nthree four"), (18, "one two"), (7, "one two"), (6, "one"), (3, "one"), (2, "on")],
)
def test_a_long_post_loses_its_last_lines_then_words(limit, post):
    prompt = prompts.TLDR(limit).read({"prompt": POST}).messages
    assert prompt == user(f"SUBREDDIT: r/cats\n\nTITLE: A cat\n\nPOST: {post}\n\nTL;DR:")


@pytest.mark.parametrize(
    ("format", "record", "parts"),
    [
        (prompts.TLDR(), {"prompt": "POST: a\n\nTL;DR: b"}, ["prompt", "TL;DR:"]),
        (chats.TLDR(), {"prompt": POST, "completion": " "}, ["2", "blank"]),
        (
            pairs.HHText(),
            {"chosen": DIALOGUE + " d", "rejected": "Human: x\n\nAssistant: e"},
            ["chosen", "rejected"],
        ),
        (pairs.HHText(), {"chosen": DIALOGUE + " d", "rejected": DIALOGUE}, ["rejected", "blank"]),
        (chats.HHText(), {"chosen": "\n\nHuman: a"}, ["chosen", "assistant"]),
        (chats.HHText(), {"chosen": "a"}, ["chosen", "Human:"]),
    ],
)
def test_what_they_refuse(format, record, parts):
    with pytest.raises(ValueError, match=naming(*parts)):
        format.read(record)


def test_hh_as_text():
    """The whole dialogue is the prompt's text; a format of chats takes it apart instead."""
    record = {"chosen": DIALOGUE + " d", "rejected": DIALOGUE + "  e\n"}
    assert pairs.HHText().read(record) == pairs.Pair(user(DIALOGUE), " d", " e")
    assert chats.HHText().read(record).messages == [*user(DIALOGUE), {"role": "assistant", "content": " d"}]
    assert prompts.HHText().read(record).messages == user(DIALOGUE)
    assert [turn["content"] for turn in chats.HH().read(record).messages] == ["a", "b", "c", "d"]
    assert prompts.Question().read({"question": "2+2?", "answer": "#### 4"}).messages == user("2+2?")


def test_the_name_of_a_prompt_format():
    assert prompts.prompt_format("HHText") == prompts.HHText()
    with pytest.raises(ValueError, match=naming("HHTxt", "HHText")):
        prompts.prompt_format("HHTxt")


@pytest.fixture
def bare_dir(tokenizer_dir, tmp_path):
    """No template, eos is bos too, nothing begins a text, no pad token: its special token has no well-known name."""
    path = tmp_path / "bare"
    tokenizer = Tokenizer.load(tokenizer_dir)
    tokenizer.save(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    del config["chat_template"], config["pad_token"], config[OPENING]
    file = path / "tokenizer.json"
    content = json.loads(file.read_text().replace("<|pad|>", "<|unused|>"))
    file.write_text(json.dumps(content | {"post_processor": None}))
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|eos|>"}))
    return str(path)


def test_plain_chats_are_their_text(bare_dir):
    """Prompt and response as they are, and eos, which counts; the same text and ids as transformers'."""
    plain = with_chat_template(Tokenizer.load(bare_dir), "plain")
    eos = plain.eos_id
    chat = [*user(POST), {"role": "assistant", "content": " A cat."}]
    rendered = plain.render_chat(chat)
    assert rendered.ids == [*plain.encode(POST), *plain.encode(" A cat."), eos]
    assert rendered.mask == [False] * len(plain.encode(POST)) + [True] * (len(plain.encode(" A cat.")) + 1)
    assert plain.render_chat(chat[:1], add_generation_prompt=True).ids == plain.encode(POST)
    assert (plain.stop_ids, plain.end_of_turn_id, plain.opening_ids) == ((eos,), eos, ())
    plain.save(bare_dir)
    peer = AutoTokenizer.from_pretrained(bare_dir)
    assert peer.apply_chat_template(chat, tokenize=False) == POST + " A cat.<|eos|>"
    assert peer.apply_chat_template(chat, return_dict=True)["input_ids"] == rendered.ids


def test_plain_chats_open_as_texts_do(tokenizer_dir):
    """Where the tokenizer begins a text with bos, so does a prompt, once."""
    plain = with_chat_template(Tokenizer.load(tokenizer_dir), "plain")
    assert plain.render_chat(user("a"), add_generation_prompt=True).ids == [plain.bos_id, *plain.encode("a")]


def test_a_template_of_ones_own(bare_dir):
    tokenizer = Tokenizer.load(bare_dir)
    assert with_chat_template(tokenizer, None) is tokenizer
    assert with_chat_template(tokenizer, PLAIN + "\n").spec.chat_template == PLAIN + "\n"
    with pytest.raises(ValueError, match=naming("chat_template", "chatml", "plain")):
        with_chat_template(tokenizer, "chatml")


@pytest.mark.parametrize("kind", [ChatData, PreferenceData, PromptData])
def test_a_tokenizer_without_a_template(bare_dir, kind):
    """The tokenizer is to blame, not a record; text needs no template."""
    with pytest.raises(ValueError, match=naming(bare_dir, "chat_template", "plain")):
        kind(bare_dir, "records.jsonl")
    assert TextData(bare_dir, "records.jsonl").tokenizer.spec.chat_template is None


def test_the_data_modules_take_it(bare_dir, build):
    """Padding is eos, as there is no pad token, and only the eos of the response counts."""
    settings = {"tokenizer": bare_dir, "chat_template": "plain", "context": 128, "batch_size": 2}
    short = POST.replace("three four", "3")
    chosen = {"prompt": POST, "chosen": " A cat.", "rejected": " B."}
    records = [{"prompt": prompt, "completion": " A cat."} for prompt in (POST, short)]
    data = build(ChatData, *records, format=chats.TLDR(), **settings)
    batch = next(iter(data.train_dataloader()))
    assert batch.mask.sum().item() == 2 * 8
    assert (batch.ids == data.tokenizer.eos_id).sum().item() > 2
    pair = next(iter(build(PreferenceData, chosen, format=pairs.TLDR(), **settings).train_dataloader()))
    assert pair.mask.sum(1).tolist()[:1] == [8]
    prompt = next(iter(build(PromptData, chosen, format=prompts.TLDR(), **settings).train_dataloader()))
    assert prompt.ids[0, : prompt.lengths[0]].tolist() == data.tokenizer.encode(POST)
    assert data.tokenizer.spec.chat_template == PLAIN


def test_a_template_in_a_file(bare_dir, tmp_path):
    tokenizer = Tokenizer.load(bare_dir)
    file = tmp_path / "chatml.jinja"
    file.write_text(PLAIN + "\n", encoding="utf-8")
    assert with_chat_template(tokenizer, str(file)).spec.chat_template == PLAIN + "\n"
    file.write_bytes(b"\xff{{ x }}")
    with pytest.raises(ValueError, match=naming("chat_template", file)):
        with_chat_template(tokenizer, str(file))
    with pytest.raises(ValueError, match=naming("chat_template", "absent.jinja", "no such file")):
        with_chat_template(tokenizer, "absent.jinja")
