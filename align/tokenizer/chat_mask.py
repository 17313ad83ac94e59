"""What the assistant writes in a rendered chat.

The text of a chat is traced (`traced`): each character is the template's own or comes from a string of a message. From
that follow, without searching:

1. **Turns.** A turn of the assistant begins where a prompt for sampling ends, and ends with the special token that
   closes it. All in between counts: content, reasoning, tool calls, and the template's text around them (``<think>``),
   as the model must write it. Where the template marks ``{% generation %}``, what it marks counts instead.
2. **Losses.** What a record says and the template does not render is named. Where that, or what the template does to a
   content, makes the mask wrong, the chat is refused.
3. **Forgeries.** Names of special tokens that come from a message rather than from the template.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from align.tokenizer.jinja_template import ChatTemplate, Message
from align.tokenizer.traced import ALTERED, GENERATED, Leaf, Piece, Traced, pieces_of

_Path = tuple[str | int, ...]

_LINKS = {"id", "type", "tool_call_id", "index"}
"""Keys that connect messages and calls and carry no text of their own"""
_REASONING_TAG = re.compile(r"</?[\w:]*think\w*>|\[/?THINK\]")
_REASONING_END = re.compile(r"(</[\w:]*think\w*>|\[/THINK\])\s*\Z")


class Turn(NamedTuple):
    """What the assistant writes of a message: ``text[start:end]``.

    Attributes:
        message: its index.
        start: where it begins.
        end: after the token that ends the turn.
        as_prompted: whether a prompt for sampling ends with the text before ``start``.
    """

    message: int
    start: int
    end: int
    as_prompted: bool


class _Placed(NamedTuple):
    """A piece of a message in the text; ``end`` is ``start + piece.length``."""

    start: int
    end: int
    leaf: Leaf
    piece: Piece


def generation_spans(text: Traced) -> list[tuple[int, int]]:
    """``(start, end)`` of what ``{% generation %}`` marks, in order; adjacent blocks are one."""
    spans: list[tuple[int, int]] = []
    begin = 0
    for piece in pieces_of(text):
        end = begin + piece.length
        if piece.flags & GENERATED and piece.length:
            if spans and spans[-1][1] == begin:
                spans[-1] = spans[-1][0], end
            else:
                spans.append((begin, end))
        begin = end
    return spans


class Turns:
    """Finds the turns of the assistant in a rendered chat."""

    def __init__(
        self,
        template: ChatTemplate,
        text: Traced,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        special: re.Pattern[str] | None,
        stops: frozenset[str],
    ) -> None:
        """Look at what is where.

        Args:
            template: that rendered the chat.
            text: of the chat.
            messages: as they were rendered.
            tools: likewise.
            add_generation_prompt: likewise.
            special: finds names of special tokens.
            stops: names of tokens that end a turn.
        """
        self._template, self._text, self._messages, self._tools = template, text.plain, messages, tools
        self._special, self._stops = special, stops
        self._render = partial(template.render, tools=tools, add_generation_prompt=add_generation_prompt)
        self._all = list(_placed(text))
        self._first = list(_first_renderings(self._all))

    def turns(self) -> list[Turn]:
        """The turns of the assistant, in order.

        Raises:
            ValueError: the template drops a message or does something else that makes the mask wrong.
        """
        found = [self._turn(i) for i, message in enumerate(self._messages) if message["role"] == "assistant"]
        return sorted(found, key=lambda turn: turn.start)

    @property
    def foreign(self) -> list[tuple[int, int]]:
        """``(start, end)`` of the text that comes from messages and tools, in order."""
        return [(placed.start, placed.end) for placed in self._all if placed.end > placed.start]

    def messages_in(self, start: int, end: int) -> set[int]:
        """Indices of the messages that have text in ``text[start:end]``."""
        return {placed.leaf.message for placed in self._all if start <= placed.start and placed.end <= end}

    def dropped(self) -> tuple[str, ...]:
        """What the template does not render: roles and fields, in order.

        Raises:
            ValueError: it renders something in a form that can't be followed, so the mask may be wrong.
        """
        return tuple(dict.fromkeys(self._dropped()))

    def _turn(self, number: int) -> Turn:
        own = [index for index, placed in enumerate(self._first) if placed.leaf.message == number]
        if not own:
            content = self._messages[number].get("content")
            if isinstance(content, str) and content and content in self._text:
                raise ValueError(
                    f"{_name(number)}: the chat template renders its content in a form that can't be followed, such as "
                    "text that a filter wraps; join strings with + or ~"
                )
            raise ValueError(f"{_name(number)}: the chat template does not render it")
        if own[-1] - own[0] >= len(own):
            raise ValueError(f"{_name(number)}: the chat template renders it in several places")
        first, last = self._first[own[0]], self._first[own[-1]]
        start, as_prompted = self._start(number, first)
        turn = Turn(number, start, self._end(number, last), as_prompted)
        for leaf, placed in self._by_leaf(self._first[index] for index in own):
            self._check_unchanged(turn, leaf, placed, self._before(first))
        return turn

    def _before(self, placed: _Placed) -> int:
        """End of the text of other messages before a piece."""
        return max((other.end for other in self._all if other.end <= placed.start and other is not placed), default=0)

    def _start(self, number: int, first: _Placed) -> tuple[int, bool]:
        """Where a prompt for this message ends, and whether that is the text of the chat so far."""
        begin, header = self._before(first), self._template.header
        # A content may begin with the end of the header, such as <think>.
        at = self._text.rfind(header, begin, first.start + len(header)) if header else -1
        if 0 <= at < first.start:
            return at + len(header), True
        between, prompted = self._template.after_user
        if between and self._slice(begin, first.start) == between:
            return begin + prompted, True
        closing = self._closing(number) if number else ""
        if closing and self._text.startswith(closing, begin):
            return begin + len(closing), True
        return first.start, False

    def _closing(self, number: int) -> str:
        """The template's text at the end of a prompt for a message."""
        try:
            prompt = self._template.render(self._messages[:number], tools=self._tools, add_generation_prompt=True)
        except ValueError:
            return ""
        return prompt.plain[max((placed.end for placed in _placed(prompt)), default=0) :]

    def _end(self, number: int, last: _Placed) -> int:
        """After the special token that ends a turn: one that is known to, else the first one."""
        limit = min((other.start for other in self._all if other.start >= last.end and other is not last), default=None)
        limit = len(self._text) if limit is None else limit
        ends = list(self._special.finditer(self._text, last.end, limit)) if self._special else []
        stops = self._stops | self._call_ends if self._messages[number].get("tool_calls") else self._stops
        known = [match for match in ends if match.group() in stops]
        if not ends:
            raise ValueError(
                f"{_name(number)}: the chat template does not end the assistant's turn with a special token"
            )
        return (known or ends)[0].end()

    @cached_property
    def _call_ends(self) -> frozenset[str]:
        """The token that ends a turn with calls, which may be another."""
        ends = self._special.findall(self._template.after_call) if self._special else []
        return frozenset(ends[-1:])

    def _by_leaf(self, placed: Iterable[_Placed]) -> list[tuple[Leaf, list[_Placed]]]:
        groups: dict[Leaf, list[_Placed]] = {}
        for one in placed:
            groups.setdefault(one.leaf, []).append(one)
        return list(groups.items())

    def _check_unchanged(self, turn: Turn, leaf: Leaf, placed: list[_Placed], before: int) -> None:
        """Refuse a string of the assistant's that the template does more to than trim, or take apart at its tags."""
        if leaf.parts or leaf.path[-1] == "<key>":
            return
        where = f"{_name(turn.message)}: the chat template"
        offsets = [(one.piece.offset, one.piece.offset + one.piece.length) for one in placed]
        if any(one.piece.flags & ALTERED for one in placed) or offsets != sorted(offsets):
            raise ValueError(f"{where} rewrites its {_field(leaf)}, so there is no mask")
        if leaf.text[offsets[-1][1] :].strip():
            raise ValueError(f"{where} drops the end of its {_field(leaf)}: {_shown(leaf.text[offsets[-1][1] :])}")
        apart = False
        for (left, right), (one, other) in zip(_adjacent(offsets), _adjacent(placed), strict=True):
            gap, between = leaf.text[left[1] : right[0]], self._slice(one.end, other.start)
            if _squeezed(gap) != _squeezed(between):
                raise ValueError(f"{where} writes {_shown(between)} in its {_field(leaf)} instead of {_shown(gap)}")
            apart = apart or bool(gap.strip())
        prefix, opened = _squeezed(leaf.text[: offsets[0][0]]), _squeezed(self._slice(turn.start, placed[0].start))
        if not apart and (not prefix or _REASONING_END.search(leaf.text[: offsets[0][0]])):
            return
        prompted = not opened and _squeezed(self._slice(before, turn.start)).endswith(prefix)
        if prefix != opened and not prompted:
            raise ValueError(
                f"{where} writes {_shown(self._slice(turn.start, placed[0].start))} before its {_field(leaf)} instead "
                f"of {_shown(leaf.text[: offsets[0][0]])}"
            )

    def _slice(self, start: int, end: int) -> str:
        return self._text[start:end]

    def check_forgeries(self) -> None:
        """Refuse a chat with the name of a special token in a form that can't be followed, such as ``tools | string``.

        Raises:
            ValueError: names the field.
        """
        for (number, field), missing in self._missing.items():
            named = [one for one in missing if self._special and self._special.search(one.text)]
            if named and (number < 0 or self._lost(number, field, named)):
                where = field if number < 0 else f"{_name(number)}: {field}"
                raise ValueError(
                    f"{where} has the name of a special token, {_shown(named[0].text)}, and the chat template renders "
                    "it in a form that can't be followed"
                )

    @cached_property
    def _missing(self) -> "dict[tuple[int, str], list[_Missing]]":
        """The parts of each field's strings, not blank, that are not in the text."""
        covered: dict[tuple[int, _Path], list[tuple[int, int]]] = {}
        for placed in self._all:
            for leaf in placed.leaf.parts or (placed.leaf,):
                first = 0 if placed.leaf.parts else placed.piece.offset
                last = len(leaf.text) if placed.leaf.parts else first + placed.piece.length
                covered.setdefault((leaf.message, leaf.path), []).append((first, last))
        fields = [(i, field, value) for i, message in enumerate(self._messages) for field, value in message.items()]
        missing = {}
        for number, field, value in [*fields, (-1, "tools", self._tools or ())]:
            strings = _strings(value, (field,)) if field != "role" else ()
            missing[number, field] = [
                _Missing(path, text, first, last)
                for path, text in strings
                for first, last in _gaps(covered.get((number, path), []), len(text))
                if text[first:last].strip()
            ]
        return missing

    def _dropped(self) -> Iterator[str]:
        for number, message in enumerate(self._messages):
            for field, value in message.items():
                if field != "role" and field not in _LINKS:
                    yield from self._dropped_of(number, field, value)
        shown = {leaf.path[1] for placed in self._all for leaf in (placed.leaf, *placed.leaf.parts) if leaf.message < 0}
        if self._tools and len(shown - {"<key>"}) < len(self._tools):  # of a schema templates render what they need
            yield "tools"

    def _dropped_of(self, number: int, field: str, value: Any) -> Iterator[str]:
        role = self._messages[number]["role"]
        if isinstance(value, bool | int | float):
            yield f"{role} {field}"
            return
        written = role == "assistant" and field in ("content", "tool_calls")
        missing = [one for one in self._missing[number, field] if one.path[-1] not in _LINKS]
        if written and field == "content":  # tags that the template writes itself: see _check_unchanged
            missing = [one for one in missing if not _REASONING_TAG.fullmatch(one.text[one.start : one.end].strip())]
        if not missing:
            return
        if self._lost(number, field, missing):
            if written:
                raise ValueError(
                    f"{_name(number)}: the chat template renders its {field} in a form that can't be followed"
                )
        elif written and (field == "tool_calls" or not _are_reasoning(missing)):
            raise ValueError(
                f"{_name(number)}: the chat template drops its {field}, or a part of it: "
                f"{_shown(missing[0].text[missing[0].start : missing[0].end])}"
            )
        else:
            yield f"{role} reasoning in content" if written else f"{role} {field}"

    def _lost(self, number: int, field: str, missing: "list[_Missing]") -> bool:
        """Whether the text depends on characters that were not found in it."""
        changed = dict(self._messages[number])
        for one in missing:
            changed[field] = _replaced(changed[field], one.path[1:], one.start, one.end)
        if changed == self._messages[number]:
            return False
        try:
            return self._render([*self._messages[:number], changed, *self._messages[number + 1 :]]) != self._text
        except ValueError:
            return True


