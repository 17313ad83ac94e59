"""The ids between two turns are those that the chat template writes."""

from dataclasses import replace

import pytest
from naming import naming

from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.turns import turn_ids

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LATER = "{% if loop.last or m.role == 'user' %}{{ m.content }}{% else %}earlier{% endif %}"
TOLD = {"role": "user", "content": "the assistant said 84"}


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return train_tokenizer(["the user said: what is 12 * 7? the assistant said 84\n"] * 20, vocab_size=300)


def foreign(own: Tokenizer, template: str) -> Tokenizer:
    spec = own.with_added_tokens(["<|im_start|>", "<|im_end|>"]).spec
    return Tokenizer(replace(spec, chat_template=template, config={**spec.config, "eos_token": "<|im_end|>"}))


@pytest.mark.parametrize("template", [None, CHATML], ids=["own", "chatml"])
def test_a_sampled_turn_and_a_message_make_the_chat_that_the_template_renders(own: Tokenizer, template: str | None):
    """Prompt, sampled ids with their stop token, and ``turn_ids``: the ids of the whole chat."""
    tokenizer = own if template is None else foreign(own, template)
    chat = [{"role": "user", "content": "what is 12 * 7?"}, {"role": "assistant", "content": "84"}]
    prompt = list(tokenizer.render_chat(chat[:1], add_generation_prompt=True).ids)
    whole = list(tokenizer.render_chat([*chat, TOLD], add_generation_prompt=True).ids)
    stop = next(token for token in whole[len(prompt) :] if token in tokenizer.stop_ids)
    assert [*prompt, *tokenizer.encode("84"), stop, *turn_ids(tokenizer, TOLD)] == whole


def test_a_template_that_changes_earlier_turns_is_refused(own: Tokenizer):
    with pytest.raises(ValueError, match=naming("template")):
        turn_ids(foreign(own, CHATML.replace("{{ m.content }}", LATER)), TOLD)
