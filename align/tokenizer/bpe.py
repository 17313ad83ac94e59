"""Apply BPE merges to one word.

The rule: among all adjacent pairs that have a rank, merge the one of lowest rank, the leftmost of equals; repeat.
"""

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise, repeat
from typing import TypeVar

Pair = tuple[int, int]

Word = TypeVar("Word", bound=str | bytes)

Value = TypeVar("Value")

_NEVER = 1 << 60  # the rank of a pair that is never merged

_HEAP_FROM = 512  # symbols; below, scanning a list of ranks is faster than a heap

_WINDOW = 48  # bytes; a longer word is merged window by window

_CACHED_WINDOWS = 1 << 12

_CUT_OFF = 2  # tokens

_LONGEST_CACHED = 64  # characters; longer words are rare and large


class Merger:
    """Merges words by a table of ranked pairs."""

    def __init__(
        self, byte_ids: list[int], ranks: dict[Pair, int], made: list[int], tokens: Mapping[int, bytes]
    ) -> None:
        """Take the table.

        Args:
            byte_ids: id of each of the 256 bytes.
            ranks: rank of each pair, the lowest first.
            made: the id that the pair of each rank becomes.
            tokens: what each id stands for.
        """
        self.byte_ids = byte_ids
        self.ranks = ranks
        self.made = made
        self.tokens = tokens
        self._windows: WordCache[bytes, list[int]] = WordCache(self._merge_window, _CACHED_WINDOWS)

    def merge(self, word: bytes) -> list[int]:
        """The ids of a word."""
        if len(word) > _WINDOW:
            return self._merge_windows(word)
        return self._merge_list(list(map(self.byte_ids.__getitem__, word)))

    def _merge_list(self, ids: list[int]) -> list[int]:
        """Merge in place, finding the lowest rank by scanning; quadratic, and the fastest for short words."""
        get, made = self.ranks.get, self.made
        ranks = list(map(get, pairwise(ids), repeat(_NEVER)))
        while ranks:
            lowest = min(ranks)
            if lowest == _NEVER:
                break
            i = ranks.index(lowest)
            ids[i] = new = made[lowest]
            del ids[i + 1]
            del ranks[i]
            if i:
                ranks[i - 1] = get((ids[i - 1], new), _NEVER)
            if i < len(ranks):
                ranks[i] = get((new, ids[i + 1]), _NEVER)
        return ids

    def _merge_heap(self, ids: list[int]) -> list[int]:
        """Merge with a heap of (rank, place) over a linked list; n log n."""
        get, made, n = self.ranks.get, self.made, len(ids)
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        heap = [(get(pair, _NEVER), i) for i, pair in enumerate(pairwise(ids))]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            if rank == _NEVER:
                break
            j = after[i]
            # An entry is stale when either symbol has since been merged away or become another.
            if j >= n or ids[i] < 0 or get((ids[i], ids[j])) != rank:
                continue
            ids[i], ids[j] = made[rank], -1
            k = after[i] = after[j]
            if k < n:
                before[k] = i
                heappush(heap, (get((ids[i], ids[k]), _NEVER), i))
            if (h := before[i]) >= 0:
                heappush(heap, (get((ids[h], ids[i]), _NEVER), h))
        return [i for i in ids if i >= 0]

    def _merge_windows(self, word: bytes) -> list[int]:
        """Merge a long word in linear time and the memory of its ids.

        A sequence of tokens is the encoding of its bytes exactly when each two neighbours are the encoding of theirs:
        were some merge to cross a border, the first such merge would also be made in the two neighbours alone. So
        windows may be merged apart and joined where they agree:

        1. Merge a window that starts at a border.
        2. Take a border near its end (its last tokens are cut off, and seldom agree) as the next window's start, and
           merge that one.
        3. If it starts with the token that followed the border, every two neighbours have been seen together in one
           window: the tokens before the border stand. Otherwise try the border before.
        4. If no border will do, start again with windows twice as long.
        """
        size = _WINDOW
        while (ids := self._join_windows(word, size)) is None:
            size *= 2
        return ids

    def _join_windows(self, word: bytes, size: int) -> list[int] | None:
        """Steps 1 to 3 of `_merge_windows` for one size; None: two windows did not agree."""
        out: list[int] = []
        start, current = 0, self._windows[word[:size]]
        while start + size < len(word):
            kept = max(len(current) - _CUT_OFF, min(len(current) - 1, 1))
            border = start + size - sum(len(self.tokens[i]) for i in current[kept:])
            following = self._windows[word[border : border + size]]
            while kept and following[0] != current[kept]:
                kept -= 1
                border -= len(self.tokens[current[kept]])
                following = self._windows[word[border : border + size]]
            if not kept:
                return None
            out += current[:kept]
            start, current = border, following
        return out + current

    def _merge_window(self, window: bytes) -> list[int]:
        ids = list(map(self.byte_ids.__getitem__, window))
        return self._merge_heap(ids) if len(ids) >= _HEAP_FROM else self._merge_list(ids)


class WordCache(dict[Word, Value]):
    """Words already encoded; a missing one is encoded and kept.

    Being a dict, it answers inside C loops: ``b"".join(map(cache.__getitem__, words))``. A full cache is emptied, so
    memory stays bounded.
    """

    def __init__(self, encode_word: Callable[[Word], Value], limit: int) -> None:
        """Start empty, to be filled by ``encode_word`` with at most ``limit`` words."""
        super().__init__()
        self.encode_word = encode_word
        self.limit = limit

    def __missing__(self, word: Word) -> Value:
        """Encode a word seen for the first time."""
        value = self.encode_word(word)
        if len(word) <= _LONGEST_CACHED:
            if len(self) >= self.limit:
                self.clear()
            self[word] = value
        return value