class _Missing(NamedTuple):
    path: _Path
    text: str
    start: int
    end: int


def _placed(text: Traced) -> Iterator[_Placed]:
    begin = 0
    for piece in pieces_of(text):
        if piece.leaf is not None:
            yield _Placed(begin, begin + piece.length, piece.leaf, piece)
        begin += piece.length


def _first_renderings(placed: Iterable[_Placed]) -> Iterator[_Placed]:
    """Without echoes: a tool's name, say, that is rendered again beside the tool's result."""
    seen: dict[Leaf, list[tuple[int, int]]] = {}
    for one in placed:
        spans = seen.setdefault(one.leaf, [])
        first, last = one.piece.offset, one.piece.offset + one.piece.length
        json_again = one.leaf.parts and all(part in seen for part in one.leaf.parts)
        if json_again or (spans and (first == last or any(low < last and first < high for low, high in spans))):
            continue
        spans.append((first, last))
        for part in one.leaf.parts:
            seen.setdefault(part, []).append((0, len(part.text)))
        yield one


def _strings(value: Any, path: _Path) -> Iterator[tuple[_Path, str]]:
    """The strings of a JSON value with their paths, without keys."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))


def _gaps(spans: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What no span covers of ``size`` characters."""
    end = 0
    for first, last in [*sorted(spans), (size, size)]:
        if first > end:
            yield end, first
        end = max(end, last)


