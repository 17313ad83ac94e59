"""Train a byte-level BPE.

The steps, numbered as in the code:

1. Split the texts into words and count the words. All further steps see distinct words only.
2. Write each word as a string with one character per symbol, whose code point is the symbol's id. Python's string
   methods then find, split and replace pairs in C.
3. Count all pairs of adjacent symbols, and list for each pair the words that contain it.
4. Put the pairs on a heap, by count. An entry with an outdated count is put back when it reaches the top.
5. Take the most frequent pair, and of equally frequent ones that with the lower first id, then the lower second id. It
   becomes a new token, or the existing token with the same bytes.
6. Replace the pair in the words that contain it, and update the counts of the pairs next to it.
7. Repeat from 5 until the vocabulary is full or no pair is left.

Ids and merges equal those of Hugging Face's `BpeTrainer` with the byte alphabet, including its tie-breaking.
"""

import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal

import numpy as np

from align.tokenizer.byte_level import BYTE_ORDER
from align.tokenizer.process_pool import chunked, ordered_map
from align.tokenizer.splitting import Split, resolve_pattern, split_words
from align.tokenizer.tokenizer import Tokenizer, own_special_tokens

Advance = Callable[[int], None]

Progress = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Opens a progress display for a task and its number of units (None: unknown)"""

MAX_VOCAB_SIZE = 1_000_000
"""During training ids are code points, which end at 1,114,111"""

_LONGEST_WORD = (
    4096  # characters; longer words are counted in parts of this length, or each merge would scan them completely
)

_EXCERPT = 1 << 16  # characters; the unit of sampling

_TO_IDS = bytes(BYTE_ORDER.index(byte) for byte in range(256))


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: Literal["gpt2", "gpt4"] | str = "gpt4",
    sample_bytes: int | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Tokenizer:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: documents; read once, not kept in memory.
        vocab_size: number of ids, including the 256 bytes and our special tokens.
        pattern: split pattern: ``gpt2``, ``gpt4``, or a regular expression.
        sample_bytes: train on a random sample of about this many UTF-8 bytes; None: on everything.
        processes: processes that count words.
        progress: displays the progress, such as ``align.io.progress.progress_bar``; None: nothing does.

    Raises:
        ValueError: a setting is invalid, or all texts are empty.
    """
    specials = own_special_tokens(0)
    smallest = 256 + len(specials)
    if not smallest <= vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; it must be from {smallest} (256 bytes and {len(specials)} special tokens) "
            f"to {MAX_VOCAB_SIZE}"
        )
    if sample_bytes is not None and sample_bytes < 1:
        raise ValueError(f"sample_bytes is {sample_bytes}; it must be at least 1")
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    splits = (Split(resolve_pattern(pattern)),)
    if sample_bytes is not None:
        texts = sample_texts(texts, sample_bytes)
    progress = progress or _no_progress
    with progress("counting words, in characters", None) as advance:
        counts = count_words(texts, splits, processes=processes, advance=advance)
    if not counts:
        raise ValueError("no text to train a tokenizer on: all texts are empty")
    size = vocab_size - len(specials)
    with progress("learning merges", size - len(BYTE_ORDER)) as advance:
        tokens, merges = learn_merges(counts, size, advance=advance)
    if len(tokens) + len(specials) < vocab_size:
        warnings.warn(
            f"vocab_size is {vocab_size}, but the text has pairs for {len(tokens) + len(specials)} tokens only, which "
            "is now the size of the vocabulary",
            stacklevel=2,
        )
    return Tokenizer.from_merges(tokens, merges, splits=splits)


def sample_texts(texts: Iterable[str], sample_bytes: int) -> list[str]:
    """A random sample of excerpts from the texts, of about ``sample_bytes`` UTF-8 bytes.

    Every excerpt of up to 64 K characters draws a number, and those with the lowest numbers are kept. The seed is
    fixed. Memory holds the sample only.
    """
    draw = random.Random(0).random
    kept: list[tuple[float, int, str]] = []
    held = 0
    for text in texts:
        for start in range(0, len(text), _EXCERPT):
            excerpt = text[start : start + _EXCERPT]
            size = len(excerpt.encode(errors="surrogatepass"))
            heappush(kept, (-draw(), size, excerpt))
            held += size
            while held - kept[0][1] >= sample_bytes:
                held -= heappop(kept)[1]
    return [excerpt for _, _, excerpt in kept]


def count_words(
    texts: Iterable[str], splits: tuple[Split, ...], *, processes: int = 1, advance: Advance
) -> Counter[str]:
    """Step 1: the number of occurrences of each word."""
    total: Counter[str] = Counter()
    for counts, read in ordered_map(partial(_count_chunk, splits=splits), chunked(texts), processes):
        if total:
            for word, count in counts.items():
                total[word] += count
        else:
            total = counts
        advance(read)
    return total


