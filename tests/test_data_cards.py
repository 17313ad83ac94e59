"""Every dataset that a recipe makes or names has a card, and every card says what it owes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted(path for path in ROOT.glob("data_cards/*.md") if path.name != "TEMPLATE.md")
OVERLAYS = ("hardware", "algorithms", "engines")
CORPUS = [ROOT / f"recipes/corpus/{name}.yaml" for name in ("clean", "raw", "web", "slurm")]  # they read your own files
RECIPES = sorted(
    path for path in ROOT.glob("recipes/*/*.yaml") if path.parent.name not in OVERLAYS and path not in CORPUS
)
GENERATED = {
    "data clean": "corpus.md",
    "sandbox": "sandbox.md",
    "sandbox constraints": "constraints.md",
    "sandbox demonstrations": "constraints.md",
    "sandbox questions": "games.md",
    "sandbox arithmetic": "games.md",
}
"""Card of what a command writes"""
SHIPPED = {"text.jsonl": "ordinary_text.md"}
YOURS = {"book.txt", "instructions.json", "preferences.json", "held_out.jsonl"}
"""Placeholders for files that the user gives"""

_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?(:[\w.-]+)?")


def headings(path: Path) -> list[str]:
    return [line.lstrip("# ").strip() for line in path.read_text().splitlines() if line.startswith("## ")]


def facts(path: Path) -> dict[str, str]:
    rows = re.findall(r"^\| ([A-Z][\w ]*) \| (.+) \|$", path.read_text(), re.M)
    return dict(rows)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_says_what_the_template_asks_for(card: Path):
    template = ROOT / "data_cards/TEMPLATE.md"
    assert set(headings(template)) <= set(headings(card))
    assert set(facts(template)) <= set(facts(card))
    for heading, text in re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)+)", card.read_text(), re.M):
        assert text.strip(), heading


def named_data(content: Any, variables: dict[str, Any]) -> Iterator[str]:
    """What the data settings of a recipe, or the arguments of a pipeline's stages, name; variables resolved."""
    if "stages" in content:
        for stage in content["stages"].values():
            yield from named_data({"data": {"init_args": stage.get("arguments") or {}}}, variables)
        return
    for key, value in content["data"]["init_args"].items():
        name = key.rpartition(".")[2]
        # In a recipe `prompts` and `texts` are no settings of the data.
        if name in ("train", "validation", "test", "prompts", "texts", "drafts") and value:
            for one in [value] if isinstance(value, str) else value:
                yield re.sub(r"\$\{(\w+)\}", lambda match: str(variables.get(match[1], match[0])), one)


def needed_cards(path: Path) -> set[str]:
    """Cards of all data that a recipe names; fails on data that nothing explains."""
    file = path.parent / "pipeline.yaml"
    pipeline = yaml.safe_load(file.read_text()) if file.exists() else {}
    variables = pipeline.get("variables") or {}
    content = yaml.safe_load(path.read_text())
    stages = (pipeline.get("stages") or {}) | (content.get("stages") or {})
    cards = set()
    for name in named_data(content, variables):
        if name.startswith("${run}/"):
            cards |= written_by(name, stages, variables)
        elif Path(name).name in SHIPPED:
            cards.add(SHIPPED[Path(name).name])
        elif Path(name).name in YOURS or name in ("None", "null") or name.startswith("${"):
            continue
        else:
            assert _HUB.fullmatch(name), f"{path}: {name} is neither a Hub id, nor written by a stage, nor yours"
            owner_and_name = name.partition("@")[0].partition(":")[0]
            cards.add(owner_and_name.partition("/")[2] + ".md")
    return cards


def written_by(name: str, stages: dict[str, Any], variables: dict[str, Any]) -> set[str]:
    """Cards of what a stage writes: of its command, or else of what it reads."""
    name = re.sub(r"/seed\d/", "/", name)
    stage = next((one for one in stages.values() if f"{name}/".startswith(f"{one['writes']}/")), None)
    assert stage is not None, f"no stage writes {name}"
    if stage["command"] in GENERATED:
        return {GENERATED[stage["command"]]}
    sources = list(named_data({"stages": {"one": stage}}, variables))
    assert sources, f"what {stage['command']} writes into {name} comes from nowhere"
    return {card for source in sources for card in written_by(source, stages, variables)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_all_data_that_a_recipe_names_has_a_card(path: Path):
    needed = needed_cards(path)
    assert needed <= {card.name for card in CARDS}
    for card in needed:
        assert path.parent.name in facts(ROOT / "data_cards" / card)["Read by"]


def test_the_walk_finds_data():
    """By hand: the recipes of this folder read three Hub data sets and GSM8K; those of tiny what the sandbox writes."""
    found = {path.stem: needed_cards(path) for path in ROOT.glob("recipes/qwen2.5-0.5b/*.yaml")}
    assert found["sft"] == {"no_robots.md"}
    assert found["grpo"] == {"gsm8k.md"}
    assert found["pipeline"] == {
        "no_robots.md",
        "ultrafeedback_binarized.md",
        "ultrafeedback-prompt.md",
        "gsm8k.md",
    }
    assert needed_cards(ROOT / "recipes/tiny/dpo.yaml") == {"sandbox.md"}
    assert needed_cards(ROOT / "recipes/smollm2-135m/sft.yaml") == {"constraints.md"}


def test_a_data_set_without_a_card_is_found(tmp_path: Path):
    file = tmp_path / "sft.yaml"
    file.write_text("data: {class_path: align.data.ChatData, init_args: {tokenizer: m, train: owner/unheard-of:train}}")
    assert needed_cards(file) == {"unheard-of.md"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/pipeline.yaml")), ids=lambda path: path.parent.name)
def test_generated_data_has_a_card(path: Path):
    stages = yaml.safe_load(path.read_text())["stages"]
    needed = {GENERATED[stage["command"]] for stage in stages.values() if stage["command"] in GENERATED}
    assert needed <= {card.name for card in CARDS}
