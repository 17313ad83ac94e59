"""Demonstrations: the edit of every trained kind on drafts written by hand, and what holds for any draft."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import error_line

from align.cli import main
from align.sandbox.constraints import (
    HELD_OUT,
    KINDS,
    TRAINED,
    Constraint,
    Draft,
    Tally,
    demonstrations,
    edited,
    from_record,
    read_prompt,
)
from align.sandbox.constraints.editing import split_sentences, tidied, trimmed
from align.sandbox.constraints.english import headline
from align.sandbox.constraints.instructions import requests
from align.sandbox.constraints.prompts import sample_constraints, write_prompt

ADVICE = "Give some brief advice on packing a suitcase."
TEXT = "Roll your clothes, such as shirts, and keep two bags for shoes. Weigh the case before you leave home."

# Settings, a draft that fails, and the edited text or what it must match.
EDITS: dict[str, tuple[dict[str, Any], str, str]] = {
    "words_at_most": ({"most": 10}, TEXT, r"Roll your clothes, such as shirts, and keep two bags\."),
    "words_at_least": ({"least": 25}, TEXT, re.escape(TEXT) + r"( [A-Z][^.]*\.)+"),
    "words_between": ({"least": 5, "most": 8}, TEXT, r"Roll your clothes, such as shirts\."),
    "one_sentence": ({}, TEXT, r"Roll your clothes, such as shirts, and keep two bags for shoes\."),
    "sentences": ({"count": 3}, TEXT, re.escape(TEXT) + r" [A-Z][^.]*\."),
    "paragraphs": ({"count": 2}, TEXT, r"Roll .* shoes\.\n\nWeigh .* home\."),
    "lines": ({"count": 3}, TEXT, r"Roll .* shoes\.\nWeigh .* home\.\n[A-Z].*\."),
    "bullets": ({"count": 2}, TEXT, r"\* Roll .* shoes\.\n\* Weigh .* home\."),
    "numbered_list": ({"count": 2}, TEXT, r"1\. Roll .* shoes\.\n2\. Weigh .* home\."),
    "title": ({}, TEXT, r"<<Packing a Suitcase>>\n" + re.escape(TEXT)),
    "heading": ({}, TEXT, r"# Packing a Suitcase\n" + re.escape(TEXT)),
    "json_object": ({}, TEXT, re.escape(json.dumps({"advice": TEXT}))),
    "quoted": ({}, 'Say "yes" to light bags.', "\"Say 'yes' to light bags.\""),
    "highlights": ({"least": 2}, TEXT, r"Roll your \*clothes\*, such as \*shirts\*, and .*"),
    "lowercase": ({}, TEXT, re.escape(TEXT.lower())),
    "uppercase": ({}, TEXT, re.escape(TEXT.upper())),
    "include": ({"word": "list"}, TEXT, re.escape(TEXT[:-1]) + r"(\.|, and) .*\blist\."),
    "include_both": ({"first": "list", "second": "space"}, TEXT, re.escape(TEXT[:-1]) + r".*\blist\b.*\bspace\b.*\."),
    "forbid": ({"word": "shoes"}, TEXT, r"Weigh the case before you leave home\."),
    "forbid_common": (
        {"word": "you"},
        "When you pack, you fold your shirts.",
        "When we pack, we fold our shirts.",
    ),
    "first_word": ({"word": "Honestly"}, "You need a small case.", "Honestly, you need a small case.|Honestly you .*"),
    "ends_with": ({"phrase": "Take care"}, TEXT, re.escape(TEXT) + r" Take care\."),
    "postscript": ({}, TEXT, re.escape(TEXT) + r"\n\nP\.S\. [A-Z].*\."),
    "ends_with_question": ({}, TEXT, re.escape(TEXT) + r" [A-Z].*\?"),
    "ends_with_exclamation": ({}, TEXT, re.escape(TEXT[:-1]) + "!"),
    "exclamations": ({"least": 2}, TEXT, r"Roll .* shoes! Weigh .* home!"),
    "parentheses": ({"least": 1}, TEXT, r"Roll your clothes \(such as shirts\), and .*"),
    "letter_at_most": ({"letter": "k", "most": 0}, TEXT, r"Weigh the case before you leave home\."),
    "numbers_at_least": ({"least": 1}, TEXT, re.escape(TEXT.replace("two", "2"))),
    "repeat_request": ({"request": ADVICE}, TEXT, re.escape(f"{ADVICE}\n{TEXT}")),
    "two_answers": ({}, TEXT, r"Roll .* shoes\.\n\*\*\*\nWeigh .* home\."),
}


def test_every_trained_kind_has_an_edit() -> None:
    assert set(EDITS) == {kind.kind for kind in TRAINED}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("seed", range(4))
def test_edits_of_drafts_written_by_hand(kind: str, seed: int) -> None:
    given_settings, draft, wanted = EDITS[kind]
    constraint = from_record({"kind": kind, **given_settings})
    assert not constraint.check(draft)
    text = constraint.edit(draft, ADVICE, Random(seed))
    assert constraint.check(text)
    if kind == "sentences":  # the last sentence may be the draft's own
        assert len(split_sentences(text)) == 3
    else:
        assert re.fullmatch(wanted, text), text
    assert constraint.edit(draft, ADVICE, Random(seed)) == text


def test_held_out_kinds_have_no_edit() -> None:
    for kind in HELD_OUT:
        constraint = kind.sample(Random(0), requests("test")[0])
        assert constraint.edit(TEXT, ADVICE, Random(0)) == TEXT


@pytest.mark.parametrize("kind", TRAINED, ids=lambda kind: kind.kind)
def test_an_ordinary_draft_can_be_edited_for_any_settings(kind: type[Constraint]) -> None:
    draft = "Take your time, which helps, and enjoy it. Most people learn by doing. Ask a friend for help"
    for number in range(30):
        rng, known = Random(number), requests("train")
        request = known[number * 7 % len(known)]
        constraint = kind.sample(rng, request)
        text = edited(write_prompt(rng, request, [constraint]), draft, rng)
        assert text is not None, constraint
        assert constraint.check(text)


def _sampled(number: int, count: int) -> tuple[str, str]:
    """A prompt of trained kinds and its request."""
    rng, known = Random(number), requests("train")
    request = known[number % len(known)]
    constraints = sample_constraints(rng, request, TRAINED[number % len(TRAINED)], TRAINED, count=count)
    return write_prompt(rng, request, constraints), request.text


_MARKS = ("\n", "\n\n", "*", "-", "1.", "2.", "#", "**", '"', "'", "<<x>>", "“quoted”", "(why)", "I'm", "list.")
_WORDS = st.sampled_from((*_MARKS, "the", "a", "you", "and", "it", "is", "water", "Water", "shoes,", "two", "When"))
_DRAFTS = st.lists(_WORDS, max_size=40).map(" ".join) | st.text(max_size=80)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5_000), st.integers(1, 2), _DRAFTS)
def test_an_edited_draft_satisfies_everything_or_is_none(number: int, count: int, draft: str) -> None:
    prompt, _ = _sampled(number, count)
    text = edited(prompt, draft, Random(number))
    assert text is None or all(constraint.check(text) for constraint in read_prompt(prompt).constraints)
    assert edited(prompt, draft, Random(number)) == text


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5_000))
def test_the_words_of_a_draft_are_not_lost(number: int) -> None:
    """An edit of one constraint that only adds or marks something keeps every sentence in its order."""
    keeping = ("title", "heading", "json_object", "quoted", "lowercase", "uppercase", "include", "include_both")
    keeping += ("ends_with", "postscript", "ends_with_question", "exclamations", "repeat_request", "words_at_least")
    kind = KINDS[keeping[number % len(keeping)]]
    known = requests("train")
    request = known[number % len(known)]
    constraint = kind.sample(Random(number), request)
    draft = "Choose a blue one for every day. It never stays in the cupboard."
    text = edited(write_prompt(Random(number), request, [constraint]), draft, Random(number))
    assert text is not None
    written = re.findall(r"\w+", text.lower())
    rest = iter(written)
    assert all(word in rest for word in re.findall(r"\w+", draft.lower()))
    if kind.kind == "repeat_request":
        assert text.startswith(request.text)


def test_a_draft_is_tidied() -> None:
    """Without sentences about the task, the request itself, repetitions and an unfinished end."""
    draft = f'{ADVICE} Here is my answer:\n“Pack light.” Pack light. The word "list" is one. Roll shirts. Then you'
    assert tidied(draft, ADVICE) == '"Pack light." Roll shirts.'
    assert tidied("1. Pack light bags.\n2. I am an AI assistant.\n3. Roll your shirts", ADVICE) == (
        "1. Pack light bags.\n2. Roll your shirts."
    )
    assert tidied("Roll your", ADVICE) == ""


def test_sentences_keep_their_marks() -> None:
    assert split_sentences('1. Buy oil. Say "Now!" Leave at 3.30') == ["1. Buy oil.", 'Say "Now!"', "Leave at 3.30"]


@pytest.mark.parametrize(("most", "wanted"), [(2, "Go now. Bob\nSit."), (1, "Go now.\nSit.")])
def test_a_line_without_a_full_stop_ends_a_sentence(most: int, wanted: str) -> None:
    """Across the lines the worst sentence would be "Bob / Buy bread for Bob.", which no line has."""
    constraint = KINDS["letter_at_most"](letter="b", most=most)
    assert constraint.edit("Go now. Bob\nBuy bread for Bob. Sit.", ADVICE, Random(0)) == wanted


@pytest.mark.parametrize(
    ("most", "wanted"),
    [(60, "Go out. Take a coat, because it rains."), (20, "Go out."), (6, "Go out. Take a coat, because it rains.")],
)
def test_a_text_is_trimmed_at_a_sentence(most: int, wanted: str) -> None:
    """Characters at most; a text that cannot be trimmed stays."""
    assert trimmed("Go out. Take a coat, because it rains.", lambda text: len(text) <= most) == wanted


@pytest.mark.parametrize(
    ("request_text", "wanted"),
    [
        (ADVICE, "Packing a Suitcase"),
        ("Tell me one interesting thing about a lighthouse.", "A Lighthouse"),
        ("Write a short note to a friend who is ill.", "A Note to a Friend"),
        ("Sing.", "A Short Answer"),
    ],
)
def test_titles_come_from_the_request(request_text: str, wanted: str) -> None:
    assert headline(request_text) == wanted


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[Any]], Path]:
    def to_file(drafts: list[Any]) -> Path:
        file = tmp_path / "drafts.jsonl"
        file.write_text("".join(json.dumps(draft) + "\n" for draft in drafts))
        return file

    return to_file


QUOTED = f"{ADVICE} Wrap your entire answer in double quotation marks."
DRAFTS = [{"prompt": QUOTED, "text": text} for text in (TEXT, f'"{TEXT} Do not hurry."', "")]


def test_the_command_writes_chats_and_counts(write: Callable[[list[Any]], Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "train.jsonl"
    assert main(["sandbox", "demonstrations", "--drafts", str(write(DRAFTS)), "--out", str(out)]) == 0
    chats = [json.loads(line)["messages"] for line in out.read_text().splitlines()]
    assert [[turn["role"] for turn in chat] for chat in chats] == [["user", "assistant"]] * 2
    assert [chat[0]["content"] for chat in chats] == [QUOTED] * 2
    assert [chat[1]["content"] for chat in chats] == [f'"{TEXT}"', f'"{TEXT} Do not hurry."']
    meta = json.loads(out.with_name("train.jsonl.meta.json").read_text())
    assert (meta["what"], meta["rate"], meta["seed"]) == ("edited drafts", 1, 0)
    assert meta["counts"] == {
        "drafts": 3,
        "already_right": 1,
        "edited": 1,
        "left": 0,
        "dropped": 1,
        "dropped_by_kind": {"quoted": 1},
    }


def test_some_drafts_keep_their_mistakes() -> None:
    """200 coins of 0.7: a standard error of 0.032."""
    tally = Tally()
    made = list(demonstrations([Draft(QUOTED, TEXT)] * 200, tally, rate=0.7))
    assert len(made) == 200 == tally.edited + tally.left
    assert sum(text == TEXT for _, text in made) == tally.left
    assert abs(tally.edited / 200 - 0.7) < 0.12


def test_drafts_of_several_compressed_files(tmp_path: Path) -> None:
    for number, draft in enumerate(DRAFTS):
        (tmp_path / f"{number}.json.gz").write_bytes(gzip.compress(json.dumps([draft]).encode("utf-16")))
    out = tmp_path / "out.jsonl"
    assert main(["sandbox", "demonstrations", "--drafts", str(tmp_path / "*.gz"), "--out", str(out)]) == 0
    meta = json.loads(out.with_name("out.jsonl.meta.json").read_text())
    assert meta["counts"]["drafts"] == 3
    assert [(Path(draft["file"]).name, len(draft["sha256"])) for draft in meta["drafts"]] == [
        (f"{number}.json.gz", 64) for number in range(3)
    ]


@pytest.mark.parametrize("drafts", [[{"prompt": QUOTED}], [{"prompt": QUOTED, "text": 3}], ["text"]])
def test_a_file_of_something_else_is_an_error(
    drafts: list[Any], write: Callable[[list[Any]], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sandbox", "demonstrations", "--drafts", str(write(drafts)), "--out", str(tmp_path / "a")]) == 1
    error_line(capsys, "drafts.jsonl", 1)
    assert not (tmp_path / "a").exists()


def test_a_rate_is_a_probability(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "demonstrations", "--drafts", "a", "--out", str(tmp_path / "b"), "--rate", "1.5"]) == 2
    error_line(capsys, "rate", 1.5)