def _count_chunk(texts: list[str], splits: tuple[Split, ...]) -> tuple[Counter[str], int]:
    """Word counts of some texts, and the number of characters read."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text, splits))
    for word in [word for word in counts if len(word) > _LONGEST_WORD]:
        times = counts.pop(word)
        for start in range(0, len(word), _LONGEST_WORD):
            counts[word[start : start + _LONGEST_WORD]] += times
    return counts, sum(map(len, texts))


def learn_merges(
    counts: Counter[str], size: int, *, advance: Advance
) -> tuple[list[bytes], dict[tuple[int, int], int]]:
    """Steps 2 to 7: the tokens by id, and the id that each merged pair becomes, in order of merging.

    Args:
        counts: number of occurrences of each word.
        size: number of tokens to learn, including the 256 bytes.
        advance: called with the number of tokens added since the last call.

    Raises:
        ValueError: a word contains a lone surrogate, which has no UTF-8 form.
    """
    # 2. Words as strings of ids
    try:
        raw = {word.encode().translate(_TO_IDS): count for word, count in counts.items()}
    except UnicodeEncodeError as error:
        raise ValueError(f"the word {error.object!r} contains a lone surrogate, which has no UTF-8 form") from None
    raw.pop(b"", None)
    words = [word.decode("latin-1") for word in raw]
    frequency = list(raw.values())
    tokens = [bytes([byte]) for byte in BYTE_ORDER]
    ids = {token: i for i, token in enumerate(tokens)}
    merges: dict[tuple[int, int], int] = {}
    pair_counts, where = _count_pairs(raw)  # 3
    del raw
    heap = [(-count, pair) for pair, count in pair_counts.items()]  # 4
    heapify(heap)
    while heap and len(tokens) < size:
        negative, pair = heap[0]
        count = pair_counts[pair]
        if count != -negative:
            heapreplace(heap, (-count, pair))
            continue
        if count < 1:
            break
        heappop(heap)  # 5
        left, right = map(ord, pair)
        token = tokens[left] + tokens[right]
        new = ids.setdefault(token, len(tokens))
        if new == len(tokens):
            tokens.append(token)
            advance(1)
        merges.pop((left, right), None)  # a pair merged again moves to the end, as in Hugging Face's trainer
        merges[left, right] = new
        for changed in _replace_pair(pair, chr(new), words, frequency, pair_counts=pair_counts, where=where):  # 6
            if pair_counts[changed] > 0:
                heappush(heap, (-pair_counts[changed], changed))
    return tokens, merges


def _count_pairs(raw: dict[bytes, int]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Step 3: the count of each pair, and the indices of the words that contain it."""
    flat = np.frombuffer(b"".join(raw), dtype=np.uint8)
    lengths = np.fromiter(map(len, raw), dtype=np.int64, count=len(raw))
    frequency = np.fromiter(raw.values(), dtype=np.int64, count=len(raw))
    word_of = np.repeat(np.arange(len(raw), dtype=np.int32), lengths)
    inside = np.flatnonzero(word_of[1:] == word_of[:-1])
    keys = flat[inside].astype(np.uint16) * 256 + flat[inside + 1]
    holders = word_of[inside]
    # Sums in float64 are exact up to 2^53 words.
    sums = np.bincount(keys, weights=frequency[holders], minlength=1).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    groups = np.split(holders[order], starts[1:])[: len(present)]  # without any pair there is one empty group
    names = [chr(key >> 8) + chr(key & 255) for key in present.tolist()]
    # A word that contains a pair twice is listed twice; the second visit finds nothing to replace.
    where = {name: group.tolist() for name, group in zip(names, groups, strict=True)}
    return dict(zip(names, sums[present].tolist(), strict=True)), where


def _replace_pair(
    pair: str,
    new: str,
    words: list[str],
    frequency: list[int],
    *,
    pair_counts: dict[str, int],
    where: dict[str, list[int]],
) -> list[str]:
    """Step 6: merge a pair everywhere and return the new pairs.

    The count of the merged pair itself is left unchanged, as in Hugging Face's trainer. This matters if a token with
    the same bytes creates the pair again.
    """
    before: defaultdict[str, list[int]] = defaultdict(list)  # symbol before a merged pair -> words, once per occurrence
    after: defaultdict[str, list[int]] = defaultdict(list)
    between: list[int] = []  # words, once per two adjacent merged pairs
    for number in where.pop(pair, ()):
        head, found, tail = words[number].partition(pair)
        if not found:
            continue
        if head:
            before[head[-1]].append(number)
        while pair in tail:
            middle, _, tail = tail.partition(pair)
            if middle:
                after[middle[0]].append(number)
                before[middle[-1]].append(number)
            else:
                between.append(number)
            head += new + middle
        if tail:
            after[tail[0]].append(number)
        words[number] = head + new + tail
    changes = [(symbol + pair[0], symbol + new, numbers) for symbol, numbers in before.items()]
    changes += [(pair[1] + symbol, new + symbol, numbers) for symbol, numbers in after.items()]
    if between:
        changes.append((pair[1] + pair[0], new + new, between))
    times = frequency.__getitem__
    for old, made, numbers in changes:
        count = sum(map(times, numbers))
        pair_counts[old] -= count
        pair_counts[made] = pair_counts.get(made, 0) + count
        if made in where:
            where[made] += numbers
        else:
            where[made] = numbers
    return [made for _, made, _ in changes]


def _no_progress(task: str, total: int | None) -> AbstractContextManager[Advance]:
    return nullcontext(lambda count: None)
