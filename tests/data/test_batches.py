"""Batches derived by hand; tests/data/conftest.py says which id is which."""

import numpy as np
import pytest

from align.data.text_data import ChatData, TextData

BOS, EOS, PAD, SYSTEM, USER, ASSISTANT, END = 257, 258, 256, 259, 260, 261, 262
NEWLINE = 198
A, B, C, D, E = (ord(letter) - 33 for letter in "abcde")


@pytest.fixture
def text_data(tokenizer_dir, write, tmp_path):
    def build(*texts, **settings):
        path = write("train.jsonl", [{"text": text} for text in texts])
        data = TextData(tokenizer_dir, path, cache_dir=str(tmp_path / "cache"), **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return build


def in_order(data):
    """The batch of all training rows, in the order of the file."""
    dataset = data._datasets["train"]
    return dataset[np.arange(len(dataset.rows))]


def test_stream(text_data):
    """Documents abc and d are the stream bos a b c eos bos d eos. Context 4 makes rows of 5 that share one token:
    positions 0-4 and 4-7, the second padded by one. Targets: all but each row's first token; bytes: abc 3, d 1."""
    batch = in_order(text_data("abc", "d", context=4))
    assert batch.ids.tolist() == [[BOS, A, B, C, EOS], [EOS, BOS, D, EOS, PAD]]
    assert batch.mask.tolist() == [[False, True, True, True, True], [False, True, True, True, False]]
    assert batch.num_bytes.tolist() == [3, 1]
    assert batch.positions is None
    assert batch.documents is None


def test_stream_block_diagonal(text_data):
    """The second row's eos is the first document's end; bos starts a new document there and is no target."""
    batch = in_order(text_data("abc", "d", context=4, block_diagonal=True))
    assert batch.ids.tolist() == [[BOS, A, B, C, EOS], [EOS, BOS, D, EOS, PAD]]
    assert batch.mask.tolist() == [[False, True, True, True, True], [False, False, True, True, False]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 0]]


def test_documents_packing(text_data):
    """Lengths with bos and eos: abcde 7, a 3, b 3. Rows of 6 tokens (context 5): abcde is split into bos a b c d e and
    e eos (one token shared); best fit, longest first: 6 | 3 + 3 | 2."""
    batch = in_order(text_data("abcde", "a", "b", context=5, packing="best_fit"))
    assert batch.ids.tolist() == [
        [BOS, A, B, C, D, E],
        [E, EOS, PAD, PAD, PAD, PAD],
        [BOS, A, EOS, BOS, B, EOS],
    ]
    assert batch.mask.tolist() == [
        [False, True, True, True, True, True],
        [False, True, False, False, False, False],
        [False, True, True, False, True, True],
    ]
    assert batch.documents[2].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.positions[2].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.num_bytes.tolist() == [5, 0, 2]


def test_last_batch_is_filled_with_rows_that_count_nothing(text_data):
    """Two rows, batches of three: the third row is padding, document -1, no target, no byte."""
    batch = next(iter(text_data("abc", "d", context=4, block_diagonal=True, batch_size=3).train_dataloader()))
    empty = int((batch.ids == PAD).all(dim=1).nonzero())
    assert batch.ids.shape == (3, 5)
    assert not batch.mask[empty].any()
    assert batch.documents[empty].tolist() == [-1] * 5
    assert batch.num_bytes[empty] == 0


