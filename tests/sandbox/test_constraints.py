"""Constraints: every check against responses written by hand, the prompts that state them, and the files."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from naming import naming

from align.sandbox.constraints import (
    HELD_OUT,
    KINDS,
    TRAINED,
    Constraint,
    ConstraintsConfig,
    from_record,
    read_prompt,
    verdicts,
    write_constraints,
)
from align.sandbox.constraints.constraint import (
    NUMBER_WORDS,
    Request,
    compatible,
    number_of_words,
    occurrences,
    sentences,
)
from align.sandbox.constraints.instructions import requests
from align.sandbox.constraints.prompts import write_prompt

SMALL = ConstraintsConfig(prompts=150, prompts_val=30, prompts_test=60, prompts_heldout_kinds=60)
# What seed 0 and these sizes gave when this was written. Changes of the prompts change it, and must be meant.
FINGERPRINT = "9421159840f08d0eb97241b4201d78b327df45a8c755649dc27a9bed84887ff6"

CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "words_at_most": ({"most": 3}, ("One two three.", "don't - stop"), ("One two three four.",)),
    "words_at_least": ({"least": 3}, ("One two three.", "a b c d"), ("One two - !",)),
    "words_between": ({"least": 2, "most": 3}, ("Two words.", "Now three words."), ("One.", "These are four words.")),
    "one_sentence": ({}, ("It rains.", "no full stop", "At 3.30 it rains (a lot)."), ("It rains. I stay.", "No! Yes!")),
    "sentences": ({"count": 2}, ("It rains. I stay.", 'He said "Go!" Then he left'), ("It rains.", "A. B. C.", "1.")),
    "sentences_at_most": ({"most": 2}, ("It rains.", "It rains. I stay!"), ("It rains. I stay. Why?",)),
    "paragraphs": (
        {"count": 2},
        ("One.\n\nTwo.", "One\nstill one.\n \nTwo."),
        ("One.\nTwo.", "One.\n\nTwo.\n\nThree."),
    ),
    "lines": ({"count": 3}, ("a\nb\nc", "a\n\nb\n\nc"), ("a\nb", "a b c")),
    "bullets": ({"count": 2}, ("* a\n* b", "Here:\n- a\n- b\nDone."), ("* a", "* a\n* b\n* c", "*a*\n*b*", "a\nb")),
    "numbered_list": (
        {"count": 2},
        ("1. a\n2. b", "Here:\n1) a\n2) b"),
        ("1. a\n2. b\n3. c", "2. a\n1. b", "1. a", "1.a\n2.b"),
    ),
    "title": ({}, ("<<My day>>\nIt rained.", "I call it <<Rain>>"), ("<My day>", "<<>> It rained.", "My day")),
    "heading": (
        {},
        ("# Rain\nIt fell.", "## Rain\n\nIt fell."),
        ("Rain\nIt fell.", "# Rain", "It fell.\n# Rain", "#Rain\nIt fell."),
    ),
    "json_object": ({}, ('{"a": 1}', '```json\n{"a": [1]}\n```'), ("{}", "[1]", '{"a": 1} done', "{a: 1}", '{"a": 1')),
    "quoted": ({}, ('"It rains."', "“It rains.”"), ('"It" rains', 'It "rains"', '"', '""')),
    "highlights": ({"least": 2}, ("*one* and *two*", "**one** and *two words*"), ("*one*", "* one\n* two", "one two")),
    "placeholders": (
        {"least": 2},
        ("Dear [name], come to [place].",),
        ("Dear [name].", "[name] [name]", "[] []", "Dear name"),
    ),
    "lowercase": ({}, ("it rains, i stay.",), ("It rains.", "123")),
    "uppercase": ({}, ("IT RAINS!",), ("IT RAINs!", "123")),
    "capital_words": ({"least": 2}, ("It is VERY, VERY wet.",), ("It is VERY wet.", "I am A cat.")),
    "include": ({"word": "sea"}, ("The sea.", "SEA!"), ("The season.", "The seas.")),
    "include_both": ({"first": "sea", "second": "sun"}, ("Sun and sea.",), ("The sea.", "The sun.", "Seas and suns.")),
    "include_times": ({"word": "sea", "least": 2}, ("Sea, sea.",), ("The sea.", "Sea and seas.")),
    "forbid": ({"word": "sea"}, ("The season.",), ("The sea.", "THE SEA")),
    "forbid_common": ({"word": "and"}, ("Sand or land.",), ("Salt and oil.",)),
    "first_word": ({"word": "Today"}, ("Today it rains.", '"today," he said'), ("It rains today.", "Todays news")),
    "begins_with": (
        {"phrase": "To be honest"},
        ("To be honest, no.", "to be honest"),
        ("Honestly, no.", "I, to be honest, do."),
    ),
    "ends_with": (
        {"phrase": "Take care"},
        ("Bye. Take care.", "Bye, take care!"),
        ("Take care, bye.", "I take careful"),
    ),
    "last_word": ({"word": "home"}, ("I go home.", 'He said "home!"'), ("I go home now.", "My new homehome")),
    "postscript": (
        {},
        ("Bye.\nP.S. Call me.", "Bye.\n\nP. S. Call."),
        ("Bye.", "P.S. Call me.", "Bye. P.S. Call.", "Bye.\nP.S.", "Bye.\nP.S. Call.\nBye."),
    ),
    "no_commas": ({}, ("It rains.",), ("Yes, it rains.",)),
    "ends_with_question": ({}, ("Is it late?", 'He asked "Why?"'), ("Why? Because.", "It is late.")),
    "ends_with_exclamation": ({}, ("Go on!", 'He said "Go!"'), ("Go! Now.", "Go?")),
    "exclamations": ({"least": 2}, ("Hey! You!", "Hey!!"), ("Hey!", "Hey.")),
    "parentheses": ({"least": 2}, ("One (a) and two (b c).",), ("One (a).", "() ()", "a) b)")),
    "letter_at_most": ({"letter": "b", "most": 1}, ("A bee.", "No."), ("Bob.", "A big bee.")),
    "letter_at_least": ({"letter": "b", "least": 2}, ("Bob.", "A big bee."), ("A bee.", "No.")),
    "numbers_at_least": (
        {"least": 2},
        ("3 cats, 12 dogs.", "From 1.5 to 2."),
        ("1,000 cats.", "Three cats, two dogs."),
    ),
    "repeat_request": (
        {"request": "Describe a cat."},
        ("Describe a cat. It has fur.", '"describe a  cat." It has fur.'),
        ("Describe a cat.", "It has fur. Describe a cat.", "Describe the cat. It has fur."),
    ),
    "two_answers": (
        {},
        ("One.\n***\nTwo.", "A ****** B"),
        ("One.", "One. ***", "One. *** One.", "A *** B *** C", "A ** B"),
    ),
}


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def samples(kind: type[Constraint]) -> list[Constraint]:
    """Constraints of a kind, with many settings."""
    known = requests("train")
    return [kind.sample(Random(f"{kind.kind}/{number}"), known[number * 7 % len(known)]) for number in range(30)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The records of the default files by split, for a seed of their own."""
    out = tmp_path_factory.mktemp("constraints")
    write_constraints(out, seed=7)
    found = [record for path in sorted(out.glob("*.jsonl")) for record in records(path)]
    return {
        split: [record for record in found if record["split"] == split]
        for split in ("train", "validation", "test", "heldout_kinds")
    }


