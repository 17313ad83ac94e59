"""How a recipe and a command line choose a variant and its settings: a preference loss, through the real parser."""

from pathlib import Path
from typing import Any

import pytest

from align.cli.errors import UsageError
from align.cli.lightning import make_cli

RECIPE = Path(__file__).parents[2] / "recipes/tiny/dpo.yaml"
LOSSES = "align.objectives.preference"


def chosen(*words: str) -> tuple[str, dict[str, Any]]:
    """Class path and settings of the loss that a command line over the tiny recipe chooses."""
    loss = make_cli([f"--config={RECIPE}", *words], parse_only=True).config.model.init_args.loss
    return loss.class_path, loss.init_args.as_dict()


def overlay(folder: Path, loss: str) -> str:
    path = folder / "overlay.yaml"
    path.write_text(f"model: {{init_args: {{loss: {loss}}}}}")
    return f"--config={path}"


def test_a_short_name_and_its_settings(tmp_path):
    assert chosen() == (f"{LOSSES}.DPO", {"beta": 0.3})
    assert chosen(overlay(tmp_path, "{class_path: SimPO, init_args: {beta: 2.5, gamma: 1}}")) == (
        f"{LOSSES}.SimPO",
        {"beta": 2.5, "gamma": 1.0},
    )
    assert chosen("--model.init_args.loss.init_args.beta=0.2") == (f"{LOSSES}.DPO", {"beta": 0.2})


def test_a_setting_that_the_new_class_has_too_is_kept(tmp_path):
    """As everywhere in jsonargparse: beta 0.3 stays, which docs/dpo.md says."""
    expected = (f"{LOSSES}.IPO", {"beta": 0.3, "per_token": True})
    assert chosen("--model.init_args.loss=IPO") == expected
    assert chosen(overlay(tmp_path, "IPO")) == expected
    assert chosen("--model.init_args.loss=IPO", "--model.init_args.loss.init_args.per_token=false") == (
        f"{LOSSES}.IPO",
        {"beta": 0.3, "per_token": False},
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.init_args.loss=SimP"], r"model\.init_args\.loss.*'SimP'.*'SimPO'.*CDPO"),
        (["--model.init_args.loss=nowhere.Loss"], r"model\.init_args\.loss: .*'nowhere'.*directory"),
        (["--model.init_args.loss=Mine"], r"model\.init_args\.loss: .*MODULE\.Mine"),
        (["--model.init_args.loss=json.Mine"], r"model\.init_args\.loss\.class_path: .*'json'.*'Mine'"),
        (["--model.init_args.loss=json.JSONDecoder"], r"model\.init_args\.loss: .*json\.JSONDecoder.*PreferenceLoss"),
        (["--model.init_args.loss.init_args.gamma=1"], r"model\.init_args\.loss\.gamma.*beta"),
        (["--model.init_args.beta=1"], r"model\.init_args\.beta"),
    ],
)
def test_mistakes_name_the_setting(words, message):
    with pytest.raises(UsageError, match=message) as caught:
        chosen(*words)
    assert "\n" not in str(caught.value)
