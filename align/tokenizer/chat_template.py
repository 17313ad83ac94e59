"""Render chats to ids with a loss mask.

The mask follows from the rendering; ids are never searched:

1. Check the messages.
2. Split the rendered chat into segments: text of the template, and contents of messages. Our own format needs no
   template engine; jinja_template.py renders others.
3. Encode each segment separately and join the ids. Special tokens are recognized in text of the template only, so a
   message can't forge a turn.
4. The mask is True on the assistant's content and on the special token that ends its turn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from align.tokenizer.tokenizer import Tokenizer

PAD, BOS, EOS, END = "<|pad|>", "<|bos|>", "<|eos|>", "<|end|>"
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>"
    "{{ message['content'] }}<|end|>"
    "{% elif message['role'] in ['system', 'user'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('role ' + message['role'] + ' is unknown') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Our chat format as other programs read it from tokenizer_config.json; `render_chat` needs no Jinja for it"""


class RenderedChat(NamedTuple):
    """A chat as ids.

    Attributes:
        ids: ``[T]`` ids of the whole chat.
        mask: ``[T]``, True on the assistant's content and the token that ends its turn.
    """

    ids: list[int]
    mask: list[bool]


def render_chat(
    tokenizer: "Tokenizer", messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
) -> RenderedChat:
    """See `Tokenizer.render_chat`."""
    checked = check_messages(messages)  # 1
    if tokenizer.spec.chat_template is None:
        raise ValueError("the tokenizer has no chat template (tokenizer_config.json or chat_template.jinja)")
    if tokenizer.spec.chat_template == TEMPLATE:
        return _render_own(tokenizer, checked, add_generation_prompt)
    from align.tokenizer.jinja_template import render_segments  # here, as our own template needs no Jinja

    segments = render_segments(tokenizer.spec, checked, add_generation_prompt=add_generation_prompt)  # 2
    ids: list[int] = []
    mask: list[bool] = []
    response = -1  # index of the message whose content was just encoded, if it is the assistant's
    for segment in segments:
        if segment.message is not None:
            part = tokenizer.encode(segment.text)
            counts = len(part) if checked[segment.message]["role"] == "assistant" else 0
        else:
            part = tokenizer.encode_template(segment.text)  # 3
            counts = _turn_end(tokenizer, part, response) if response >= 0 else 0
        ids += part
        mask += [True] * counts + [False] * (len(part) - counts)  # 4
        is_response = segment.message is not None and checked[segment.message]["role"] == "assistant"
        response = segment.message if is_response and segment.message is not None else -1
    return RenderedChat(ids, mask)


def end_of_turn(tokenizer: "Tokenizer") -> int | None:
    """The special token that ends the assistant's turn in the tokenizer's chat template, or None."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    try:
        rendered = render_chat(tokenizer, turns, add_generation_prompt=False)
    except ValueError:
        return None
    return rendered.ids[max(i for i, counts in enumerate(rendered.mask) if counts)]


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The messages, reduced to role and content.

    Raises:
        ValueError: they are not a list of messages with a known role and a text; names the message by index, from 0.
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
            raise ValueError(f"message {i}: role {message['role']!r} is unknown; allowed: {', '.join(ROLE_TOKENS)}")
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
    """Number of ids after the assistant's content that end its turn: up to the first special token."""
    special = set(tokenizer.special_tokens.values())
    for i, number in enumerate(ids):
        if number in special:
            return i + 1
        if tokenizer.decode((number,)).strip():
            break
    raise ValueError(f"message {message}: the chat template does not end the assistant's turn with a special token")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
