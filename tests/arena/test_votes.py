"""The files of votes: what training reads, how they survive kills, and the table of win-rates."""

import json
import os
from dataclasses import replace

import pytest
from naming import names, naming

from align.arena.table import win_rates
from align.arena.votes import FEEDBACK, PREFERENCES, VOTES, Identity, Side, Vote, VoteFiles
from align.data.formats.feedback import DETECTED, Feedback, unpaired
from align.data.formats.pairs import PAIR_FORMATS, Pair
from align.data.readers import BadRecords, find_sources
from align.data.tokenize import encode_records

PROMPT = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
ONE, OTHER = Identity("one", "1" * 64), Identity("other", "2" * 64)


def cast(choice, *, round=0, left=ONE, right=OTHER, responses=("good", "bad"), prompt=PROMPT):
    sides = [
        Side(*model, response=response, finished=True, sampling={"temperature": 1.0}, seed=5)
        for model, response in zip((left, right), responses, strict=True)
    ]
    return Vote("2026-11-30T00:00:00+00:00", round, 0, prompt, *sides, choice)


def read(path, formats):
    """As the data modules read a file whose format they detect."""
    bad = BadRecords("stop", hint="")
    return list(encode_records(find_sources(str(path)), bad, format=None, formats=formats, encode=lambda each: each))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_reads_the_files_as_they_are(tmp_path):
    files = VoteFiles(tmp_path)
    for choice in ("left", "right", "tie", "both_bad"):
        files.add(cast(choice))
    pairs = [Pair(PROMPT, "good", "bad"), Pair(PROMPT, "bad", "good")]
    assert read(tmp_path / PREFERENCES, PAIR_FORMATS) == pairs
    assert read(tmp_path / PREFERENCES, DETECTED) == pairs, "KTO takes pairs apart"
    labels = [("good", True), ("bad", False), ("good", False), ("bad", True), ("good", False), ("bad", False)]
    feedback = [each for found in read(tmp_path / FEEDBACK, DETECTED) for each in unpaired(found)]
    assert feedback == [Feedback(PROMPT, text, label) for text, label in labels]
    models = [(record["model_chosen"], record["model_rejected"]) for record in lines(tmp_path / PREFERENCES)]
    assert models == [("one", "other"), ("other", "one")]


@pytest.mark.parametrize(
    ("responses", "choice", "labels"),
    [
        (("same", "same"), "left", []),
        (("same", "same"), "both_bad", [("same", False)]),
        ((" ", "said"), "right", [("said", True)]),
        ((" ", "said"), "left", [("said", False)]),
        (("", "\n"), "both_bad", []),
    ],
)
def test_blank_and_equal_responses_are_no_pairs(tmp_path, responses, choice, labels):
    """The readers refuse such pairs and blank responses, so they are in votes.jsonl alone."""
    VoteFiles(tmp_path).add(cast(choice, responses=responses))
    assert (tmp_path / PREFERENCES).read_text() == ""
    found = [(record["completion"][0]["content"], record["label"]) for record in lines(tmp_path / FEEDBACK)]
    assert found == labels
    assert len(lines(tmp_path / VOTES)) == 1


def test_a_restart_continues(tmp_path):
    votes = [cast("left"), cast("tie", round=1)]
    for vote in votes:
        VoteFiles(tmp_path).add(vote)
    again = VoteFiles(tmp_path)
    assert again.votes == votes
    assert again.repaired == []


