"""Apply BPE merges to a word.

The rule: of all adjacent pairs with a rank, merge the one with the lowest rank, and of equal ones the leftmost; repeat.
"""

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise, repeat
from typing import TypeVar

Pair = tuple[int, int]

Word = TypeVar("Word", bound=str | bytes)

Value = TypeVar("Value")

_NEVER = 1 << 60  # rank of a pair that is never merged

_HEAP_FROM = 512  # symbols; for shorter words scanning a list of ranks is faster than a heap

_WINDOW = 48  # bytes; a longer word is merged window by window

_CACHED_WINDOWS = 1 << 12

_UNSETTLED = 2  # tokens at a window's end, which more context often changes

_LONGEST_CACHED = 64  # characters; longer words are rare and take much memory


class Merger:
    """Merges words by a table of ranked pairs."""

    def __init__(
        self, byte_ids: Mapping[int, int], ranks: dict[Pair, int], made: list[int], tokens: Mapping[int, bytes]
    ) -> None:
        """Store the table.

        Args:
            byte_ids: id of each byte that has one; the others have no ids and are dropped, as `tokenizers` drops them.
            ranks: rank of each pair, from 0.
            made: id that the pair of each rank becomes.
            tokens: bytes of each id.
        """
        self.byte_ids = byte_ids
        self._dropped = bytes(byte for byte in range(256) if byte not in byte_ids)
        self.ranks = ranks
        self.made = made
        self.tokens = tokens
        self._windows: WordCache[bytes, list[int]] = WordCache(self._merge_window, _CACHED_WINDOWS)

    def merge(self, word: bytes) -> list[int]:
        """The ids of a word."""
        if self._dropped:
            word = word.translate(None, self._dropped)
        if len(word) > _WINDOW:
            return self._merge_windows(word)
        return self._merge_list(list(map(self.byte_ids.__getitem__, word)))

    def _merge_list(self, ids: list[int]) -> list[int]:
        """Merge in place and find the lowest rank by scanning: quadratic, and fastest for short words."""
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
        """Merge with a heap of (rank, position) over a linked list: O(n log n)."""
        get, made, n = self.ranks.get, self.made, len(ids)
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        heap = [(get(pair, _NEVER), i) for i, pair in enumerate(pairwise(ids))]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            if rank == _NEVER:
                break
            j = after[i]
            # An entry is stale once either symbol has been merged.
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
        """Merge a long word in linear time, with memory for its ids only.

        A sequence of tokens is the encoding of its bytes exactly if every two adjacent tokens are the encoding of
        theirs: a merge across a boundary would also happen with the two adjacent tokens alone. So windows can be merged
        separately and joined where they agree:

        1. Merge a window that starts at a token boundary.
        2. Start the next window at a boundary near the end of this one, before the last tokens, which lack context and
           rarely agree. Merge it.
        3. If it starts with the token that followed the boundary in the first window, every two adjacent tokens have
           been merged in one window, and the tokens before the boundary are final. Otherwise try the boundary before.
        4. If no boundary works, start over with windows twice as long.
        """
        size = _WINDOW
        while (ids := self._join_windows(word, size)) is None:
            size *= 2
        return ids

    def _join_windows(self, word: bytes, size: int) -> list[int] | None:
        """Steps 1 to 3 of `_merge_windows` for one window size; None if two windows do not agree anywhere."""
        out: list[int] = []
        start, current = 0, self._windows[word[:size]]
        while start + size < len(word):
            kept = max(len(current) - _UNSETTLED, min(len(current) - 1, 1))
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
    """Encoded words; a missing one is encoded and stored.

    As a dict it works inside C loops: ``b"".join(map(cache.__getitem__, words))``. A full cache is emptied, so its
    memory is bounded.
    """

    def __init__(self, encode_word: Callable[[Word], Value], limit: int) -> None:
        """Start empty; holds at most ``limit`` words, encoded by ``encode_word``."""
        super().__init__()
        self.encode_word = encode_word
        self.limit = limit

    def __missing__(self, word: Word) -> Value:
        """Encode a word that is not in the cache."""
        value = self.encode_word(word)
        if len(word) <= _LONGEST_CACHED:
            if len(self) >= self.limit:
                self.clear()
            self[word] = value
        return value
