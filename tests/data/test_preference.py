"""Pairs and prompts in batches: derived by hand, and as properties; tests/data/conftest.py says which id is which."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naming import names, naming

from align.data.formats import Pair
from align.data.pair_data import PreferenceData, PromptData
from align.data.text_data import ChatData
from align.data.tokenize import encode_chat, encode_pair
from align.tokenizer import Tokenizer

BOS, PAD, SYSTEM, USER, ASSISTANT, END = 257, 256, 259, 260, 261, 262
A, B, C, D, E = (ord(letter) - 33 for letter in "abcde")


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def in_order(data):
    """The batch of all training records, in the order of the file."""
    dataset = data._datasets["train"]
    return dataset[np.arange(len(dataset))]


def test_pairs(build):
    """The prompts are bos user a end assistant (5 tokens) and bos user d e end assistant (6). The longest row has 8
    tokens, so rows are 8 + 1 wide."""
    batch = in_order(build(PreferenceData, pair("a", "b", "cd"), pair("de", "a", "b"), context=16))
    one, two = [BOS, USER, A, END, ASSISTANT], [BOS, USER, D, E, END, ASSISTANT]
    assert batch.ids.tolist() == [
        [*one, B, END, PAD, PAD],
        [*two, A, END, PAD],
        [*one, C, D, END, PAD],
        [*two, B, END, PAD],
    ]
    marks = [[place in counted for place in range(9)] for counted in ({5, 6}, {6, 7}, {5, 6, 7}, {6, 7})]
    assert batch.mask.tolist() == marks
    assert batch.lengths.tolist() == [7, 8, 8, 8]
    assert batch.prompt_lengths.tolist() == [5, 6]
    assert batch.numbers.tolist() == [0, 1]
    assert batch.prompts == ("a", "de")
    assert all(
        part.dtype == torch.int64
        for name, part in batch._asdict().items()
        if name not in ("mask", "prompts", "columns")
    )


def test_prompts(build):
    """As wide as the longest prompt; a single user message is its text, any other chat its messages."""
    chat = [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}]
    batch = in_order(build(PromptData, {"prompt": "a"}, {"prompt": chat}, context=16))
    assert batch.ids.tolist() == [
        [BOS, USER, A, END, ASSISTANT, PAD, PAD, PAD],
        [BOS, SYSTEM, B, END, USER, C, END, ASSISTANT],
    ]
    assert batch.lengths.tolist() == [5, 8]
    assert batch.numbers.tolist() == [0, 1]
    assert batch.prompts == ("a", chat)


def test_summary(build):
    """Two pairs of the test above: prompts 5 + 6 tokens, chosen 2 + 2, rejected 3 + 2; a batch is 4 rows of 9 places,
    of which 7 + 8 + 8 + 8 = 31 are filled."""
    data = build(PreferenceData, pair("a", "b", "cd"), pair("de", "a", "b"), context=16)
    numbers = data.describe()["train"]
    expected = {"pairs": 2, "prompt_tokens": 11, "chosen_tokens": 4, "rejected_tokens": 5, "truncated_pairs": 0}
    assert expected.items() <= numbers.items()
    assert numbers["padding_share"] == pytest.approx(1 - 31 / 36)
    (line,) = data._summary("train")
    assert line == "train: pairs 2, prompt tokens 11, chosen tokens 4, rejected tokens 5, padding share 13.9%"
    prompts = build(PromptData, {"prompt": "a"}, {"prompt": "bcd"}, context=16)
    assert list(prompts._summary("train")) == ["train: prompts 2, tokens 12, longest prompt 7, padding share 14.3%"]


# Truncation.


def test_the_prompt_is_truncated_first(build):
    """bos user a b c d e end assistant is 9 tokens, the longer answer 3, a row 9: the prompt loses 3 after bos, in both
    rows alike."""
    data = build(PreferenceData, pair("abcde", "a", "bc"), context=8)
    batch = in_order(data)
    prompt = [BOS, C, D, E, END, ASSISTANT]
    assert batch.ids.tolist() == [[*prompt, A, END, PAD], [*prompt, B, C, END]]
    truncation = {
        "truncated_pairs": 1,
        "truncated_prompt_tokens": 3,
        "truncated_response_tokens": 0,
        "responses_without_end": 0,
    }
    assert truncation.items() <= data.describe()["train"].items()
    assert names(list(data._summary("train"))[1], "train", 1, "pairs", 9, 3, 0)
    assert batch.prompts == ("abcde",)


def test_then_the_responses(build):
    """Of 9 tokens bos and the header leave 7: nine a's and their end lose 3, b and its end nothing."""
    data = build(PreferenceData, pair("a", "a" * 9, "b"), context=8)
    assert in_order(data).ids.tolist() == [[BOS, ASSISTANT, *[A] * 7], [BOS, ASSISTANT, B, END, *[PAD] * 5]]
    truncation = {
        "truncated_pairs": 1,
        "truncated_prompt_tokens": 3,
        "truncated_response_tokens": 3,
        "responses_without_end": 1,
    }
    assert truncation.items() <= data.describe()["train"].items()


