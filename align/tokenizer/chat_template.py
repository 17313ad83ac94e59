"""Chats to ids with a loss mask.

The mask is made from what was rendered, never from searching the ids:

1. Check the messages.
2. Write the chat as a row of segments: text of the template, and contents of messages. For our own format the row is
   known; for a foreign Jinja template see jinja_template.py.
3. Encode each segment apart and join the ids. Names of special tokens count in text of the template only, so no message
   can forge a turn.
4. The mask is True on an assistant's content and on the token that ends its turn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from align.tokenizer.tokenizer import Tokenizer

PAD, BOS, EOS, END = "<|pad|>", "<|bos|>", "<|eos|>", "<|end|>"
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('role ' + message['role'] + ' is unknown') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Our chat format for readers of tokenizer_config.json; `render_chat` writes it without Jinja"""


class RenderedChat(NamedTuple):
    """A chat as ids."""

    ids: list[int]
    """The whole chat"""
    mask: list[bool]
    """As long as ids: True exactly on an assistant's content and the token that ends its turn"""


class Segment(NamedTuple):
    """A stretch of a rendered chat."""

    text: str
    """What it says"""
    message: int | None
    """The number of the message whose content it is; None: text of the template"""


def render_chat(
    tokenizer: "Tokenizer", messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
) -> RenderedChat:
    """See `Tokenizer.render_chat`."""
    checked = check_messages(messages)  # 1
    if tokenizer.spec.chat_template is None:
        raise ValueError("the tokenizer has no chat template (tokenizer_config.json or chat_template.jinja)")
    if tokenizer.spec.chat_template == TEMPLATE:
        return _render_own(tokenizer, checked, add_generation_prompt)
    from align.tokenizer.jinja_template import render_segments

    segments = render_segments(tokenizer.spec, checked, add_generation_prompt=add_generation_prompt)  # 2
    ids: list[int] = []
    mask: list[bool] = []
    answered = -1
    for segment in segments:
        if segment.message is not None:
            part = tokenizer.encode(segment.text)
            counts = len(part) if checked[segment.message]["role"] == "assistant" else 0
        else:
            part = tokenizer.encode_template(segment.text)  # 3
            counts = _turn_end(tokenizer, part, answered) if answered >= 0 else 0
        ids += part
        mask += [True] * counts + [False] * (len(part) - counts)  # 4
        is_answer = segment.message is not None and checked[segment.message]["role"] == "assistant"
        answered = segment.message if is_answer and segment.message is not None else -1
    return RenderedChat(ids, mask)


def end_of_turn(tokenizer: "Tokenizer") -> int | None:
    """The special token that ends an assistant's turn in the tokenizer's chat template; None: there is none."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    try:
        rendered = render_chat(tokenizer, turns, add_generation_prompt=False)
    except ValueError:
        return None
    return rendered.ids[max(i for i, counts in enumerate(rendered.mask) if counts)]


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The messages with what is used of them.

    Raises:
        ValueError: not a list of messages with a known role and a text; names the message's index (from 0).
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is {_shown(messages)}; it must be a list of messages")
    if not messages:
        raise ValueError("the chat has no messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {i} is {_shown(message)}; it must have a role and a content")
        for name in ("role", "content"):
            if name not in message:
                raise ValueError(f"message {i} has no {name!r}: {_shown(dict(message))}")
            if not isinstance(message[name], str):
                raise ValueError(f"message {i}: {name} is {_shown(message[name])}; it must be a string")
        if message["role"] not in ROLE_TOKENS:
            raise ValueError(f"message {i}: role {message['role']!r} is unknown; use {', '.join(ROLE_TOKENS)}")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _render_own(tokenizer: "Tokenizer", messages: list[dict[str, str]], add_generation_prompt: bool) -> RenderedChat:
    special = tokenizer.special_tokens
    ids = [special[BOS]]
    mask = [False]
    for message in messages:
        content = tokenizer.encode(message["content"])
        ids += [special[ROLE_TOKENS[message["role"]]], *content, special[END]]
        mask += [False] + [message["role"] == "assistant"] * (len(content) + 1)
    if add_generation_prompt:
        ids.append(special[ROLE_TOKENS["assistant"]])
        mask.append(False)
    return RenderedChat(ids, mask)


def _turn_end(tokenizer: "Tokenizer", ids: list[int], message: int) -> int:
    """How many of the ids behind an assistant's content end its turn: up to the first special token."""
    special = set(tokenizer.special_tokens.values())
    for i, number in enumerate(ids):
        if number in special:
            return i + 1
        if tokenizer.decode((number,)).strip():
            break
    raise ValueError(f"message {message}: the chat template ends the assistant's turn with no special token")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
