"""Render chats to ids with a loss mask.

1. Check the messages.
2. Render the chat with the tokenizer's template, tracing what comes from where (traced.py). Our own format needs no
   template engine; jinja_template.py renders others.
3. Tokenize the whole text, as transformers does, so that ids equal those of ``apply_chat_template``. Names of special
   tokens are recognized in text of the template only, so a message can't forge a turn.
4. The mask is True on every token with a character that the assistant writes, and on the special token that ends its
   turn (chat_mask.py).
"""

import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from align.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""``role`` and ``content`` (a text or a list of text parts), and what else the template reads: ``tool_calls``,
``tool_call_id``, ``name``, ``reasoning_content`` or ``thinking``; ``weight`` 0: not trained on"""

Tool = Mapping[str, Any]
"""The JSON schema of a function"""

PAD, BOS, EOS, END = "<|pad|>", "<|bos|>", "<|eos|>", "<|end|>"
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
ROLES = ("system", "developer", "user", "assistant", "tool")

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
        mask: ``[T]``, True on what the assistant writes and the token that ends its turn.
        dropped: what the chat has and the template does not render, such as ``tool name``.
        unlike_prompts: responses before which a prompt for sampling ends in other ids than the chat has, because tokens
            merge across the border or the template writes something else.
    """

    ids: list[int]
    mask: list[bool]
    dropped: tuple[str, ...] = ()
    unlike_prompts: int = 0


def render_chat(
    tokenizer: "Tokenizer",
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool,
) -> RenderedChat:
    """See `Tokenizer.render_chat`."""
    checked = check_messages(messages)  # 1
    check_template(tokenizer)
    weights = [message.pop("weight", 1) for message in checked]
    if tokenizer.spec.chat_template == TEMPLATE:
        return _render_own(tokenizer, checked, weights, tools, add_generation_prompt)
    return _render_foreign(tokenizer, checked, weights, tools, add_generation_prompt)


def check_template(tokenizer: "Tokenizer") -> None:
    """Refuse a tokenizer that can't render chats.

    Raises:
        ValueError: it has no chat template, or one that does not compile.
    """
    if tokenizer.spec.chat_template is None:
        raise ValueError("the tokenizer has no chat template (tokenizer_config.json or chat_template.jinja)")
    if tokenizer.spec.chat_template != TEMPLATE:
        from align.tokenizer.jinja_template import template_of  # here, as our own template needs no Jinja

        template_of(tokenizer.spec)


def end_of_turn(tokenizer: "Tokenizer") -> int | None:
    """The special token that ends the assistant's turn in the tokenizer's chat template, or None."""
    if tokenizer.spec.chat_template == TEMPLATE:
        return tokenizer.special_tokens[END]
    from align.tokenizer.jinja_template import template_of

    special = _special_pattern(tuple(tokenizer.special_tokens))
    try:
        closing = template_of(tokenizer.spec).after_response
    except ValueError:
        return None
    found = special.search(closing) if special else None
    return tokenizer.special_tokens[found.group()] if found and not closing[: found.start()].strip() else None


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies of the messages, without keys whose value is None.

    Raises:
        ValueError: they are not a list of messages with a known role and a content; names the message by its number,
            from 1.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is {_shown(messages)}; it must be a list of messages")
    if not messages:
        raise ValueError("the chat has no messages")
    checked = []
    for i, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {i} is {_shown(message)}; it must have a role and a content")
        given = {key: value for key, value in message.items() if value is not None}
        try:
            check_message(given)
        except ValueError as error:
            raise ValueError(f"message {i}{error}") from None
        checked.append(given)
    return checked