def _are_reasoning(missing: list[_Missing]) -> bool:
    """Whether what is missing is a content's beginning up to the tag that ends reasoning, which templates may drop."""
    return all(one.start == 0 and _REASONING_END.search(one.text[: one.end]) for one in missing)


def _replaced(value: Any, path: _Path, start: int, end: int) -> Any:
    """The value with other letters in one of its strings, tags excepted."""
    if not path:
        kept = {i for match in _REASONING_TAG.finditer(value) for i in range(*match.span())}
        other = {"x": "y", "X": "Y"}
        return "".join(
            other.get(char, "x") if start <= i < end and i not in kept and char.isalnum() else char
            for i, char in enumerate(value)
        )
    step, rest = path[0], path[1:]
    changed = dict(value) if isinstance(value, Mapping) else list(value)
    changed[step] = _replaced(changed[step], rest, start, end)  # type: ignore[index]
    return changed


def overlapping(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether one of the spans, sorted and disjoint, shares a character with ``text[start:end]``."""
    at = bisect_right(spans, (end - 1, float("inf")))
    return at > 0 and spans[at - 1][1] > start


def _adjacent(items: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items, items[1:], strict=False))


def _field(leaf: Leaf) -> str:
    return str(leaf.path[0])


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _name(number: int) -> str:
    return f"message {number + 1}"


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(str(text) if len(text) <= 60 else f"{text[:57]}...")
