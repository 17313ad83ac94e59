"""From files of records to what a corpus holds, one record at a time.

Chats that are longer than a row: what is cut, in which order, and the report of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple, TypeVar

import numpy as np

from align.data.formats.base import RecordFormat, detect
from align.data.formats.fields import Chat
from align.data.formats.pairs import Pair
from align.data.readers import BadRecords, Source
from align.tokenizer import Tokenizer

Content = TypeVar("Content")

Encoded = TypeVar("Encoded")


def encode_records(
    sources: Sequence[Source],
    bad: BadRecords,
    *,
    format: RecordFormat[Content] | None,
    formats: Sequence[RecordFormat[Content]],
    encode: Callable[[Content], Encoded],
) -> Iterator[Encoded]:
    """Read and encode the records of files.

    Args:
        sources: files, in order.
        bad: receives the records that can't be used.
        format: of all records; None detects each file's format from its first record.
        formats: candidates for detection.
        encode: turns the content of a record into what a corpus stores; raises ValueError for a bad record.

    Raises:
        ValueError: the format of a file can't be detected.
        BadRecordError: see ``BadRecords``.
    """
    for source in sources:
        chosen = format
        for record in source.records(bad):
            if chosen is None:
                try:
                    chosen = detect(record.fields, formats)
                except ValueError as error:
                    raise ValueError(f"{record.source}: {record.place}: {error}") from None
            try:
                encoded = encode(chosen.read(record.fields))
            except ValueError as error:
                bad.add(record.source, record.place, str(error))
                continue
            yield encoded


@dataclass
class TruncationReport:
    """What was cut, over a whole file."""

    cut: int = 0
    """Chats, or pairs, that were cut"""
    cut_prompt_tokens: int = 0
    """Tokens cut from the start of prompts"""
    cut_response_tokens: int = 0
    """Tokens cut from the end of responses"""
    responses_without_end: int = 0
    """Responses that lost their end-of-turn token: the model is not shown that they end"""

    def add(self, other: "TruncationReport") -> None:
        """Add the numbers of another report."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def lines(self, kind: str, *, total: int, limit: int) -> list[str]:
        """One line when something was cut, else none; ``kind`` is what was cut, in the plural."""
        if not self.cut:
            return []
        return [
            f"cut {self.cut} of {total} {kind} to {limit} tokens: {self.cut_prompt_tokens} prompt and "
            f"{self.cut_response_tokens} response tokens; {self.responses_without_end} response(s) lost their "
            "end-of-turn (a larger context keeps them)"
        ]

    def as_dict(self, kind: str) -> dict[str, int]:
        """The numbers by name; ``cut_chats`` where ``kind`` is chats."""
        return {name if name != "cut" else f"cut_{kind}": value for name, value in asdict(self).items()}


class EncodedChat(NamedTuple):
    """A chat as it stands in a row.

    Attributes:
        ids: ``[n]`` int64.
        counted: ``[n]`` bool, True on the tokens that are targets.
        cut: what was cut.
    """

    ids: np.ndarray
    counted: np.ndarray
    cut: TruncationReport


