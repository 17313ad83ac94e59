"""Chats of any shape, truncated to any length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.tokenize import encode_chat
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
    ids, counted, report = encode_chat(messages, tokenizer, limit)
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
