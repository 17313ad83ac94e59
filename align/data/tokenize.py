"""Records to token ids: reading, rendering, and truncation to the length of a row."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple, TypeVar

import numpy as np

from align.data.columns import columns_of
from align.data.formats.fields import Chat
from align.data.formats.pairs import Pair
from align.data.formats.record_format import FileFormat, RecordFormat
from align.data.readers import BadRecords, ReadFields, Source
from align.tokenizer import Tokenizer
from align.tokenizer.chat_template import TEMPLATE, Tool, text_of
from align.tokenizer.prompts import Columns

Content = TypeVar("Content")

Encoded = TypeVar("Encoded")


def encode_records(
    sources: Sequence[Source],
    bad: BadRecords,
    *,
    format: RecordFormat[Content] | None,
    formats: Sequence[RecordFormat[Content]],
    encode: Callable[[Content], Encoded],
    advance: Callable[[int], None] | None = None,
) -> Iterator[Encoded]:
    """Read and encode the records of files.

    Args:
        sources: files, in order.
        bad: receives the records that can't be used, and counts the columns that nothing read.
        format: of all records; None detects each file's format from its first usable record.
        formats: candidates for detection.
        encode: turns the content of a record into what a corpus stores; raises ValueError for a bad record.
        advance: is called with the bytes of files that were read since the last call.

    Raises:
        BadRecordError: see ``BadRecords``; a record whose format can't be detected is bad.
    """
    records = encode_with_columns(
        sources, bad, format=format, formats=formats, encode=encode, columns=(), advance=advance
    )
    for encoded, _ in records:
        yield encoded


def encode_with_columns(
    sources: Sequence[Source],
    bad: BadRecords,
    *,
    format: RecordFormat[Content] | None,
    formats: Sequence[RecordFormat[Content]],
    encode: Callable[[Content], Encoded],
    columns: Sequence[str],
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[Encoded, Columns]]:
    """``encode_records`` with some columns of each record, as they are in the file.

    Args:
        sources: files, in order.
        bad: receives the records that can't be used, those without one of ``columns`` among them.
        format: of all records; None detects each file's format from its first usable record.
        formats: candidates for detection.
        encode: as of ``encode_records``.
        columns: names of the columns.
        advance: as of ``encode_records``.

    Raises:
        BadRecordError: see ``BadRecords``; a record whose format can't be detected is bad.
    """
    for source in sources:
        file_format = FileFormat(format, formats)
        for record in source.records(bad, advance=advance):
            bad.place = f"{record.source}: {record.location}"
            fields = ReadFields(record.fields)
            try:
                encoded = encode(file_format.of(record.fields).read(fields))
                kept = columns_of(fields, columns)
            except ValueError as error:
                bad.add(record.source, record.location, str(error))
            except RecursionError:
                bad.add(record.source, record.location, "nested too deeply")
            else:
                bad.use(fields)
                yield encoded, kept


@dataclass
class TruncationReport:
    """Counts of what was truncated, in a record or a whole file."""

    truncated: int = 0
    """Chats or pairs with fewer tokens than they had"""
    truncated_prompt_tokens: int = 0
    """Tokens dropped from the starts of prompts"""
    truncated_response_tokens: int = 0
    """Tokens dropped from the ends of responses"""
    responses_without_end: int = 0
    """Responses without their end-of-turn token, which teach the model not to stop"""

    def add(self, other: "TruncationReport") -> None:
        """Add the counts of another report."""
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))

    def lines(self, kind: str, *, total: int, limit: int) -> list[str]:
        """A line if anything was truncated, else none; ``kind`` is ``chats``, ``pairs`` or ``responses``."""
        if not self.truncated:
            return []
        return [
            f"truncated {self.truncated} of {total} {kind} to {limit} tokens: dropped {self.truncated_prompt_tokens} "
            f"prompt and {self.truncated_response_tokens} response tokens; {self.responses_without_end} response(s) "
            "lost their end of turn (a larger context would keep it)"
        ]

    def as_dict(self, kind: str) -> dict[str, int]:
        """The counts by name, the first one such as ``truncated_chats``."""
        counts = asdict(self)
        return {f"truncated_{kind}": counts.pop("truncated")} | counts


@dataclass
class RenderingReport:
    """What a chat template makes of the chats of a split that a user should know."""

    dropped: Counter[str] = field(default_factory=Counter)
    """What the template does not render, such as ``user name`` -> chats that have it"""
    unlike_prompts: int = 0
    """Chats in which a response follows other tokens than a prompt for sampling ends with"""
    example: str = ""
    """The first of them"""

    def add(self, dropped: Iterable[str], *, unlike: str = "") -> None:
        """Count a chat; ``unlike`` shows one that differs from what sampling makes of it."""
        self.dropped.update(dropped)
        self.unlike_prompts += bool(unlike)
        self.example = self.example or unlike

    def lines(self, kind: str, *, total: int) -> list[str]:
        """A line for each thing to know; ``kind`` is ``chats``, ``pairs``, ``prompts`` or ``responses``."""
        lines = [
            f"{count:,} of {total:,} {kind}: the chat template does not render {what}, so the model does not see it"
            for what, count in sorted(self.dropped.items())
        ]
        if self.unlike_prompts:
            lines.append(f"{self.unlike_prompts:,} of {total:,} {kind}: {self.example}")
        return lines


class EncodedChat(NamedTuple):
    """A chat in one row.

    Attributes:
        ids: ``[n]`` int64.
        mask: ``[n]`` bool, True on targets.
        truncation: what was truncated.
        dropped: what the chat template did not render.
        unlike: empty, or how the chat differs from a prompt for sampling.
    """

    ids: np.ndarray
    mask: np.ndarray
    truncation: TruncationReport
    dropped: tuple[str, ...] = ()
    unlike: str = ""


class EncodedResponses(NamedTuple):
    """Responses to one prompt, each in a row with it.

    Attributes:
        prompt: ``[p]`` int64, up to the response, including the header of its turn.
        responses: ``[n]`` int64 each, a response and the end of its turn.
        truncation: what was truncated.
        dropped: what the chat template did not render.
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    truncation: TruncationReport
    dropped: tuple[str, ...] = ()