def test_every_kind_has_cases() -> None:
    assert list(CASES) == list(dict.fromkeys(CASES))
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_checks_of_responses_written_by_hand(kind: str) -> None:
    settings, passing, failing = CASES[kind]
    constraint = from_record({"kind": kind, **settings})
    for response in passing:
        assert constraint.check(response), response
        assert constraint.check(f" \n{response}\n\n"), response
    for response in (*failing, "", " \n"):
        assert not constraint.check(response), response


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_phrasing_states_every_setting_and_is_read_back(kind: type[Constraint]) -> None:
    for constraint in samples(kind):
        for text in constraint.describe():
            for value in asdict(constraint).values():
                stated = NUMBER_WORDS[value] if isinstance(value, int) and value <= 10 else str(value)
                assert stated in text
            request = "Describe a cat."
            for prompt in (f"{request} {text}", f"{text}\n{request}"):
                assert read_prompt(prompt) == (request, (constraint,))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_record_names_the_kind_and_its_settings(kind: type[Constraint]) -> None:
    for constraint in samples(kind):
        assert from_record(json.loads(json.dumps(constraint.record()))) == constraint


@pytest.mark.parametrize("record", [{"kind": "rhyme"}, {}, {"kind": "bullets"}, {"kind": "quoted", "count": 2}])
def test_a_record_of_no_constraint_is_an_error(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=naming("constraints")):
        from_record(record)


def test_words_and_sentences() -> None:
    """Bullets are no words, "3.30" ends no sentence, and a number of a list is none."""
    assert number_of_words("* salt - and oil\n1. 'rice'") == 5
    assert sentences('1. Buy oil.\n2. Say "Now!" Leave at 3.30') == ["Buy oil.", 'Say "Now!', "Leave at 3.30"]


def test_compatible_constraints_share_no_claim() -> None:
    one, lower, upper, ends = (KINDS[name] for name in ("words_at_most", "lowercase", "uppercase", "ends_with"))
    assert compatible([one, lower, ends])
    assert not compatible([lower, one, upper])
    assert all(kind.claims for kind in KINDS.values())


