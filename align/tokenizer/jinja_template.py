"""Chat templates of other models: render Jinja and locate the content of each message.

A template is a program: only its output shows whether it trims or drops a content. So:

1. Render the messages unchanged. This text decides.
2. Render them again with each content between two marks, characters that no text contains.
3. Remove the marks from the second text. If the result is the first text, the marks locate each content.
4. A template that trims contents trims nothing between marks. In that case repeat 2 and 3 with trimmed contents.

Templates have no clock, so that a chat has the same ids every day: ``strftime_now`` is undefined, for which templates
that use it have a fixed date.
"""

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from align.tokenizer.files import TokenizerSpec

# Private-use characters of the last plane, each followed by the index of the message.
_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"
_MARK = re.compile(f"([{_OPEN}{_CLOSE}])([0-9]+);")


class Segment(NamedTuple):
    """Consecutive text of a rendered chat.

    Attributes:
        text: the text.
        message: index of the message whose content it is; None: text of the template.
    """

    text: str
    message: int | None


class _Generation(Extension):
    """``{% generation %} .. {% endgeneration %}``, with which templates mark responses, renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_segments(
    spec: TokenizerSpec, messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> list[Segment]:
    """Render a chat as segments: contents of messages, and the template's text between them.

    Raises:
        ValueError: the template is broken, refuses the messages, or changes the assistant's content.
    """
    if any(mark in message["content"] for message in messages for mark in (_OPEN, _CLOSE)):
        raise ValueError("a message contains U+10FFF0 or U+10FFF1, which are reserved for rendering; remove them")

    def render(contents: list[str]) -> str:
        shown = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        return _render(spec, shown, add_generation_prompt)

    contents = [message["content"] for message in messages]
    text = render(contents)  # 1
    for tried in (contents, [content.strip() for content in contents]):  # 4
        marked = render([f"{_OPEN}{i};{content}{_CLOSE}{i};" for i, content in enumerate(tried)])  # 2
        if _MARK.sub("", marked) == text:  # 3
            segments = _split(marked)
            found = {segment.message for segment in segments}
            for i, message in enumerate(messages):
                if i not in found and (
                    message["role"] == "assistant" or f"{_OPEN}{i};" in marked or f"{_CLOSE}{i};" in marked
                ):
                    raise ValueError(f"message {i}: the chat template drops its content, or a part of it")
            return segments
    raise ValueError("the chat template changes the contents of messages, so there is no loss mask")


def _split(marked: str) -> list[Segment]:
    """Split a text at its marks; only text between both marks of a message is its content."""
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