class _Kept(NamedTuple):
    """Parts of a prompt and a response: ``prompt[:opening]``, ``prompt[start:]``, ``response[:length]``."""

    opening: int
    start: int
    length: int


def encode_chat(
    messages: Chat, tokenizer: Tokenizer, limit: int, *, tools: Sequence[Tool] | None = None
) -> EncodedChat:
    """Render a chat and truncate it to ``limit`` tokens.

    Tokens after the last target are dropped first, as they have no effect. Then, in this order:
        1. the start of the prompt (everything before the last response), except the opening (bos and system message)
           and the header of the last response (``<|assistant|>``);
        2. the system message, if opening and header take more than half of the row;
        3. the end of the last response.
    An earlier response whose header or beginning was dropped is no longer a target.

    Args:
        messages: with at least one response.
        tokenizer: renders the chat.
        limit: maximum number of tokens.
        tools: JSON schemas that the chat offers.

    Raises:
        ValueError: nothing of the response would remain, or the chat template has no target in it.
    """
    rendered = tokenizer.render_chat(messages, tools=tools)
    ids, mask = np.array(rendered.ids, np.int64), np.array(rendered.mask, bool)
    targets = np.flatnonzero(mask)
    if len(targets) == 0:
        raise ValueError("the chat template renders no token of the assistant to learn from")
    unlike = _unlike_prompts(ids, mask, tokenizer) if rendered.unlike_prompts else ""
    end = int(targets[-1]) + 1
    ids, mask = ids[:end], mask[:end]
    if end <= limit:
        return EncodedChat(ids, mask, TruncationReport(), rendered.dropped, unlike)

    before = np.flatnonzero(~mask)
    response = int(before[-1]) + 1 if len(before) else 0  # its first token
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    header = _header_length(messages[:last], tokenizer, tools) if last else response
    opening = _opening_length(messages, ids[:response], tokenizer, tools)
    opening, start, length = _fit(
        ids[:response], end - response, tokenizer, opening=opening, header=header, limit=limit
    )
    if start > opening:
        _untarget_first(mask, start, response, header)
    keep = np.r_[0:opening, start : response + length]
    report = TruncationReport(1, start - opening, end - response - length, int(response + length < end))
    return EncodedChat(ids[keep], mask[keep], report, rendered.dropped, unlike)