def test_no_forbidden_word_is_one_that_another_kind_asks_for() -> None:
    """Forbidden words are common ones or keywords; neither may occur in what a response must begin or end with."""
    keywords = {
        word for split in ("train", "validation", "test") for request in requests(split) for word in request.keywords
    }
    forbidden = keywords | {word for (word,) in KINDS["forbid_common"].choices}
    asked = [text for kind in ("first_word", "ends_with") for (text,) in KINDS[kind].choices]
    assert [(word, text) for word in forbidden for text in asked if occurrences(word, text)] == []


def test_two_constraints_are_checked_one_by_one() -> None:
    prompt = write_prompt(Random(0), Request("Describe a cat.", ()), [KINDS["lowercase"](), KINDS["no_commas"]()])
    assert [(of.kind, of.met) for of in verdicts(prompt, "a cat, with fur")] == [
        ("lowercase", True),
        ("no_commas", False),
    ]


@pytest.mark.parametrize("prompt", ["", "Describe a cat.", "Use no capital letters at all."])
def test_a_prompt_without_constraint_or_request_is_an_error(prompt: str) -> None:
    with pytest.raises(ValueError, match="not a prompt with constraints"):
        verdicts(prompt, "A cat has fur.")


def test_instructions() -> None:
    """At least 150, all different across splits, in whole sentences, with keywords that differ from each other."""
    known = [request for split in ("train", "validation", "test") for request in requests(split)]
    assert len({request.text for request in known}) == len(known) >= 150
    assert min(len(requests(split)) for split in ("train", "validation", "test")) >= 40
    for request in known:
        assert re.fullmatch(r"[A-Z][^\n]*\.", request.text)
        assert len(set(request.keywords)) == len(request.keywords) >= 4


def test_what_the_default_files_hold(written: dict[str, list[dict[str, Any]]]) -> None:
    every = [record for split in written.values() for record in split]
    prompts = [record["prompt"][0]["content"] for record in every]
    assert len(set(prompts)) == len(prompts) >= 2_000
    for record, prompt in zip(every, prompts, strict=True):
        asked = read_prompt(prompt)
        assert [constraint.record() for constraint in asked.constraints] == record["constraints"]
        assert asked.request == record["request"]
        assert compatible(asked.constraints)
    twos = sum(len(record["constraints"]) == 2 for record in every) / len(every)
    # 3,300 coins of 0.3: a standard error of 0.008.
    assert abs(twos - 0.3) < 0.04


def test_splits_share_no_instruction_and_training_no_held_out_kind(written: dict[str, list[dict[str, Any]]]) -> None:
    asked = {split: {record["request"] for record in found} for split, found in written.items()}
    assert not asked["train"] & asked["validation"]
    assert not (asked["train"] | asked["validation"]) & (asked["test"] | asked["heldout_kinds"])
    kinds = {
        split: {of["kind"] for record in found for of in record["constraints"]} for split, found in written.items()
    }
    held_out, trained = ({kind.kind for kind in part} for part in (HELD_OUT, TRAINED))
    assert kinds.pop("heldout_kinds") == held_out
    assert all(found == trained for found in kinds.values())
    assert not held_out & trained
    assert len({kind.group for kind in HELD_OUT}) >= 4
    assert len(KINDS) >= 24
    firsts = Counter(record["constraints"][0]["kind"] for record in written["test"])
    assert max(firsts.values()) - min(firsts.values()) <= 4


def fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def test_bytes_are_pinned_and_another_seed_writes_others(tmp_path: Path) -> None:
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        write_constraints(tmp_path / name, seed=seed, config=SMALL)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") == FINGERPRINT
    assert fingerprint(tmp_path / "c") != FINGERPRINT


def test_more_records_keep_the_first_ones(tmp_path: Path) -> None:
    for name, count in (("few", 60), ("many", 90)):
        write_constraints(tmp_path / name, config=replace(SMALL, prompts=count))
    few, many = (records(tmp_path / name / "prompts_train.jsonl") for name in ("few", "many"))
    assert (len(few), many[:60]) == (60, few)


def test_the_card_names_the_default_files(tmp_path: Path) -> None:
    write_constraints(tmp_path, seed=0)
    card = (Path(__file__).resolve().parents[2] / "data_cards" / "constraints.md").read_text(encoding="utf-8")
    for path in tmp_path.glob("*.jsonl"):
        content = path.read_bytes()
        assert f"- `{path.name}` {hashlib.sha256(content).hexdigest()}" in card
        assert f"| {len(records(path)):,} | {len(content):,} |" in card


@pytest.mark.parametrize(
    ("name", "value"), [("two_constraints_rate", -0.1), ("two_constraints_rate", 1.5), ("prompts", -1)]
)
def test_impossible_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=naming(name, value)):
        ConstraintsConfig(**{name: value})  # type: ignore[arg-type]


def test_the_page_lists_every_kind() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "constraints.md").read_text(encoding="utf-8")
    for kind in KINDS.values():
        assert f"| `{kind.kind}` |" in page
        assert all(f"`{field.name}`" in page for field in fields(kind))
