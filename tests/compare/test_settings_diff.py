"""The settings in which compared models differ."""

from types import SimpleNamespace

from align.compare.candidates import settings_diff


def candidate(name: str, recipe: dict | None):
    return SimpleNamespace(name=name, runs=[SimpleNamespace(manifest={"recipe": recipe})])


def test_a_model_without_a_recipe_differs_in_no_setting():
    """A pretrained base has none: only what two recipes disagree on is shown."""
    sft = candidate("sft", {"model": {"lr": 1e-3, "beta": 0.1}})
    dpo = candidate("dpo", {"model": {"lr": 1e-4, "beta": 0.1}})
    base = candidate("base", None)
    assert settings_diff([base, sft]) == []
    assert settings_diff([base, sft, dpo]) == [{"setting": "model.lr", "values": {"sft": 1e-3, "dpo": 1e-4}}]
