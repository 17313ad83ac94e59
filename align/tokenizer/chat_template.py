"""Chats to ids with a loss mask.

The mask is made from what was rendered, never from searching the ids:

1. Check the messages.
2. Write the chat as a row of segments: text of the template, and contents of messages. For our own format the row is
   known; for a foreign Jinja template see jinja.py.
3. Encode each segment apart and join the ids. Names of special tokens count in text of the template only, so no message
   can forge a turn.
4. The mask is True on an assistant's content and on the token that ends its turn.

Foreign chat templates: Jinja source to segments of known origin.

A template is a program, and what it does to a content (trim it, drop it) is known only from what it writes. So:

1. Render the messages as they are: this is the text that counts.
2. Render them once more with each content between two marks, characters that no text holds.
3. Take the marks out of the second text. If the rest is the first text, the marks say where each content lies.
4. A template that trims contents trims nothing between marks; then the same is tried with contents that are trimmed
   beforehand.

Templates see no clock (``strftime_now`` is undefined, and those who use it have a fixed date for that case): the same
chat gives the same ids every day.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from align.tokenizer.spec import TokenizerSpec

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
    pass

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


# Private-use characters of the last plane around the message's number.
_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"

_MARK = re.compile(f"([{_OPEN}{_CLOSE}])([0-9]+);")


class _Generation(Extension):
    """``{% generation %} .. {% endgeneration %}``, with which templates mark answers, writes what it holds."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_segments(
    spec: TokenizerSpec, messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> list[Segment]:
    """The chat as the template writes it, cut at the borders of contents.

    Raises:
        ValueError: the template is broken, refuses the messages, or changes an assistant's content.
    """
    if any(mark in message["content"] for message in messages for mark in (_OPEN, _CLOSE)):
        raise ValueError("a message holds U+10FFF0 or U+10FFF1, which mark contents while a chat is rendered")

    def render(contents: list[str]) -> str:
        shown = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        return _render(spec, shown, add_generation_prompt)

    contents = [message["content"] for message in messages]
    text = render(contents)  # 1
    for tried in (contents, [content.strip() for content in contents]):  # 4
        marked = render([f"{_OPEN}{i};{content}{_CLOSE}{i};" for i, content in enumerate(tried)])  # 2
        if _MARK.sub("", marked) == text:  # 3
            segments = _cut(marked)
            found = {segment.message for segment in segments}
            for i, message in enumerate(messages):
                if i not in found and (
                    message["role"] == "assistant" or f"{_OPEN}{i};" in marked or f"{_CLOSE}{i};" in marked
                ):
                    raise ValueError(f"message {i}: the chat template leaves (part of) its content out")
            return segments
    raise ValueError("the chat template changes the contents of messages, so no loss mask can be made")


def _cut(marked: str) -> list[Segment]:
    """Segments of a text with marks; only a content between both its marks counts as one."""
    segments: list[Segment] = []
    start, opened = 0, None
    for match in _MARK.finditer(marked):
        number = int(match[2])
        inside = number if match[1] == _CLOSE and opened == number else None
        segments.append(Segment(marked[start : match.start()], inside))
        start, opened = match.end(), number if match[1] == _OPEN else None
    segments.append(Segment(marked[start:], None))
    return [segment for segment in segments if segment.text or segment.message is not None]


def _render(spec: TokenizerSpec, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    assert spec.chat_template is not None
    names = {key: _content(value) for key, value in spec.config.items() if key.endswith("_token")}
    try:
        return _compiled(spec.chat_template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None, **names
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ValueError(f"the chat template fails: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = _to_json
    return environment.from_string(source)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _content(name: Any) -> Any:
    return name.get("content") if isinstance(name, dict) else name