class EncodedPair(NamedTuple):
    """A pair as it stands in its two rows: prompt and chosen, prompt and rejected.

    Attributes:
        prompt: ``[p]`` int64, up to what opens the assistant's turn.
        chosen: ``[n]`` int64, the answer and the end of its turn.
        rejected: ``[m]`` int64, likewise.
        cut: what was cut.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    cut: TruncationReport


class _Kept(NamedTuple):
    """What a row keeps of a prompt and a response: ``prompt[:opening]``, ``prompt[start:]``, ``response[:length]``."""

    opening: int
    start: int
    length: int


def encode_chat(messages: Chat, tokenizer: Tokenizer, limit: int) -> EncodedChat:
    """Render a chat and, where it is longer than ``limit``, cut it.

    What follows the last counted token is never read and goes first. Then, in order:
        1. the prompt (all before the last response) from its start, but for the opening (bos and system message) and
           the last response's header (``<|assistant|>``);
        2. the system message, where it would take more than half of the row;
        3. the last response from its end.
    An earlier response that lost its beginning no longer counts.

    Args:
        messages: with at least one assistant turn.
        tokenizer: renders.
        limit: most tokens of a row.

    Raises:
        ValueError: nothing of the response would be left, or the tokenizer's template counts nothing of it.
    """
    rendered = tokenizer.render_chat(messages)
    ids, counted = np.array(rendered.ids, np.int64), np.array(rendered.mask, bool)
    places = np.flatnonzero(counted)
    if len(places) == 0:
        raise ValueError("the chat template leaves no assistant token to learn from")
    end = int(places[-1]) + 1
    ids, counted = ids[:end], counted[:end]
    if end <= limit:
        return EncodedChat(ids, counted, TruncationReport())

    before = np.flatnonzero(~counted)
    response = int(before[-1]) + 1 if len(before) else 0  # where it begins
    header = _header_length(messages, tokenizer, response)
    opening, start, length = _fit(messages, ids[:response], end - response, tokenizer, header=header, limit=limit)
    if opening < start < response and counted[start - 1] and counted[start]:
        fragment = int(np.flatnonzero(~counted[start:])[0])
        counted[start : start + fragment] = False
    keep = np.r_[0:opening, start : response + length]
    report = TruncationReport(1, start - opening, end - response - length, int(response + length < end))
    return EncodedChat(ids[keep], counted[keep], report)


def encode_pair(pair: Pair, tokenizer: Tokenizer, limit: int) -> EncodedPair:
    """Render a prompt and two answers apart, as sampling does, and cut them where a row is longer than ``limit``.

    The prompt is cut, as in ``encode_chat``, until the longer answer fits, or nothing but the opening and the header
    is left; then the answers from their ends. Both rows keep the same prompt.

    Args:
        pair: checked.
        tokenizer: renders.
        limit: most tokens of a row.

    Raises:
        ValueError: nothing of the answers would be left, or nothing of what they differ in, or the tokenizer's
            template ends no turn.
    """
    end = tokenizer.end_of_turn_id
    if end is None:
        raise ValueError("the tokenizer's chat template ends no turn of the assistant with a special token")
    prompt = np.array(tokenizer.render_chat(pair.prompt, add_generation_prompt=True).ids, np.int64)
    chosen, rejected = (np.array([*tokenizer.encode(text), end], np.int64) for text in (pair.chosen, pair.rejected))
    longest = max(len(chosen), len(rejected))
    if len(prompt) + longest <= limit:
        return EncodedPair(prompt, chosen, rejected, TruncationReport())

    header = len(prompt) - len(tokenizer.render_chat(pair.prompt).ids)
    opening, start, length = _fit(pair.prompt, prompt, longest, tokenizer, header=header, limit=limit)
    if np.array_equal(chosen[:length], rejected[:length]):
        raise ValueError(
            f"chosen and rejected differ only after {length} tokens, which is all that a context of {limit - 1} tokens "
            f"leaves of them behind {opening + len(prompt) - start} of the prompt"
        )
    lost = [max(0, len(answer) - length) for answer in (chosen, rejected)]
    report = TruncationReport(1, start - opening, sum(lost), sum(map(bool, lost)))
    keep = np.r_[0:opening, start : len(prompt)]
    return EncodedPair(prompt[keep], chosen[:length], rejected[:length], report)


def _fit(messages: Chat, prompt: np.ndarray, response: int, tokenizer: Tokenizer, *, header: int, limit: int) -> _Kept:
    """Fit ``prompt`` and ``response`` tokens into a row of ``limit``; steps as in ``encode_chat``."""
    header = min(header, len(prompt))
    opening = min(_opening_length(messages, prompt, tokenizer), len(prompt) - header)
    if opening + header > limit // 2:  # 2
        opening = min(opening, int(len(prompt) > 0 and prompt[0] == tokenizer.bos_id))
    room = limit - opening - header - response
    start = len(prompt) - header - max(0, min(room, len(prompt) - header - opening))  # 1
    length = min(response, limit - opening - (len(prompt) - start))  # 3
    if length < 1:
        raise ValueError(f"with a context of {limit - 1} tokens nothing is left of the response")
    return _Kept(opening, start, length)


def _header_length(messages: Chat, tokenizer: Tokenizer, response: int) -> int:
    """Tokens that open the last response, which begins at ``response``."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    earlier = messages[:last]
    if not earlier:
        return response
    opened = tokenizer.render_chat(earlier, add_generation_prompt=True)
    return max(0, len(opened.ids) - len(tokenizer.render_chat(earlier).ids))


def _opening_length(messages: Chat, ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """Tokens of bos and a leading system message."""
    if messages[0]["role"] != "system":
        return int(len(ids) > 0 and ids[0] == tokenizer.bos_id)
    return _common_prefix(tokenizer.render_chat(messages[:1]).ids, ids)


def _common_prefix(left: Sequence[int], right: np.ndarray) -> int:
    size = min(len(left), len(right))
    differs = np.flatnonzero(np.asarray(left[:size]) != right[:size])
    return int(differs[0]) if len(differs) else size