@pytest.fixture
def chat_data(tokenizer_dir, write, tmp_path):
    def build(*chats, **settings):
        path = write("chats.jsonl", [{"messages": chat} for chat in chats])
        data = ChatData(tokenizer_dir, path, cache_dir=str(tmp_path / "cache"), **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return build


def chat(user, assistant, system=None):
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


def test_chat_padding(chat_data):
    """bos user a end assistant b end: 7 tokens; what the network reads is padded to 8, so the row to 9."""
    batch = in_order(chat_data(chat("a", "b"), context=16))
    assert batch.ids.tolist() == [[BOS, USER, A, END, ASSISTANT, B, END, PAD, PAD]]
    assert batch.mask.tolist() == [[False] * 5 + [True, True] + [False] * 2]
    assert batch.num_bytes.tolist() == [1]
    assert batch.documents is None


def test_chat_packing(chat_data):
    """Two chats of 7 tokens side by side in a row of 17."""
    batch = in_order(chat_data(chat("a", "b"), chat("c", "d"), context=16, packing="best_fit"))
    one = [USER, A, END, ASSISTANT, B, END]
    two = [USER, C, END, ASSISTANT, D, END]
    assert batch.ids.tolist() == [[BOS, *one, BOS, *two, PAD, PAD, PAD]]
    assert batch.mask.tolist() == [([False] * 5 + [True] * 2) * 2 + [False] * 3]
    assert batch.documents.tolist() == [[0] * 7 + [1] * 7 + [-1] * 3]
    assert batch.positions.tolist() == [[*range(7), *range(7), 0, 0, 0]]


def test_prompt_is_cut_first(chat_data):
    """bos user a b c d e end assistant a end is 11 tokens, a row 9: the prompt loses its 2 first after bos."""
    data = chat_data(chat("abcde", "a"), context=8)
    assert in_order(data).ids.tolist() == [[BOS, B, C, D, E, END, ASSISTANT, A, END]]
    truncation = {
        "truncated_chats": 1,
        "truncated_prompt_tokens": 2,
        "truncated_response_tokens": 0,
        "responses_without_end": 0,
    }
    assert truncation.items() <= data.describe()["train"].items()


def test_system_message_is_kept(chat_data):
    """The opening is bos system a end; opening 4 + header 1 = 11 // 2, so in a row of 11 it stays and the user's turn
    is truncated."""
    wide = chat_data(chat("bcde", "a", system="a"), context=10)
    assert in_order(wide).ids.tolist() == [[BOS, SYSTEM, A, END, C, D, E, END, ASSISTANT, A, END]]


def test_system_message_goes_before_the_response(chat_data):
    """As above in a row of 9: opening and header, 5, are more than 9 // 2, so only bos stays of the opening."""
    narrow = chat_data(chat("bcde", "a", system="a"), context=8)
    assert in_order(narrow).ids.tolist() == [[BOS, B, C, D, E, END, ASSISTANT, A, END]]


def test_response_is_cut_last_and_reported(chat_data):
    """bos user a end assistant + 10 a's + end: a row of 9 keeps bos, the header and 7 of the response; 4 are lost."""
    data = chat_data(chat("a", "a" * 10), context=8)
    batch = in_order(data)
    assert batch.ids.tolist() == [[BOS, ASSISTANT, *[A] * 7]]
    assert batch.mask.tolist() == [[False, False, *[True] * 7]]
    truncation = {
        "truncated_chats": 1,
        "truncated_prompt_tokens": 3,
        "truncated_response_tokens": 4,
        "responses_without_end": 1,
    }
    assert truncation.items() <= data.describe()["train"].items()


def test_earlier_response_without_its_beginning_does_not_count(chat_data):
    """Turns a -> bcd, then e -> a: 1 + 3 + 5 + 3 + 3 = 15 tokens. A row of 9 loses 6 after bos (user a end assistant b
    c), so that d and end stay of the first response, uncounted."""
    data = chat_data([*chat("a", "bcd"), *chat("e", "a")], context=8)
    batch = in_order(data)
    assert batch.ids.tolist() == [[BOS, D, END, USER, E, END, ASSISTANT, A, END]]
    assert batch.mask.tolist() == [[False] * 7 + [True] * 2]


def test_what_follows_the_last_response_is_left_out(chat_data):
    """A chat that ends with a question: nobody is asked to predict it."""
    data = chat_data([*chat("a", "b"), {"role": "user", "content": "c"}], context=16)
    assert in_order(data).ids.tolist() == [[BOS, USER, A, END, ASSISTANT, B, END, PAD, PAD]]


def test_alpaca_prompt_completion_and_sharegpt_are_the_same_chat(tokenizer_dir, write, tmp_path):
    """Three spellings of one chat give one row."""
    spellings = {
        "alpaca.jsonl": [{"instruction": "a", "input": "b", "output": "c"}],
        "sharegpt.jsonl": [{"conversations": [{"from": "human", "value": "a\n\nb"}, {"from": "gpt", "value": "c"}]}],
        "completion.jsonl": [{"prompt": "a\n\nb", "completion": "c"}],
    }
    files = [write(name, records) for name, records in spellings.items()]
    data = ChatData(tokenizer_dir, files, context=16, cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    ids = in_order(data).ids
    assert ids.shape[0] == 3
    assert (ids == ids[0]).all()
    assert ids[0, :12].tolist() == [BOS, USER, A, NEWLINE, NEWLINE, B, END, ASSISTANT, C, END, PAD, PAD]
