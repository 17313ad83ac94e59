"""The finding that some samples of a split are affected."""

import pytest

from align.curate.check import Example, affected
from align.curate.context import Dropped, Sample, Split


def split_of(count: int) -> Split:
    samples = [Sample("a.jsonl", f"line {number + 1}", "", (f"text  {number}",), (), 1) for number in range(count)]
    return Split("train", samples)


@pytest.mark.parametrize(
    ("hits", "severity"),
    [(0, None), (1, None), (2, "note"), (4, "note"), (5, "error")],
)
def test_a_share_decides_whether_there_is_a_finding_and_whether_it_is_a_note(hits: int, severity: str | None):
    """Of 10 samples 1 (10%) may be affected without a finding, and 4 (40%) are a note."""
    split = split_of(10)
    found = [*affected(split, split.samples[:hits], "records", "fix", silent=0.1, note=0.4, severity="error")]
    assert [one.severity for one in found] == ([severity] if severity else [])


def test_a_finding_counts_all_hits_and_shows_three():
    """8 hits among the 20 records that were read, 10 samples and 10 dropped ones, are 40%."""
    split = split_of(10)
    dropped = Dropped("a.jsonl", "line 11", "no text", {"texts": "x"})
    (found,) = affected(split, [dropped, *split.samples[:7]], "records are odd", "fix", total=20)
    assert found.message == "8 of 20 (40.0%) records are odd"
    assert (found.count, found.total, found.split, found.severity) == (8, 20, "train", None)
    assert found.examples == [
        Example("a.jsonl: line 11", "{'texts': 'x'}"),
        Example("a.jsonl: line 1", "text 0"),
        Example("a.jsonl: line 2", "text 1"),
    ]
