"""The files: formats, splits, and the same bytes everywhere."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from align.sandbox import SandboxConfig, gold_reward, words, write_sandbox
from align.sandbox.phrasings import read_prompt

SMALL = SandboxConfig(
    **{field.name: 60 for field in fields(SandboxConfig) if isinstance(field.default, int)},  # type: ignore[arg-type]
)
QUIZ = re.compile(r"(\w+ (yes|no)(, |\.))+")
# What seed 0 and 60 records a file gave when this was written. Changes of the world change it, and must be meant.
FINGERPRINT = "7950b05f86aa7ddaa76d2d6c57dc753c54ffdcfa4bb781aa16cdee0c2e761cf5"


def fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sandbox")
    write_sandbox(out, seed=0, config=SMALL)
    return out


def test_bytes_are_pinned(world: Path) -> None:
    assert fingerprint(world) == FINGERPRINT


@pytest.mark.slow
def test_the_card_names_the_default_files(tmp_path: Path) -> None:
    write_sandbox(tmp_path, seed=0)
    card = (Path(__file__).resolve().parents[2] / "data_cards" / "sandbox.md").read_text(encoding="utf-8")
    for path in tmp_path.glob("*.jsonl"):
        content = path.read_bytes()
        assert f"- `{path.name}` {hashlib.sha256(content).hexdigest()}" in card
        assert f"| {len(records(path)):,} | {len(content):,} |" in card


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_writes_the_same_bytes(world: Path, tmp_path: Path, hash_seed: str) -> None:
    code = (
        "import sys; from dataclasses import fields; from pathlib import Path\n"
        "from align.sandbox import SandboxConfig, write_sandbox\n"
        "sizes = {field.name: 60 for field in fields(SandboxConfig) if isinstance(field.default, int)}\n"
        "write_sandbox(Path(sys.argv[1]), seed=0, config=SandboxConfig(**sizes))\n"
        "assert 'torch' not in sys.modules, 'the sandbox must not import torch'\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed}
    )
    assert fingerprint(tmp_path) == fingerprint(world)


def test_another_seed_writes_other_records(world: Path, tmp_path: Path) -> None:
    write_sandbox(tmp_path, seed=1, config=SMALL)
    for path in world.glob("*.jsonl"):
        assert path.read_bytes() != (tmp_path / path.name).read_bytes()


def test_more_records_keep_the_first_ones(world: Path, tmp_path: Path) -> None:
    write_sandbox(tmp_path, seed=0, config=replace(SMALL, sft_chats=80))
    longer, shorter = (records(folder / "sft_train.jsonl") for folder in (tmp_path, world))
    assert (len(longer), len(shorter)) == (80, 60)
    assert longer[:60] == shorter


def test_formats(world: Path) -> None:
    def is_turn(turns: Any, role: str) -> bool:
        return [turn["role"] for turn in turns] == [role] and all(turn["content"].strip() for turn in turns)

    for name in ("pretrain", "pretrain_val"):
        for record in records(world / f"{name}.jsonl"):
            assert record.keys() == {"text"}
            assert len(record["text"].split("\n")) == 3
    for name in ("sft_train", "sft_val"):
        for record in records(world / f"{name}.jsonl"):
            assert record.keys() == {"messages"}
            assert is_turn(record["messages"][:1], "user")
            assert is_turn(record["messages"][1:], "assistant")
    for name in ("preferences_train", "preferences_val"):
        for record in records(world / f"{name}.jsonl"):
            assert record.keys() == {"prompt", "chosen", "rejected"}
            assert is_turn(record["prompt"], "user")
            assert is_turn(record["chosen"], "assistant")
            assert is_turn(record["rejected"], "assistant")
            assert record["chosen"] != record["rejected"]
    for name in ("prompts_train", "prompts_val", "prompts_test"):
        for record in records(world / f"{name}.jsonl"):
            assert record.keys() == {"prompt"}
            assert is_turn(record["prompt"], "user")


def test_sandbox_json_tells_what_was_written(world: Path) -> None:
    summary = json.loads((world / "sandbox.json").read_text())
    assert summary["seed"] == 0
    assert SandboxConfig(**summary["config"]) == SMALL
    assert summary["records"] == {path.name: len(records(path)) for path in world.glob("*.jsonl")}


def test_no_combination_is_in_two_splits(world: Path) -> None:
    """A combination is the hero's kind, the object and the place; titles that name all three count too."""
    combinations: dict[str, set[tuple[str, str, str]]] = {"train": set(), "val": set(), "test": set()}
    for path in world.glob("*.jsonl"):
        split = next((split for split in ("val", "test") if path.stem.endswith(split)), "train")
        for record in records(path):
            text = record.get("text", "").split("\n")[0] or record.get("messages", record.get("prompt"))[0]["content"]
            try:
                asked = read_prompt(text)
            except ValueError:
                assert "text" in record, text
                continue
            combinations[split].add((asked.kind, asked.object, asked.place))
    assert all(len(found) > 25 for found in combinations.values())
    assert not combinations["train"] & (combinations["val"] | combinations["test"])
    assert not combinations["val"] & combinations["test"]