def _untarget_first(mask: np.ndarray, start: int, response: int, header: int) -> None:
    """Untarget the first response after ``start``, unless its header is complete or it is the last response.

    Args:
        mask: ``[n]`` bool, True on targets; changed in place.
        start: tokens before it are dropped.
        response: first token of the last response.
        header: tokens of the header of a response.
    """
    targets = np.flatnonzero(mask[start:response])
    if len(targets) == 0:
        return
    first = start + int(targets[0])
    if first - start < max(header, 1):
        length = int(np.flatnonzero(~mask[first:])[0])
        mask[first : first + length] = False


def _unlike_prompts(ids: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer) -> str:
    first = int(np.flatnonzero(mask)[0])
    shown = [tokenizer.token_text(int(number)) for number in ids[max(0, first - 3) : first + 2]]
    return (
        "a response follows other tokens than a prompt for sampling ends with, because tokens merge across the border "
        f"or the chat template writes something else there; one has {' | '.join(map(repr, shown))}"
    )


def encode_responses(
    prompt: Chat, responses: Sequence[str], tokenizer: Tokenizer, limit: int, *, tools: Sequence[Tool] | None = None
) -> EncodedResponses:
    """Render prompt and responses separately, as sampling does, and truncate every row to ``limit`` tokens.

    The prompt is truncated as in ``encode_chat`` until the longest response fits, or only opening and header remain;
    then the ends of the responses. All rows keep the same prompt.

    Args:
        prompt: messages; the last one is from the user or a tool.
        responses: texts.
        tokenizer: renders them.
        limit: maximum number of tokens of a row.
        tools: JSON schemas that the prompt offers.

    Raises:
        ValueError: nothing of the responses would remain, or the chat template ends the assistant's turn with no
            special token.
    """
    end = tokenizer.end_of_turn_id
    if end is None:
        raise ValueError("the tokenizer's chat template does not end the assistant's turn with a special token")
    rendered = tokenizer.render_chat(prompt, tools=tools, add_generation_prompt=True)
    ids = np.array(rendered.ids, np.int64)
    encoded = tuple(np.array([*tokenizer.encode(text), end], np.int64) for text in responses)
    longest = max(map(len, encoded))
    if len(ids) + longest <= limit:
        return EncodedResponses(ids, encoded, TruncationReport(), rendered.dropped)

    header = _header_length(prompt, tokenizer, tools)
    opening = _opening_length(prompt, ids, tokenizer, tools)
    opening, start, length = _fit(ids, longest, tokenizer, opening=opening, header=header, limit=limit)
    lost = [max(0, len(response) - length) for response in encoded]
    report = TruncationReport(1, start - opening, sum(lost), sum(map(bool, lost)))
    keep = np.r_[0:opening, start : len(ids)]
    return EncodedResponses(ids[keep], tuple(response[:length] for response in encoded), report, rendered.dropped)


def encode_pair(pair: Pair, tokenizer: Tokenizer, limit: int) -> EncodedResponses:
    """``encode_responses`` of the chosen and the rejected response.

    Args:
        pair: a checked pair.
        tokenizer: renders the pair.
        limit: maximum number of tokens of a row.

    Raises:
        ValueError: as ``encode_responses`` raises, or nothing of what distinguishes the responses would remain.
    """
    encoded = encode_responses(pair.prompt, (pair.chosen, pair.rejected), tokenizer, limit, tools=pair.tools)
    chosen, rejected = encoded.responses
    if encoded.truncation.truncated and np.array_equal(chosen, rejected):
        raise ValueError(
            f"chosen and rejected differ only after their first {len(chosen)} tokens, which are all that fit into "
            f"context {limit - 1} after {len(encoded.prompt)} tokens of the prompt"
        )
    return encoded


