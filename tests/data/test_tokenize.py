"""Chats of any shape, truncated to any length."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import names

from align.data.formats.chats import PromptCompletion
from align.data.formats.pairs import Pair
from align.data.pair_data import PreferenceData, PromptData
from align.data.text_data import ChatData
from align.data.tokenize import encode_chat, encode_pair
from align.tokenizer import Tokenizer

text = st.text("ab", max_size=12)
turns = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text("ab", min_size=1, max_size=12)), max_size=5)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return Tokenizer.load(tokenizer_dir)


@given(system=st.none() | text, turns=turns, answer=st.text("ab", min_size=1, max_size=12), limit=st.integers(3, 40))
def test_what_is_kept(tokenizer, system, turns, answer, limit):
    """No longer than the limit; begins with bos; the last response keeps its header and its beginning, and loses its
    end only when nothing but bos (or an opening of at most half the row) and the header is left before it; every
    token is accounted for; what still counts counted before; and truncating again changes nothing."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": role, "content": content} for role, content in turns]
    messages += [{"role": "assistant", "content": answer}]
    whole = tokenizer.render_chat(messages)
    ids, counted, report, *_ = encode_chat(messages, tokenizer, limit)
    assert len(ids) == len(counted) == min(limit, len(whole.ids))
    assert ids[0] == tokenizer.bos_id
    assert len(whole.ids) - len(ids) == report.truncated_prompt_tokens + report.truncated_response_tokens
    assert report.truncated == (len(ids) < len(whole.ids))

    response = [*tokenizer.encode(answer), tokenizer.end_of_turn_id]
    kept = len(response) - report.truncated_response_tokens
    assert kept >= 1
    assert ids[-kept:].tolist() == response[:kept]
    assert ids[-kept - 1] == tokenizer.special_tokens["<|assistant|>"]
    assert counted[-kept:].all()
    assert not counted[-kept - 1]
    assert report.responses_without_end == (kept < len(response))
    if kept < len(response):
        assert len(ids) - kept - 1 <= max(1, limit // 2)
    assert counted.sum() <= np.sum(whole.mask)


def test_an_earlier_response_without_its_header_is_no_target(tokenizer):
    """Six turns of 9 and 11 letters: with every limit, what still counts follows a complete header."""
    roles = ["user", "assistant"] * 3
    messages = [{"role": role, "content": (role[0] * 3 + str(i)) * 2} for i, role in enumerate(roles)]
    header = tokenizer.special_tokens["<|assistant|>"]
    for limit in range(12, len(tokenizer.render_chat(messages).ids)):
        ids, mask, *_ = encode_chat(messages, tokenizer, limit)
        begins = [i for i in range(len(ids)) if mask[i] and not (i and mask[i - 1])]
        assert [ids[i - 1] for i in begins] == [header] * len(begins)


def test_a_long_header(with_template):
    """B2: of '<|assistant|>' and a line break both must be there."""
    tokenizer = Tokenizer.load(with_template())
    messages = [{"role": role, "content": "abab"} for role in ["user", "assistant"] * 3]
    header = [tokenizer.special_tokens["<|assistant|>"], *tokenizer.encode("\n")]
    for limit in range(9, len(tokenizer.render_chat(messages).ids)):
        ids, mask, *_ = encode_chat(messages, tokenizer, limit)
        begins = [i for i in range(len(ids)) if mask[i] and not (i and mask[i - 1])]
        assert all(ids[i - 2 : i].tolist() == header for i in begins)


INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '[/I]' }}"
    "{% else %}{{ m.content + '<|end|>' }}{% endif %}{% endfor %}"
)


def test_a_template_without_a_generation_prompt(tokenizer):
    """Mistral's: the header is what follows the user's content. No response is a target without it or its beginning,
    and the last response keeps it."""
    tokenizer = Tokenizer(replace(tokenizer.spec, chat_template=INSTRUCTIONS))
    messages = [
        {"role": role, "content": content * 2}
        for role, content in zip(["user", "assistant"] * 3, ["q0", "a0", "q1", "a1", "q2", "a2"], strict=True)
    ]
    header = tokenizer.encode("[/I]")
    responses = [[*tokenizer.encode(f"a{i}" * 2), tokenizer.end_of_turn_id] for i in range(3)]
    for limit in range(11, len(tokenizer.render_chat(messages).ids) + 1):
        ids, mask, *_ = encode_chat(messages, tokenizer, limit)
        edges = np.flatnonzero(np.diff(np.r_[0, mask, 0]))
        for begin, end in edges.reshape(-1, 2):
            assert ids[begin - len(header) : begin].tolist() == header
            assert ids[begin:end].tolist() in responses
        pair = encode_pair(Pair(messages[:5], "b" * 4, "c" * 4), tokenizer, limit)
        assert pair.prompt[-len(header) :].tolist() == header
    for limit in range(6, 11):
        ids, mask, *_ = encode_chat(messages, tokenizer, limit)
        assert ids[: 1 + len(header)].tolist() == [tokenizer.bos_id, *header]
        assert mask.sum() == limit - 5


