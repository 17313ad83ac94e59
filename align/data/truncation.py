"""Chats that are longer than a row: what is cut, in which order, and the report of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from align.data.formats import Messages
from align.tokenizer import Tokenizer


@dataclass
class TruncationReport:
    """What was cut, over a whole file."""

    cut_chats: int = 0
    """Chats that were cut"""
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

    def lines(self, *, total: int, limit: int) -> list[str]:
        """One line when something was cut, else none."""
        if not self.cut_chats:
            return []
        return [
            f"cut {self.cut_chats} of {total} chats to {limit} tokens: {self.cut_prompt_tokens} prompt and "
            f"{self.cut_response_tokens} response tokens; {self.responses_without_end} response(s) lost their "
            "end-of-turn (a larger context keeps them)"
        ]

    def as_dict(self) -> dict[str, int]:
        """The numbers by name."""
        return asdict(self)


def encode_chat(
    messages: Messages, tokenizer: Tokenizer, limit: int
) -> tuple[np.ndarray, np.ndarray, TruncationReport]:
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

    Returns:
        ids ``[n]`` int64, counted ``[n]`` bool, what was cut.

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
        return ids, counted, TruncationReport()

    before = np.flatnonzero(~counted)
    response = int(before[-1]) + 1 if len(before) else 0  # where it begins
    header = min(_header_length(messages, tokenizer, response), response)
    opening = min(_opening_length(messages, ids, tokenizer), response - header)
    if opening + header > limit // 2:  # 2
        opening = min(opening, int(ids[0] == tokenizer.bos_id))
    room = limit - opening - header - (end - response)
    kept_from = response - header - max(0, min(room, response - header - opening))  # 1
    kept_to = min(end, kept_from + limit - opening)  # 3
    if kept_to <= response:
        raise ValueError(f"with a context of {limit - 1} tokens nothing is left of the response")
    if opening < kept_from < response and counted[kept_from - 1] and counted[kept_from]:
        fragment = int(np.flatnonzero(~counted[kept_from:])[0])
        counted[kept_from : kept_from + fragment] = False
    keep = np.r_[0:opening, kept_from:kept_to]
    report = TruncationReport(1, kept_from - opening, end - kept_to, int(kept_to < end))
    return ids[keep], counted[keep], report


def _header_length(messages: Messages, tokenizer: Tokenizer, response: int) -> int:
    """Tokens that open the last response, which begins at ``response``."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    earlier = messages[:last]
    if not earlier:
        return response
    opened = tokenizer.render_chat(earlier, add_generation_prompt=True)
    return max(0, len(opened.ids) - len(tokenizer.render_chat(earlier).ids))


def _opening_length(messages: Messages, ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """Tokens of bos and a leading system message."""
    if messages[0]["role"] != "system":
        return int(ids[0] == tokenizer.bos_id)
    return _common_prefix(tokenizer.render_chat(messages[:1]).ids, ids)


def _common_prefix(left: Sequence[int], right: np.ndarray) -> int:
    size = min(len(left), len(right))
    differs = np.flatnonzero(np.asarray(left[:size]) != right[:size])
    return int(differs[0]) if len(differs) else size
