"""Feedback: its formats, the rows of its batches and the counterparts of its records.

Tokens as in conftest.py: a letter is its byte - 33, pad 256, bos 257, user 260, assistant 261, end 262.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naming import naming

from align.data.collate import FeedbackDataset
from align.data.feedback_data import FeedbackData
from align.data.formats import feedback
from align.data.formats.feedback import DETECTED, Feedback, unpaired
from align.data.formats.record_format import detect
from align.data.pair_data import PreferenceData

USER, GOOD, BAD = ({"role": role, "content": text} for role, text in
                   (("user", "a"), ("assistant", "b"), ("assistant", "cd")))  # fmt: skip
SYSTEM = {"role": "system", "content": "s"}
LIKED, DISLIKED = Feedback([USER], "b", True), Feedback([USER], "cd", False)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, [LIKED]),
        ({"prompt": "a", "completion": "cd", "label": 0}, [DISLIKED]),
        ({"prompt": [USER], "completion": [BAD], "label": False}, [DISLIKED]),
        ({"prompt": [USER], "completion": [USER, GOOD], "label": 1}, [LIKED]),
        ({"prompt": "a", "completion": [GOOD], "label": 1, "score": 7}, [LIKED]),
        ({"prompt": "a", "completion": "b", "label": "True"}, [LIKED]),
        ({"prompt": "a", "completion": "cd", "label": " false "}, [DISLIKED]),
        ({"prompt": "a", "completion": "b", "label": "1"}, [LIKED]),
        ({"prompt": "a", "completion": "cd", "label": "0"}, [DISLIKED]),
        ({"prompt": "a", "completion": "cd", "label": 0.0}, [DISLIKED]),
        ({"messages": [USER, GOOD], "label": True}, [LIKED]),
        ({"messages": [USER, GOOD], "label": True, "system": "s"}, [LIKED._replace(prompt=[SYSTEM, USER])]),
        ({"messages": [USER, GOOD, USER, BAD], "label": 0}, [Feedback([USER, GOOD, USER], "cd", False)]),
        ({"messages": [USER, GOOD], "label": 1, "tools": [{"x": 1}]}, [LIKED._replace(tools=[{"x": 1}])]),
        ({"prompt": "a", "chosen": "b", "rejected": "cd"}, [LIKED, DISLIKED]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [LIKED, DISLIKED]),
    ],
)
def test_records(record, expected):
    """As TRL publishes them, as chats whose last message is the response, and preference pairs."""
    assert list(unpaired(detect(record, DETECTED).read(record))) == expected


@pytest.mark.parametrize("label", [2, -1, 0.5, "yes", "2", "", [True], {}])
def test_other_labels_are_named(build, label):
    with pytest.raises(ValueError, match=naming("records.jsonl", 1, "label", repr(label))):
        build(FeedbackData, {"prompt": "a", "completion": "b", "label": label})


@pytest.mark.parametrize(
    ("format", "record", "named"),
    [
        (None, {"prompt": "a", "completion": "b"}, ["label", "PromptCompletion", "Messages", "Preference"]),
        (None, {"prompt": "a", "completion": "b", "label": 1, "messages": []}, ["PromptCompletion", "Messages"]),
        (feedback.PromptCompletion(), {"prompt": "a", "completion": "b", "label": None}, ["label"]),
        (None, {"prompt": "a", "completion": " ", "label": 1}, ["response"]),
        (None, {"prompt": "", "completion": "b", "label": 1}, ["prompt"]),
        (None, {"prompt": [USER, GOOD], "completion": "b", "label": 1}, ["prompt", "assistant"]),
        (None, {"prompt": "a", "completion": [GOOD, USER], "label": 1}, ["completion", "assistant, user"]),
        (None, {"prompt": "a", "completion": [GOOD | {"tool_calls": [1]}], "label": 1}, ["completion", "tool_calls"]),
        (None, {"messages": [USER], "label": 1}, ["messages", "assistant"]),
        (None, {"messages": [GOOD], "label": 1}, ["prompt"]),
        (None, {"messages": [USER, GOOD | {"reasoning_content": "d"}], "label": 1}, ["messages", "reasoning_content"]),
        (None, {"prompt": "a", "completion": "b", "label": 1, "images": ["a.png"]}, ["images"]),
    ],
)
def test_bad_records(build, format, record, named):
    """File, line, field and value."""
    with pytest.raises(ValueError, match=naming("records.jsonl", 1, *named)):
        build(FeedbackData, record, format=format)


A, B, C, D, X = (ord(letter) - 33 for letter in "abcdx")
PAD, BOS, ROLE, REPLY, END = 256, 257, 260, 261, 262


def test_rows_by_hand(build):
    """Prompts a, a and x, context 16: the largest group has two records, so prompt a of record 0 goes with the response
    of record 1 positions before it in the circle (0, 1, 2): record 1; record 1 with 2, record 2 with 0. Record 1's
    counterpart has another prompt, record 0's has the same, so there is none.
    """
    records = [
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": "a", "completion": "cd", "label": 0},
        {"prompt": "x", "completion": "d", "label": True},
    ]
    data = build(FeedbackData, *records, context=16, batch_size=4)
    dataset = data._datasets["train"]
    assert dataset.counterparts.tolist() == [-1, 2, 0]
    (batch,) = data.record_loader("train")
    prompt, other = [BOS, ROLE, A, END, REPLY], [BOS, ROLE, X, END, REPLY]
    rows = [
        [*prompt, B, END],
        [*prompt, C, D, END],
        [*other, D, END],
        [],
        [],
        [*prompt, D, END],
        [*other, B, END],
        [],
    ]
    assert batch.ids.tolist() == [row + [PAD] * (9 - len(row)) for row in rows]
    assert batch.lengths.tolist() == [len(row) for row in rows]
    assert batch.mask.tolist() == [[5 <= t < len(row) for t in range(9)] for row in rows]
    assert batch.prompt_lengths.tolist() == [5, 5, 5, 0]
    assert batch.numbers.tolist() == [0, 1, 2, -1]
    assert batch.prompts == ("a", "a", "x", "")
    assert batch.desirable.tolist() == [True, False, True, False]
    assert batch.rows.prompt_lengths.tolist() == [5, 5, 5, 0, 0, 5, 5, 0]
    assert torch.equal(batch.labelled.ids, batch.ids[:4])
    assert torch.equal(batch.mismatched.mask, batch.mask[4:])
    assert data.label_counts("train") == (2, 1)
    counts = {"responses": 3, "desirable": 2, "undesirable": 1, "prompt_tokens": 15, "response_tokens": 7}
    assert counts.items() <= data.describe()["train"].items()


def test_a_mismatched_response_that_does_not_fit_loses_its_end(build):
    """Context 16, 17 tokens a row: a prompt of 4 + 9 tokens leaves 4 for a response of 7 letters."""
    records = [
        {"prompt": "x" * 9, "completion": "a", "label": 1},
        {"prompt": "x", "completion": "abcdabc", "label": 0},
    ]
    (batch,) = build(FeedbackData, *records, context=16, batch_size=2).record_loader("train")
    assert batch.lengths.tolist() == [15, 13, 17, 7]
    assert batch.ids[2, 13:].tolist() == [A, B, C, D]


def test_a_long_row_is_truncated_as_in_a_pair(build):
    """Rows of 9 tokens: of bos user a end assistant and bbbb end, 10 tokens, the prompt loses one after bos."""
    data = build(FeedbackData, {"prompt": "a", "completion": "bbbb", "label": 1}, context=8)
    (batch,) = data.record_loader("train")
    assert batch.ids[0].tolist() == [BOS, A, END, REPLY, B, B, B, B, END]
    found = data.describe()["train"]
    assert (found["truncated_responses"], found["truncated_prompt_tokens"], found["responses_without_end"]) == (1, 1, 0)


def test_pairs_make_the_rows_of_their_responses(build):
    """The same prompt and responses as in PreferenceData, chosen ones desirable."""
    records = [{"prompt": "ab"[i], "chosen": "c" * (i + 1), "rejected": "d" * (i + 1)} for i in range(2)]
    (pairs,) = build(PreferenceData, *records, context=16, batch_size=2).record_loader("train")
    data = build(FeedbackData, *records, context=16, batch_size=4)
    (batch,) = data.record_loader("train")
    order = [0, 2, 1, 3]  # chosen and rejected of one pair after the other
    assert torch.equal(batch.labelled.ids, pairs.ids[order])
    assert torch.equal(batch.labelled.mask, pairs.mask[order])
    assert batch.desirable.tolist() == [True, False, True, False]


def test_all_records_of_a_prompt_share_a_batch(build):
    """Prompts a (one pair) and b (two): batches of two and four responses."""
    records = [{"prompt": "abb"[i], "chosen": "c" * (i + 1), "rejected": "d"} for i in range(3)]
    data = build(FeedbackData, *records, context=16, batch_size=1, by_prompt=True)
    batches = list(data.train_dataloader())
    assert sorted(batch.numbers.tolist() for batch in batches) == [[0, 1], [2, 3, 4, 5]]
    assert all(len(set(batch.prompts)) == 1 for batch in batches)


class Numbered(FeedbackDataset):
    """Records whose prompts have these numbers."""

    def __init__(self, numbers):
        self.__dict__["prompt_numbers"] = np.array(numbers)


@given(prompts=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_every_response_is_mismatched_once(prompts):
    """With another prompt; where more than half of the records share one, some have no counterpart, and no response is
    read twice."""
    numbers = [list(dict.fromkeys(prompts)).index(prompt) for prompt in prompts]
    found = Numbered(numbers).counterparts.tolist()
    assert all(other == -1 or numbers[other] != numbers[record] for record, other in enumerate(found))
    used = [other for other in found if other >= 0]
    assert len(used) == len(set(used))
    if 2 * max(map(numbers.count, numbers)) <= len(numbers):
        assert sorted(found) == list(range(len(numbers)))


def test_different_prompts_are_rotated_by_one_as_trl_rotates_a_batch():
    assert Numbered([0, 1, 2, 3]).counterparts.tolist() == [3, 0, 1, 2]


def test_responses_to_a_prompt_are_held_out_together(build):
    """Half of six responses would divide those to b; all of one prompt can't stay together."""
    records = [{"prompt": prompt, "completion": "c", "label": True} for prompt in "abbbbd"]
    data = build(FeedbackData, *records, val_fraction=0.5)
    assert data.describe()["train"]["responses"] == 5
    assert [data._corpus("train").prompt(index)[0] for index in data._records("validation")] == ["d"]
    data = build(FeedbackData, *[records[1]] * 4, val_fraction=0.5)
    assert (len(data._records("train")), len(data._records("validation"))) == (2, 2)
    data = build(FeedbackData, records[0], *records[1:5], val_fraction=0.5)
    assert (len(data._records("train")), len(data._records("validation"))) == (1, 4)
