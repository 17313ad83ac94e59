"""Chat templates of other models: render Jinja as transformers does, and trace what comes from where.

The environment is that of transformers' ``apply_chat_template``, with one difference: templates have no clock, so that
a chat has the same ids every day. ``strftime_now`` formats 26 July 2024, the date that Llama's templates fall back to.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.nodes import CallBlock, Concat, Node
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from align.tokenizer.spec import TokenizerSpec
from align.tokenizer.traced import (
    GENERATED,
    Safe,
    Traced,
    as_json,
    braces,
    generated,
    join,
    percent,
    pieces_of,
    safe,
    trace,
)

Message = Mapping[str, Any]

TODAY = datetime.datetime(2024, 7, 26)
"""What ``strftime_now`` formats"""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields of an assistant's reasoning; templates read the first or the second, transformers fills both from any"""

_SHOWN = 3
"""Tool calls and results that an error names"""


class ChatTemplate:
    """A compiled chat template with the special tokens that it names.

    Attributes:
        source: Jinja.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        """Compile the template.

        Args:
            source: Jinja.
            names: ``bos_token`` and the like; a token that is missing renders as nothing, as in transformers.

        Raises:
            ValueError: the source is not a template; names the line.
        """
        self.source, self._names = source, names
        try:
            self._compiled = _environment().from_string(source)
        except Exception as error:  # a template is a program of somebody else's
            raise _failure(error) from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> Traced:
        """The text of a chat.

        Args:
            messages: checked, without None.
            tools: JSON schemas.
            add_generation_prompt: end with the beginning of the assistant's turn.

        Raises:
            ValueError: the template fails or refuses the messages; names the reason and the line.
        """
        shown = [_named_reasoning(trace(dict(message), index)) for index, message in enumerate(messages)]
        for message, given in zip(shown, messages, strict=True):
            message["role"] = given["role"]
        try:
            text = self._compiled.render(
                messages=shown,
                tools=None if tools is None else trace(list(tools), -1, ("tools",)),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._names,
            )
        except Exception as error:
            raise _failure(error, self._tools_in(messages, tools)) from None
        return text if isinstance(text, Traced) else Traced(text, pieces_of(text))

    def _tools_in(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
        """What of tools a chat has, as the end of a line that says why the template fails; empty without any."""
        found = ["tools"] if tools else []
        for number, message in enumerate(messages, 1):
            if "tool_calls" in message:
                found.append(f"tool_calls{'' if 'content' in message else ' and no content'} in message {number}")
            elif message["role"] == "tool":
                found.append(f"role 'tool' in message {number}")
        if not found:
            return ""
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        advice = (
            "check that they are as the template expects"
            if "tool" in self.source
            else "the template knows no tools, so use a model whose template does, or write calls and results as text "
            "of the assistant and the user"
        )
        return f"; the record has {', '.join(found[:_SHOWN])}{more}: {advice}"

    @cached_property
    def marks_generation(self) -> bool:
        """Whether ``{% generation %}`` marks what the assistant writes."""
        try:
            return any(piece.flags & GENERATED for piece in pieces_of(self.render(_PROBE)))
        except ValueError:
            return False

    @cached_property
    def header(self) -> str:
        """What ``add_generation_prompt`` adds after a user's turn; empty for templates that add nothing."""
        opened, closed = self._text([_USER], add_generation_prompt=True), self._text([_USER])
        return opened[_common_prefix(opened, closed) :] if closed else ""

    @cached_property
    def after_user(self) -> tuple[str, int]:
        """The template's text between a user's content and a response, and how much of it a prompt ends with."""
        opened, whole = self._text([_USER], add_generation_prompt=True), self._text(_PROBE)
        user, response = whole.find(_USER["content"]), whole.find(_ASSISTANT["content"])
        if user < 0 or not opened or not whole.startswith(opened) or response < len(opened):
            return "", 0
        begin = user + len(_USER["content"])
        return whole[begin:response], len(opened) - begin

    @cached_property
    def after_response(self) -> str:
        """The template's text after a response, up to the next user's content."""
        whole = self._text([*_PROBE, _USER]) or self._text(_PROBE)
        _, _, after = whole.partition(_ASSISTANT["content"])
        return after.partition(_USER["content"])[0]

    @cached_property
    def after_call(self) -> str:
        """The template's text after a response that calls a tool and ends the chat."""
        return self._with_call({"Zk5": "Zk6"}).rpartition("Zk6")[2]

    @cached_property
    def escapes_arguments(self) -> bool:
        """Whether the template writes arguments as JSON even if they are JSON text, whose quotes it escapes."""
        return '\\"Zk5\\"' in self._with_call('{"Zk5": "Zk6"}')

    def _with_call(self, arguments: Any) -> str:
        """The text of a chat that ends with a call."""
        call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "Zk4", "arguments": arguments}}
        return self._text([_USER, {"role": "assistant", "tool_calls": [call]}])

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template renders content that is a list of text parts."""
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in _PROBE]
        return bool(rendered := self._text(parts)) and rendered == self._text(_PROBE)

    def _text(self, messages: Sequence[Message], **settings: Any) -> str:
        """The text of messages; empty if the template fails."""
        try:
            return self.render(messages, **settings).plain
        except ValueError:
            return ""


_USER = {"role": "user", "content": "Xq7"}
_ASSISTANT = {"role": "assistant", "content": "Zk4"}
_PROBE = (_USER, _ASSISTANT)


def template_of(spec: TokenizerSpec) -> ChatTemplate:
    """The compiled template of a tokenizer, which has one.

    Raises:
        ValueError: it does not compile.
    """
    assert spec.chat_template is not None
    names = {}
    for key, value in spec.config.items():
        name = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(name, str):
            names[key] = name
    return _template(spec.chat_template, tuple(names.items()))


@lru_cache(maxsize=16)
def _template(source: str, names: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(names))


def _named_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read, as transformers passes it."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _common_prefix(left: str, right: str) -> int:
    size = min(len(left), len(right))
    return next((i for i in range(size) if left[i] != right[i]), size)


class _Generation(Extension):
    """``{% generation %} .. {% endgeneration %}``, with which templates mark responses."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return generated(caller())


