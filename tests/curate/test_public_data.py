"""The doctor's findings on public files; the expected ones were counted without it."""

from pathlib import Path

import pytest

from align.curate.context import Context, Run
from align.curate.doctor import Diagnosis, Doctor
from align.curate.reading import kind_of, read_splits
from align.data import ChatData, PreferenceData
from align.data.data_module import TokenData
from align.data.formats.chats import PromptCompletion
from align.data.formats.pairs import Alpaca

DATA = Path(__file__).resolve().parents[3] / "shared/data"


def path(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"needs ../shared/data/{name}")
    return str(DATA / name)


def findings(data: TokenData) -> list[Diagnosis]:
    run = Run(context=data.context, on_bad_record=data.on_bad_record, max_epochs=1)
    context = Context("SFT", kind_of(data), read_splits(data, limit=0), data.tokenizer, run)
    return Doctor().examine(context)


def lines(diagnosis: Diagnosis) -> list[str]:
    return [example.where.rpartition(": ")[2] for example in diagnosis.finding.examples]


def test_pairs_of_which_six_are_equal(tokenizer_dir: str):
    """Records 123, 227, 401, ... have the same text twice; five of the last 109 prompts are among those before."""
    file = path("preferences-1100.json")
    data = PreferenceData(tokenizer_dir, file, format=Alpaca(), val_fraction=0.1, context=900, on_bad_record="skip")
    found = {one.check: one for one in findings(data) if one.severity != "note"}
    counts = {name: one.finding.count for name, one in found.items()}
    assert counts == {"DroppedRecords": 6, "EqualResponses": 6, "SplitOverlap": 5}
    assert lines(found["EqualResponses"]) == ["record 123", "record 227", "record 401"]


def test_instructions_with_shared_prompts(tokenizer_dir: str):
    """Five of the last 110 prompts are among those before; records 324 and 493, 6 and 506 nearly agree."""
    data = ChatData(tokenizer_dir, path("instructions-1100.json"), val_fraction=0.1, context=900)
    found = findings(data)
    (warning,) = [one for one in found if one.severity == "warning"]
    assert (warning.check, warning.finding.count, warning.finding.total) == ("SplitOverlap", 5, 110)
    (near,) = [one for one in found if one.check == "NearDuplicates"]
    assert near.finding.count == 2
    assert lines(near) == ["record 324", "record 6"]


def test_word_problems_with_a_character_that_nobody_sees(tokenizer_dir: str):
    """The answer in line 394 has a zero-width space."""
    format = PromptCompletion(prompt="question", completion="answer")
    found = findings(ChatData(tokenizer_dir, path("gsm8k-test.jsonl"), format=format, context=4000))
    assert [one.check for one in found if one.severity != "note"] == []
    (hidden,) = [one for one in found if one.check == "ControlCharacters"]
    assert lines(hidden) == ["line 394"]
    assert hidden.finding.count == 1
