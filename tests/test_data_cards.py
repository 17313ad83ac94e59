"""Every dataset that a recipe makes or names has a card, and every card says what it owes."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted(ROOT.glob("data_cards/*.md"))


def headings(path: Path) -> list[str]:
    return [line.lstrip("# ").strip() for line in path.read_text().splitlines() if line.startswith("## ")]


@pytest.mark.parametrize("card", [card for card in CARDS if card.name != "TEMPLATE.md"], ids=lambda card: card.stem)
def test_a_card_has_the_sections_of_the_template(card: Path):
    assert set(headings(ROOT / "data_cards/TEMPLATE.md")) <= set(headings(card))


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/pipeline.yaml")), ids=lambda path: path.parent.name)
def test_generated_data_has_a_card(path: Path):
    stages = yaml.safe_load(path.read_text())["stages"]
    generators = {"sandbox": "sandbox.md", "sandbox constraints": "constraints.md"}
    needed = {generators[stage["command"]] for stage in stages.values() if stage["command"] in generators}
    assert needed <= {card.name for card in CARDS}