class _TracingGenerator(CodeGenerator):
    """Compiles ``a ~ b`` to a concatenation that keeps the origin of both."""

    def visit_Concat(self, node: Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _TracingGenerator
    concat = staticmethod(join)
    intercepted_binops = frozenset("%")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``left % right``, where the origin of formatted strings is kept."""
        return percent(left, right) if isinstance(left, str) else super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, where the origin of formatted strings is kept."""
        if super().wrap_str_format(value) is None or hasattr(value.__self__, "__html__"):
            return super().wrap_str_format(value)
        formatter = SandboxedFormatter(self)

        def by_position(*values: Any, **named: Any) -> str:
            return braces(value.__self__, values, named, formatter)

        def by_name(named: Mapping[str, Any]) -> str:
            return braces(value.__self__, (), named, formatter)

        return by_name if value.__name__ == "format_map" else by_position


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = TODAY.strftime
    environment.filters["tojson"] = _to_json
    environment.filters["join"] = _join
    environment.filters["format"] = _format
    environment.filters["safe"] = _safe
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return as_json(value, text)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise jinja2.TemplateError("the filter format takes values by position or by name, not both")
    return percent(str(value), kwargs or args)


def _safe(value: Any) -> Safe:
    return safe(str(value))


@jinja2.pass_environment
def _join(environment: _Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return join(map(str, value), str(d))


def _failure(error: Exception, cause: str = "") -> ValueError:
    """What is wrong with the template, or what it refuses, in one line that ends in a probable cause."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    reason = " ".join(str(error).split())
    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    where = "" if line is None else f" in line {line}"
    return ValueError(f"the chat template fails{where}: {kind}{reason}{cause}")