def text_of(content: Any) -> str:
    """The text of a message's content: of a list, its text parts, one per line; empty without a content."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or ())


def _unread_of_parts(messages: Sequence[Message]) -> Iterator[str]:
    """What text parts have that ``text_of`` leaves out, such as ``user content cache_control``."""
    for message in messages:
        for part in () if isinstance(message.get("content"), str) else message.get("content") or ():
            for key, value in part.items():
                if key not in ("type", "text") and value is not None:
                    yield f"{message['role']} content {key}"


def check_message(message: Message) -> None:
    """Check one message, which has no None.

    Raises:
        ValueError: it has no known role, no content or something that can't be read; the text continues ``message 1``.
    """
    if "role" not in message:
        raise ValueError(f" has no 'role': {_shown(dict(message))}")
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if not isinstance(role, str):
        raise ValueError(f": role is {_shown(role)}; it must be a string")
    if role not in ROLES:
        raise ValueError(f": role {role!r} is unknown; allowed: {', '.join(ROLES)}")
    if content is None and not (role == "assistant" and calls):
        raise ValueError(f" has no 'content': {_shown(dict(message))}")
    if not isinstance(content, str | None):
        _check_parts(content)
    if "tool_calls" in message:
        if role != "assistant":
            raise ValueError(f", from the {role}, has tool_calls; only the assistant calls tools")
        _check_calls(calls)
    if message.get("weight", 1) not in (0, 1):
        raise ValueError(f": weight is {_shown(message['weight'])}; it must be 0 (not trained on) or 1")


def _check_parts(content: Any) -> None:
    if not isinstance(content, list | tuple) or not content:
        raise ValueError(f": content is {_shown(content)}; it must be a string or a list of text parts")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f': content has the part {_shown(part)}; only {{"type": "text", "text": ...}} is read')


def _check_calls(calls: Any) -> None:
    if not isinstance(calls, list | tuple):
        raise ValueError(f": tool_calls is {_shown(calls)}; it must be a list")
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f': tool_calls has {_shown(call)}; it must be {{"type": "function", "function": {{"name": ..., '
                '"arguments": ...}}'
            )


def _render_own(
    tokenizer: "Tokenizer",
    messages: list[dict[str, Any]],
    weights: list[int],
    tools: Sequence[Tool] | None,
    add_generation_prompt: bool,
) -> RenderedChat:
    special = tokenizer.special_tokens
    ids = [special[BOS]]
    mask = [False]
    dropped = [*(["tools"] if tools else []), *_unread_of_parts(messages)]
    for number, (message, weight) in enumerate(zip(messages, weights, strict=True), 1):
        role = "system" if message["role"] == "developer" else message["role"]
        if role not in ROLE_TOKENS or "tool_calls" in message:
            what = "tool_calls" if "tool_calls" in message else f"role {role!r}"
            raise ValueError(
                f"message {number}: align's own chat template has no {what}; write calls and results as text of the "
                "assistant and the user, or use a model whose template has tools"
            )
        content = tokenizer.encode(text_of(message["content"]))
        ids += [special[ROLE_TOKENS[role]], *content, special[END]]
        mask += [False] + [role == "assistant" and weight != 0] * (len(content) + 1)
        dropped += [
            f"{message['role']} {key}" for key in message if key not in ("role", "content", "tool_call_id", "id")
        ]
    if add_generation_prompt:
        ids.append(special[ROLE_TOKENS["assistant"]])
        mask.append(False)
    return RenderedChat(ids, mask, tuple(dict.fromkeys(dropped)))


def _render_foreign(
    tokenizer: "Tokenizer",
    messages: list[dict[str, Any]],
    weights: list[int],
    tools: Sequence[Tool] | None,
    add_generation_prompt: bool,
) -> RenderedChat:
    from align.tokenizer.chat_mask import Turn, Turns, generation_spans
    from align.tokenizer.jinja_template import template_of

    template = template_of(tokenizer.spec)
    unread: list[str] = []
    if any(not isinstance(message.get("content", ""), str) for message in messages) and not template.takes_parts:
        unread = [*_unread_of_parts(messages)]
        messages = [
            {**message, "content": text_of(message["content"])} if "content" in message else message
            for message in messages
        ]
    if template.escapes_arguments:
        messages = [_with_parsed_arguments(message, number) for number, message in enumerate(messages, 1)]
    text = template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)  # 2
    special = _special_pattern(tuple(tokenizer.special_tokens))
    parts = Turns(
        template, text, messages, tools, add_generation_prompt=add_generation_prompt, special=special,
        stops=_stop_names(tokenizer),
    )  # fmt: skip
    parts.check_forgeries()
    encoded = _Encoded(tokenizer, text.plain, parts.foreign, special)  # 3
    mask = np.zeros(len(encoded.ids), dtype=bool)
    turns: list[Turn] = []
    dropped: tuple[str, ...] = ()
    try:
        if template.marks_generation:
            spans = [span for span in generation_spans(text) if _is_trained(parts.messages_in(*span), weights)]
        else:
            turns = parts.turns()
            spans = [(turn.start, turn.end) for turn in turns if weights[turn.message]]
        dropped = parts.dropped()
    except ValueError:
        if not add_generation_prompt:  # a prompt is not trained on: its mask does not matter
            raise
        turns, spans = [], []
    for span in spans:  # 4
        mask[encoded.tokens(*span)] = True
    begins = [(turn.start, turn.as_prompted) for turn in turns] or [(start, True) for start, _ in spans]
    unlike = sum(not as_prompted or encoded.straddles(start) for start, as_prompted in begins)
    return RenderedChat(encoded.ids, mask.tolist(), tuple(dict.fromkeys([*unread, *dropped])), unlike)


def _with_parsed_arguments(message: dict[str, Any], number: int) -> dict[str, Any]:
    """The message with the arguments of its calls as objects, where they are JSON text as in OpenAI's API."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        if isinstance(words := function.get("arguments"), str):
            try:
                arguments = json.loads(words or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                raise ValueError(
                    f"message {number}: tool_calls has the arguments {_shown(words)}, which are no JSON object"
                )
            function = {**function, "arguments": arguments}
            call = {**call, "function": function} if "function" in call else function
        calls.append(call)
    return message | {"tool_calls": calls}


def _is_trained(messages: set[int], weights: list[int]) -> bool:
    """Whether what ``{% generation %}`` marks of these messages is trained on."""
    given = {bool(weights[i]) for i in messages if i >= 0}
    if len(given) > 1:
        shown = ", ".join(str(i + 1) for i in sorted(messages) if i >= 0)
        raise ValueError(f"messages {shown} are one generation block of the chat template; give them one weight")
    return given != {False}


def _stop_names(tokenizer: "Tokenizer") -> frozenset[str]:
    """Names of the special tokens that are known to end a turn."""
    ids = {tokenizer.end_of_turn_id, tokenizer.eos_id}
    return frozenset(name for name, number in tokenizer.special_tokens.items() if number in ids)


@lru_cache(maxsize=16)
def _special_pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """Finds names of special tokens, the longest first; None if there are none."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


@lru_cache(maxsize=16)
def _special_ids(ids: tuple[int, ...], vocab_size: int) -> np.ndarray:
    """``[vocab_size]`` bool, True for special tokens."""
    special = np.zeros(vocab_size, dtype=bool)
    special[list(ids)] = True
    return special


class _Encoded:
    """A rendered text as ids, and where its characters are among them.

    Attributes:
        ids: ``[T]``.
    """

    def __init__(
        self, tokenizer: "Tokenizer", text: str, foreign: list[tuple[int, int]], special: re.Pattern[str] | None
    ) -> None:
        """Tokenize the text as a whole; names of special tokens that touch a message are ordinary text.

        Args:
            tokenizer: of the chat.
            text: of the chat.
            foreign: ``(start, end)`` of what comes from messages, sorted and disjoint.
            special: finds names of special tokens.
        """
        from align.tokenizer.chat_mask import overlapping

        self._tokenizer, self._text = tokenizer, text
        self._layouts: dict[int, _Layout] = {}
        found = list(special.finditer(text)) if special else []
        own = [match for match in found if not overlapping(foreign, match.start(), match.end())]
        self._starts = [match.start() for match in own]
        self._ends = [match.end() for match in own]
        names = [tokenizer.special_tokens[match.group()] for match in own]
        if len(own) == len(found):
            self.ids = tokenizer.encode_template(text)
            ids = np.asarray(self.ids, np.int64)
            self._at = np.flatnonzero(_special_ids(tuple(tokenizer.special_tokens.values()), tokenizer.vocab_size)[ids])
            if ids[self._at].tolist() == names:
                return
        self.ids, at = [], []
        for (start, end), number in zip(self._stretches(), [*names, None], strict=True):
            self.ids += tokenizer.encode(text[start:end])
            if number is not None:
                at.append(len(self.ids))
                self.ids.append(number)
        self._at = np.array(at, np.int64)

    def tokens(self, start: int, end: int) -> slice:
        """The tokens with a character of ``text[start:end]``."""
        return slice(self._first(start), self._last(end))

    def straddles(self, position: int) -> bool:
        """Whether a token has characters on both sides of a position."""
        return self._first(position) < self._last(position)

    def _first(self, position: int) -> int:
        """The token of the character at a position."""
        stretch = bisect_right(self._ends, position)
        if stretch < len(self._starts) and self._starts[stretch] <= position:
            return int(self._at[stretch])
        if stretch and self._ends[stretch - 1] == position:
            return int(self._at[stretch - 1]) + 1
        layout = self._layout(stretch)
        return layout.first + int(np.searchsorted(layout.ends, layout.units(position), side="right"))

    def _last(self, position: int) -> int:
        """One more than the token of the character before a position."""
        stretch = bisect_left(self._starts, position)
        if stretch and self._ends[stretch - 1] >= position:
            return int(self._at[stretch - 1]) + 1
        if stretch < len(self._starts) and self._starts[stretch] == position:
            return int(self._at[stretch])
        layout = self._layout(stretch)
        begins = np.concatenate([[0], layout.ends[:-1]])[: len(layout.ends)]
        return layout.first + int(np.searchsorted(begins, layout.units(position), side="left"))

    def _stretches(self) -> list[tuple[int, int]]:
        """``(start, end)`` of the text between special tokens."""
        return list(zip([0, *self._ends], [*self._starts, len(self._text)], strict=True))

    def _layout(self, stretch: int) -> "_Layout":
        if stretch not in self._layouts:
            first = int(self._at[stretch - 1]) + 1 if stretch else 0
            last = int(self._at[stretch]) if stretch < len(self._at) else len(self.ids)
            start, end = self._stretches()[stretch]
            self._layouts[stretch] = _layout(self._tokenizer, self.ids[first:last], first, self._text[start:end], start)
        return self._layouts[stretch]


class _Layout(NamedTuple):
    """The tokens of a stretch of text.

    Attributes:
        first: index of its first token.
        ends: ``[n]`` where each token ends, in bytes of the text as it was tokenized.
        units: converts a position of the whole text to such bytes.
    """

    first: int
    ends: np.ndarray
    units: Callable[[int], int]


def _layout(tokenizer: "Tokenizer", ids: list[int], first: int, text: str, start: int) -> _Layout:
    """Lay out the tokens of ``text``, which begins at ``start``."""
    spelled = tokenizer.decode_bytes(ids, skip_special=False)
    for body in dict.fromkeys((text, text.rstrip())):  # a special token may swallow the whitespace beside it
        for form in (_same, _nfc, str.lstrip):
            if form(body).encode() == spelled:
                ends = np.cumsum(tokenizer.token_bytes[ids], dtype=np.int64)
                # SentencePiece begins a text with a space, which decoding removes.
                ends = np.maximum(0, ends - (ends[-1:] - len(spelled)))
                return _Layout(first, ends, partial(_bytes_before, form, body, start))
    ends = np.array([len(tokenizer.decode(ids[:n], skip_special=False)) for n in range(1, len(ids) + 1)], np.int64)
    shift = text.find(tokenizer.decode(ids, skip_special=False))
    if shift < 0:
        raise ValueError(f"the ids of {_shown(text)} decode to other text, so the mask can't be located")
    return _Layout(first, ends, lambda position: max(0, position - start - shift))


def _bytes_before(form: Callable[[str], str], text: str, start: int, position: int) -> int:
    """Bytes of the form of what is before a position in ``text``, which begins at ``start``."""
    return len(form(text[: position - start]).encode())


def _same(text: str) -> str:
    return text


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