def test_pretraining_text_is_clean_and_demonstrations_are_mixed(tmp_path: Path) -> None:
    write_sandbox(tmp_path, seed=2, config=replace(SMALL, pretrain_documents=300, sft_chats=600, title_drop_rate=0.0))
    clean = []
    for record in records(tmp_path / "pretrain.jsonl"):
        title, *stories = record["text"].split("\n")
        clean += [gold_reward(title, story).total for story in stories if not QUIZ.fullmatch(story)]
    assert sum(clean) / len(clean) > 0.99
    mixed = [
        gold_reward(*(message["content"] for message in record["messages"])).total
        for record in records(tmp_path / "sft_train.jsonl")
    ]
    assert 0.5 < sum(mixed) / len(mixed) < 0.65
    assert min(mixed) < 0.35
    assert max(mixed) > 0.7


def test_quizzes_tell_the_truth_about_the_text_above(tmp_path: Path) -> None:
    """A word is told by itself, a mood's by any of its words; a little under half are yes, and the first is a name."""
    write_sandbox(tmp_path, seed=4, config=replace(SMALL, pretrain_documents=400, quiz_rate=1.0, title_drop_rate=0.0))
    moods = {word: mood for mood, shown in words.MOODS.items() for word in (mood, *shown)}
    told, above_stories = [], 0
    for record in records(tmp_path / "pretrain.jsonl"):
        lines = record["text"].split("\n")
        (place,) = (number for number, line in enumerate(lines) if QUIZ.fullmatch(line))
        above = re.findall(r"[a-z]+", " ".join(lines[:place]).lower())
        above_stories += place == 2
        asked = read_prompt(lines[0])
        items = [item.split() for item in lines[place].rstrip(".").split(", ")]
        assert len({word for word, _ in items}) == len(items) == 10
        assert items[0][0] in words.NAMES
        for word, answer in items:
            if word in words.LENGTHS:
                true = words.LENGTHS[word] == asked.length
            elif word in moods:
                true = moods[word] == asked.mood
            else:
                true = word.lower() in above
            assert answer == ("yes" if true else "no"), (word, record)
            told.append(true)
    # Fair coins, but a word that was taken is drawn again, and those that the text tells are fewer.
    assert 0.38 < sum(told) / len(told) < 0.5
    assert 150 < above_stories < 250


def test_no_quiz_without_its_rate(tmp_path: Path) -> None:
    write_sandbox(tmp_path, seed=4, config=replace(SMALL, quiz_rate=0.0))
    assert not any(
        QUIZ.fullmatch(line) for record in records(tmp_path / "pretrain.jsonl") for line in record["text"].split("\n")
    )


def test_labels_follow_gold_as_often_as_the_temperature_says(tmp_path: Path) -> None:
    """With a cold coin gold decides alone; with a hot one it is a fair coin: 600 flips have a std of 0.02."""

    def agreement(temperature: float) -> float:
        folder = tmp_path / str(temperature)
        write_sandbox(folder, seed=3, config=replace(SMALL, preference_pairs=600, label_temperature=temperature))
        gaps = []
        for record in records(folder / "preferences_train.jsonl"):
            prompt, chosen, rejected = (record[key][0]["content"] for key in ("prompt", "chosen", "rejected"))
            gaps.append(gold_reward(prompt, chosen).total - gold_reward(prompt, rejected).total)
        untied = [gap > 0 for gap in gaps if gap]
        return sum(untied) / len(untied)

    assert agreement(1e-6) == 1.0
    assert abs(agreement(1e6) - 0.5) < 0.08


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("slip_rate", 1.5, r"slip_rate.*1\.5.*\[0, 1\]"),
        ("quiz_rate", 2.0, r"quiz_rate.*2\.0.*\[0, 1\]"),
        ("title_drop_rate", -0.1, r"title_drop_rate.*-0\.1.*\[0, 1\]"),
        ("label_temperature", 0.0, r"label_temperature.*0\.0"),
        ("prompts", -1, "prompts.*-1"),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SandboxConfig(**{setting: value})  # type: ignore[arg-type]
