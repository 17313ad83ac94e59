"""The settings in which compared models differ."""

from pathlib import Path

from align.compare.best_of import BestOf
from align.compare.candidates import Candidate, Run, settings_diff


def candidate(name: str, recipe: dict | None, best_of: BestOf | None = None) -> Candidate:
    return Candidate(name, (Run(Path(name), {"recipe": recipe}),), best_of)


def test_a_model_without_a_recipe_differs_in_no_setting():
    """A pretrained base has none: only what two recipes disagree on is shown."""
    sft = candidate("sft", {"model": {"lr": 1e-3, "beta": 0.1}})
    dpo = candidate("dpo", {"model": {"lr": 1e-4, "beta": 0.1}})
    base = candidate("base", None)
    assert settings_diff([base, sft]) == []
    assert settings_diff([base, sft, dpo]) == [{"setting": "model.lr", "values": {"sft": 1e-3, "dpo": 1e-4}}]


def test_the_best_of_n_has_no_recipe_of_its_own():
    recipe = {"model": {"lr": 1e-3}}
    best = candidate("best", recipe, BestOf(model="sft", n=4, judge="gold"))
    assert settings_diff([candidate("sft", recipe), best]) == []
    found = settings_diff([candidate("sft", recipe), best, candidate("dpo", {"model": {"lr": 1e-4}})])
    assert found == [{"setting": "model.lr", "values": {"sft": 1e-3, "dpo": 1e-4}}]