def unlike_whole_chat(
    prompt: Chat,
    response: str,
    encoded: EncodedResponses,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Tool] | None = None,
) -> str:
    """How the row of the first response differs from the whole chat, rendered at once; empty if it does not.

    Args:
        prompt: that was encoded.
        response: the first one that was encoded.
        encoded: both.
        tokenizer: that encoded them.
        tools: JSON schemas that the prompt offers.
    """
    if tokenizer.spec.chat_template == TEMPLATE or encoded.truncation.truncated:
        return ""
    chat = [*prompt, {"role": "assistant", "content": response}]
    joined = np.concatenate([encoded.prompt, encoded.responses[0]])
    try:
        whole = encode_chat(chat, tokenizer, sys.maxsize, tools=tools).ids
    except ValueError as error:
        return f"the chat template can't render the whole chat: {error}"
    if np.array_equal(whole, joined):
        return ""
    start = max(0, int(_common_prefix(whole.tolist(), joined)) - 8)
    return (
        f"the chat template renders the whole chat with {_shown(whole[start:], tokenizer)}, but its prompt and "
        f"response separately, as these rows and sampling do, with {_shown(joined[start:], tokenizer)}"
    )


def _shown(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    return " | ".join(repr(tokenizer.token_text(int(number))) for number in ids[:12])


def _fit(prompt: np.ndarray, response: int, tokenizer: Tokenizer, *, opening: int, header: int, limit: int) -> _Kept:
    """Fit ``prompt`` and ``response`` tokens into a row of ``limit``; steps as in ``encode_chat``."""
    header = max(0, min(header, len(prompt)))
    opening = min(opening, len(prompt) - header)
    if opening + header > limit // 2:  # 2
        opening = min(opening, int(len(prompt) > 0 and prompt[0] == tokenizer.bos_id))
    room = limit - opening - header - response
    start = len(prompt) - header - max(0, min(room, len(prompt) - header - opening))  # 1
    length = min(response, limit - opening - (len(prompt) - start))  # 3
    if length < 1:
        raise ValueError(f"nothing of the response fits into context {limit - 1}")
    return _Kept(opening, start, length)


def _header_length(prompt: Chat, tokenizer: Tokenizer, tools: Sequence[Tool] | None) -> int:
    """Tokens of the header of a response: what ``add_generation_prompt`` adds to its prompt.

    Some templates add nothing, such as Mistral's; for these, what follows the content of the prompt's last message.
    """
    opened = np.array(tokenizer.render_chat(prompt, tools=tools, add_generation_prompt=True).ids)
    if header := len(opened) - _common_prefix(tokenizer.render_chat(prompt, tools=tools).ids, opened):
        return header
    *earlier, last = prompt
    other = last | {"content": "x" if text_of(last.get("content"))[-1:] != "x" else "y"}
    try:
        changed = tokenizer.render_chat([*earlier, other], tools=tools, add_generation_prompt=True).ids
    except ValueError:  # the template accepts nothing but this content
        return 0
    return _common_prefix(changed[::-1], opened[::-1])


def _opening_length(messages: Chat, ids: np.ndarray, tokenizer: Tokenizer, tools: Sequence[Tool] | None) -> int:
    """Tokens of bos and of a system message at the start, with the tools in it."""
    if messages[0]["role"] in ("system", "developer"):
        try:
            return _common_prefix(tokenizer.render_chat(messages[:1], tools=tools).ids, ids)
        except ValueError:  # the template has no system message by itself
            pass
    return int(len(ids) > 0 and ids[0] == tokenizer.bos_id)


def _common_prefix(left: Sequence[int], right: np.ndarray) -> int:
    size = min(len(left), len(right))
    differs = np.flatnonzero(np.asarray(left[:size]) != right[:size])
    return int(differs[0]) if len(differs) else size