def test_what_the_run_is_told(build, with_template):
    """Fields that ChatML does not render, with the counts."""
    asked = {"role": "user", "content": "a"}
    records = [
        {"messages": [asked, {"role": "assistant", "content": "b", "reasoning_content": "c"}]},
        {"messages": [asked | {"name": "Kim"}, {"role": "assistant", "content": "b"}]},
    ]
    data = build(ChatData, *records, tokenizer=with_template(), context=32)
    _, *lines = data._summary("train")
    for line, what in zip(lines, ("reasoning_content", "name"), strict=True):
        assert names(line, 1, 2, "chats", what)


def test_a_response_whose_prompt_ends_otherwise(build, with_template):
    """The template ends prompts with <t>, which it does not write in a chat; where it only writes it in a chat, the
    model writes it."""
    directory = with_template()
    file = Path(directory) / "tokenizer_config.json"
    config = json.loads(file.read_text())
    opened = config["chat_template"].replace("{{ '<|assistant|>\n' }}", "{{ '<|assistant|>\n<t>' }}")
    file.write_text(json.dumps(config | {"chat_template": opened}))
    record = {"prompt": "a", "completion": "b"}
    _, line = build(ChatData, record, tokenizer=directory, context=32)._summary("train")
    assert names(line, 1, "chats", "prompt")


def test_text_that_the_template_writes_for_the_assistant_counts(build, with_template):
    """<t> stands before a response in a chat and not in a prompt, so the model must write it: 5 targets."""
    data = build(ChatData, {"prompt": "a", "completion": "b"}, tokenizer=with_template("<t>"), context=32)
    (line,) = data._summary("train")
    assert names(line, 5)


def test_a_system_prompt_for_chats_that_have_none(build, tokenizer):
    """In all three data modules, and in the prompts that rewards see."""
    system = {"role": "system", "content": "s"}
    asked = [{"role": "user", "content": "a"}]
    answer = {"role": "assistant", "content": "b"}
    for first, expected in (([], "t"), ([system], "s")):
        data = build(ChatData, {"messages": [*first, *asked, answer]}, system_prompt="t", context=32)
        whole = tokenizer.render_chat([system | {"content": expected}, *asked, answer])
        assert next(iter(data.train_dataloader())).ids[0, : len(whole.ids)].tolist() == whole.ids
        prompts = build(PromptData, {"prompt": [*first, *asked]}, system_prompt="t", context=32)
        corpus = prompts._corpus("train")
        assert corpus.prompt(0)[0] == [system | {"content": expected}, *asked]
        pairs = build(
            PreferenceData, {"prompt": [*first, *asked], "chosen": "b", "rejected": "c"}, system_prompt="t", context=32
        )
        assert pairs._corpus("train").prompt(0) == corpus.prompt(0)


@pytest.mark.parametrize("kind", [ChatData, PreferenceData, PromptData])
def test_a_tokenizer_without_a_chat_template(kind, build, tokenizer_dir, tmp_path):
    """It is not the record's fault, and no record is skipped for it."""
    directory = tmp_path / "bare"
    shutil.copytree(tokenizer_dir, directory)
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["chat_template"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="chat_template") as caught:
        build(kind, {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}, tokenizer=str(directory))
    assert "records.jsonl" not in str(caught.value)


def test_tools_reach_the_template(build, with_template):
    """In all three data modules; a template that does not read them is reported."""
    schema = {"type": "function", "function": {"name": "add"}}
    record = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "tools": [schema]}
    directory = with_template()
    for kind, settings in ((ChatData, {"format": PromptCompletion()}), (PreferenceData, {}), (PromptData, {})):
        data = build(kind, record, tokenizer=directory, context=99, **settings)
        assert any(names(line, 1, "tools") for line in data._summary("train"))
    file = Path(directory) / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"chat_template": "{{ tools | tojson }}" + config["chat_template"]}))
    for kind, settings in ((ChatData, {"format": PromptCompletion()}), (PreferenceData, {}), (PromptData, {})):
        data = build(kind, record, tokenizer=directory, context=99, **settings)
        text = data.tokenizer.decode(data._corpus("train").ids)
        assert text.startswith(json.dumps([schema]))
        assert not any(names(line, "tools") for line in data._summary("train"))