def test_responses_that_are_equal_when_truncated(build):
    """Seven a's are left of both."""
    with pytest.raises(ValueError, match=naming(1, "chosen", "rejected", 7, "context", 8)):
        build(PreferenceData, pair("a", "a" * 9 + "b", "a" * 9 + "c"), context=8)


text = st.text("ab", min_size=1, max_size=12)
turns = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), text), max_size=4)


@given(system=st.none() | st.text("ab", max_size=12), turns=turns, chosen=text, rejected=text, limit=st.integers(3, 60))
def test_a_pair_is_truncated_like_a_chat(tokenizer_dir, system, turns, chosen, rejected, limit):
    """The row of the longer response is what ChatData makes of that chat; the other row keeps the same prompt and as
    much of its response. A pair that fits is not truncated: each row is the whole chat, rendered at once."""
    tokenizer = Tokenizer.load(tokenizer_dir)
    prompt = [{"role": "system", "content": system}] if system is not None else []
    prompt += [{"role": role, "content": content} for role, content in [*turns, ("user", "ab")]]
    pair = Pair(prompt, chosen, rejected)
    try:
        encoded = encode_pair(pair, tokenizer, limit)
    except ValueError:
        assert chosen[: limit - 2] == rejected[: limit - 2]
        return
    answers = [response.tolist() for response in encoded.responses]
    whole = [[*tokenizer.encode(answer), END] for answer in (chosen, rejected)]
    longer = int(len(rejected) > len(chosen))
    chats = [[*prompt, {"role": "assistant", "content": answer}] for answer in (chosen, rejected)]
    chat = encode_chat(chats[longer], tokenizer, limit)
    assert [*encoded.prompt.tolist(), *answers[longer]] == chat.ids.tolist()
    assert chat.mask[len(encoded.prompt) :].all()
    assert answers == [answer[: len(answers[longer])] for answer in whole]
    assert encoded.truncation.truncated_response_tokens == sum(map(len, whole)) - sum(map(len, answers))
    assert encoded.truncation.responses_without_end == sum(answer[-1] != END for answer in answers)
    prompt_tokens = len(tokenizer.render_chat(prompt, add_generation_prompt=True).ids)
    assert encoded.truncation.truncated_prompt_tokens == prompt_tokens - len(encoded.prompt)
    if not encoded.truncation.truncated:
        for chat, answer in zip(chats, answers, strict=True):
            assert tokenizer.render_chat(chat).ids == [*encoded.prompt.tolist(), *answer]


# The template.


def test_rows_are_those_of_chat_data(build, with_template):
    """With a foreign template too: prompt and answer apart are what ChatData makes of the whole chat, mask and all."""
    tokenizer = with_template()
    data = build(PreferenceData, pair("a b", "b c", "c\nd"), context=32, tokenizer=tokenizer)
    (line,) = data._summary("train")
    batch = in_order(data)
    prompts = in_order(build(PromptData, {"prompt": "a b"}, context=32, tokenizer=tokenizer))
    for row, answer in enumerate(("b c", "c\nd")):
        chat = in_order(build(ChatData, {"prompt": "a b", "completion": answer}, context=32, tokenizer=tokenizer))
        assert chat.ids.tolist() == [batch.ids[row].tolist()]
        assert chat.mask.tolist() == [batch.mask[row].tolist()]
        assert prompts.ids[0].tolist() == batch.ids[row, : batch.prompt_lengths[0]].tolist()


def test_a_template_that_says_more_in_a_whole_chat(build, with_template):
    """It puts <t> before what an assistant said, which no sampler does: the run says so, with both."""
    data = build(PreferenceData, pair("a", "b", "c"), context=32, tokenizer=with_template("<t>"))
    _, line = data._summary("train")
    whole = ["<|user|>", "\n", "a", "<|end|>", "\n", "<|assistant|>", "\n", "<", "t", ">", "b", "<|end|>"]
    for tokens in (whole, whole[:7] + whole[10:]):
        assert " | ".join(map(repr, tokens)) in line
    assert names(line, 1, "pairs")