def test_a_kill_leaves_nothing_half_written(tmp_path):
    """At any byte of the second vote's line: it is dropped, or complete but for the line's end and kept."""
    first, second = cast("left"), cast("right", round=1)
    VoteFiles(tmp_path).add(first)
    whole = (tmp_path / VOTES).read_bytes()
    line = json.dumps(lines(tmp_path / VOTES)[0] | {"round": 1, "vote": "right"}).encode()
    for end in (1, len(line) // 2, len(line) - 1, len(line)):
        (tmp_path / VOTES).write_bytes(whole + line[:end])
        files = VoteFiles(tmp_path)
        kept = end == len(line)
        assert files.votes == ([first, second] if kept else [first])
        assert any(names(text, tmp_path / VOTES, end) for text in files.repaired) != kept
        assert (tmp_path / VOTES).read_bytes() == whole + (line + b"\n" if kept else b"")
        assert len(lines(tmp_path / PREFERENCES)) == len(files.votes)


@pytest.mark.parametrize("name", [PREFERENCES, FEEDBACK])
def test_training_data_that_was_left_behind_is_rewritten(tmp_path, name):
    VoteFiles(tmp_path).add(cast("left"))
    expected = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(expected[:-9])
    assert any(str(tmp_path / name) in line for line in VoteFiles(tmp_path).repaired)
    assert (tmp_path / name).read_bytes() == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vote": "maybe"}, ["vote", "maybe", "both_bad"]),
        ({"prompt": "a"}, ["prompt", "list"]),
        ({"left": None}, ["left", "dict"]),
        ({"right": {"model": 3}}, ["right", "model", 3]),
    ],
)
def test_damage_is_refused_in_one_line(tmp_path, change, named):
    for number in range(2):
        VoteFiles(tmp_path).add(cast("left", round=number))
    records = lines(tmp_path / VOTES)
    content = "".join(json.dumps(record) + "\n" for record in (records[0], records[1] | change))
    (tmp_path / VOTES).write_text(content)
    with pytest.raises(ValueError, match=naming(f"{tmp_path / VOTES}:2", *named)):
        VoteFiles(tmp_path)
    assert (tmp_path / VOTES).read_text() == content
    (tmp_path / VOTES).write_text("{\n" + content)
    with pytest.raises(ValueError, match=naming(f"{tmp_path / VOTES}:1", "JSON")):
        VoteFiles(tmp_path)


def test_a_vote_that_cannot_be_written_leaves_the_files(tmp_path, monkeypatch):
    """The second flush is that of preferences.jsonl: the vote counts, and the file catches up with the next vote."""
    files, flush, failing = VoteFiles(tmp_path), os.fsync, [True]

    def fsync(descriptor):
        if failing.pop(0) if failing else False:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        files.add(cast("left"))
    assert (files.votes, (tmp_path / VOTES).read_bytes()) == ([], b"")
    failing[:] = [False, True]
    files.add(cast("left"))
    assert len(lines(tmp_path / VOTES)) == 1
    assert lines(tmp_path / PREFERENCES) == []
    files.add(cast("right", round=1))
    assert len(lines(tmp_path / PREFERENCES)) == 2
    assert VoteFiles(tmp_path).repaired == []


def test_win_rate_by_hand():
    """One wins twice on a prompt, on either side, and loses once on another: 2/3.

    The interval resamples two prompts of 2/3 + (2 - 2 x 2/3) / (3/2) = 10/9 and 2/3 + (0 - 2/3) / (3/2) = 2/9. A
    quarter of the means is 2/9, a quarter 10/9, which is clipped to 1.
    """
    other = [{"role": "user", "content": "b"}]
    votes = [
        cast("left"),
        cast("right", left=OTHER, right=ONE),
        cast("right", prompt=other),
        cast("left", left=ONE._replace(weights="3" * 64)),
    ]
    (row,) = win_rates([ONE, OTHER], votes)
    counts = {"models": ["one", "other"], "votes": 3, "wins": [2, 1], "ties": 0, "both_bad": 0, "prompts": 2}
    estimate = {"win_rate": 2 / 3, "low": 2 / 9, "high": 1.0, "ahead": None}
    assert {name: row[name] for name in counts} == counts
    assert {name: row[name] for name in estimate} == pytest.approx(estimate)
    (row,) = win_rates([ONE, OTHER], [cast("tie"), cast("both_bad"), cast("left")])
    assert (row["ties"], row["both_bad"], row["win_rate"]) == (1, 1, pytest.approx(2 / 3))
    (row,) = win_rates([ONE, OTHER], [])
    assert "win_rate" not in row


def test_an_advantage_is_shown_from_twenty_prompts():
    votes = [cast("right", prompt=[{"role": "user", "content": str(number)}]) for number in range(20)]
    assert [row["ahead"] for row in win_rates([ONE, OTHER], votes)] == ["other"]
    assert [row["ahead"] for row in win_rates([ONE, OTHER], votes[1:])] == [None]
    three = [*win_rates([ONE, OTHER, Identity("third", "3" * 64)], [replace(votes[0], vote="tie")])]
    assert [(row["models"], row["votes"]) for row in three] == [
        (["one", "other"], 1), (["one", "third"], 0), (["other", "third"], 0)
    ]  # fmt: skip
