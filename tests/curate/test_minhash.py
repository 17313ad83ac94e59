"""MinHash against all pairs, and the patterns of personal data."""

import random

import numpy as np
import pytest
from curate_data import sentence

from align.curate.checks.pairs import wilson
from align.curate.minhash import joined, near_duplicates, shingles_of, sketch
from align.curate.personal import PATTERNS, luhn


def sets(texts: list[str]) -> list[set[tuple[str, ...]]]:
    words = [text.lower().replace(".", "").split() for text in texts]
    return [{*zip(one, one[1:], one[2:], strict=False)} for one in words]


def test_sets_of_word_runs():
    """Five words have three runs of three; "a a a a" has one; two words have none; case and marks don't count."""
    shingles = shingles_of(["One two, three four FIVE.", "a a a a", "one two", "one two three four five"])
    assert np.diff(shingles.offsets).tolist() == [3, 1, 0, 3]
    assert shingles.of(0).tolist() == shingles.of(3).tolist()


def test_near_duplicates_are_those_of_all_pairs():
    """Of 300 texts with up to 12 words changed: every pair at 0.8 or more shares a group, and every group has one."""
    rng = random.Random(1)
    texts = [sentence(rng, 40) for _ in range(100)]
    for text in texts[:100] * 2:
        words = text.split()
        for _ in range(rng.randrange(4)):
            words[rng.randrange(len(words))] = "changed"
        texts.append(" ".join(words))
    groups = near_duplicates(sketch(texts), threshold=0.8)
    runs = sets(texts)
    near = {
        (i, j) for j in range(len(texts)) for i in range(j) if len(runs[i] & runs[j]) >= 0.8 * len(runs[i] | runs[j])
    }
    assert len(near) > 100
    assert [pair for pair in near if groups[pair[0]] != groups[pair[1]]] == []
    linked = {text for pair in near for text in pair}
    assert all(text in linked for text, group in enumerate(groups.tolist()) if text != group)


def test_sketches_join():
    rng = random.Random(2)
    first, second = [sentence(rng, 20) for _ in range(5)], [sentence(rng, 20), "too short"]
    second.append(first[3] + " more")
    both = joined(sketch(first), sketch(second))
    assert near_duplicates(both, threshold=0.8).tolist() == [0, 1, 2, 3, 4, 5, 6, 3]
    assert (both.signatures == sketch(first + second).signatures).all()


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "a"]])
def test_texts_too_short_to_compare(texts: list[str]):
    assert near_duplicates(sketch(texts), threshold=0.8).tolist() == list(range(len(texts)))


@pytest.mark.parametrize(
    ("number", "valid"),
    # ISO/IEC 7812-1, annex B: 7992 7398 713 has the check digit 3 (1 x 2 = 2, 7, 8 x 2 = 16 -> 7, ...).
    [("79927398713", True), ("79927398710", False), ("4111 1111 1111 1111", True), ("0000 0000 0000 0000", False)],
)
def test_check_digits(number: str, valid: bool):
    assert luhn(number) == valid


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mail a.b+c@firm.co.uk now", "email addresses"),
        ("mail jo@example.com or jo@mail.test", None),
        ("call +49 30 901820 or (212) 736-5000", "phone numbers"),
        ("call 555-0123; in 1999-2000; 3.14159265358; 12345678901", None),
        ("from 8.8.4.4 on", "public IP addresses"),
        ("from 192.168.0.1, 127.0.0.1, version 1.2.3.4.5 and 999.1.1.1", None),
        ("pay 4111-1111-1111-1111 at once", "card numbers"),
        ("pay 4111-1111-1111-1112 at once", None),
        ("AKIAIOSFODNN7EXAMPLE", "keys and tokens"),
        ("sk-short and gh_none", None),
    ],
)
def test_patterns_of_personal_data(text: str, found: str | None):
    names = [pattern.name for pattern in PATTERNS if any(pattern.matches(text))]
    assert names == ([found] if found else [])


def test_wilsons_interval():
    """Wilson (1927) for 8 of 10: (0.8 + 0.19207) / 1.38415 +- 1.96 / 1.38415 x sqrt(0.016 + 0.0096035)."""
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=2e-4)
