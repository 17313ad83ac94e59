"""Flags generated from settings dataclasses."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
from naming import naming

from align.cli.errors import UsageError
from align.cli.settings import parse_settings, require_at_least, setting
from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Inner:
    """A part that verbs share."""

    heat: float = 1.0
    """In kelvin"""
    seed: int = 3
    """Of the part"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.heat < 0:
            raise ValueError(f"heat is {self.heat}; it must be 0 or above")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Do a thing.

    Raises:
        ValueError: never shown.
    """

    what: tuple[str, ...] = setting(positional=True, metavar="THING")
    """Things to do"""
    seed: int = 0
    """Of everything"""
    inner: Inner = Inner()
    """Not a flag"""
    names: tuple[str, ...] = ()
    """Several values"""
    pair: tuple[str, ...] = setting((), repeatable=True)
    """Repeated"""
    start: str | None = setting(None, flag="from")
    """A keyword of Python"""
    limit: int | None = None
    """At least 1"""
    loud: bool = False
    """A flag without a value"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        require_at_least(self, limit=1)


def test_every_kind_of_field():
    words = ["a", "b", "--heat", "2", "--names", "1", "null", "--pair", "x=1", "--pair=y=2", "--from", "null", "--loud"]
    assert parse_settings(Outer, "do", words) == Outer(
        what=("a", "b"), inner=Inner(2.0, 0), names=("1", "null"), pair=("x=1", "y=2"), start="null", loud=True
    )


def test_defaults_are_those_of_the_dataclass_and_a_shared_name_is_one_flag():
    assert parse_settings(Outer, "do", ["a"]) == Outer(what=("a",), inner=Inner(1.0, 0))
    assert parse_settings(Outer, "do", ["a", "--seed", "5", "--limit", "2"]) == Outer(
        what=("a",), seed=5, inner=Inner(1.0, 5), limit=2
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["what"]),
        (["a", "--heat", "-1"], ["heat", "-1.0"]),
        (["a", "--heat", "hot"], ["heat", "hot"]),
        (["a", "--limit", "0"], ["limit", 0, 1]),
        (["a", "--hat", "1"], ["--hat", "heat"]),
        (["a", "--inner", "1"], ["--inner"]),
    ],
)
def test_mistakes_are_usage_errors(words: list[str], named: list):
    with pytest.raises(UsageError, match=naming(*named)):
        parse_settings(Outer, "do", words)


def test_help_shows_docstrings_and_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse_settings(Outer, "do", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("Do a thing. positional", "THING Things to do", "--heat HEAT In kelvin (type: float, default: 1.0)"):
        assert text in shown
    assert "never shown" not in shown
    assert "--inner" not in shown


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a language model, a reward model and a file of one prompt."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    config = GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=64, init_std=0.3)
    for name, network in (("policy", GPT(config)), ("reward", ScalarGPT(config))):
        tokenizer.save(folder / name)
        ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
        save_network(network, folder / name, **ids)
    write_manifest(folder / "reward", {"stage": "reward", "reward_mean": 0.0, "reward_std": 1.0})
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "generate IN/policy --prompt a --max_new_tokens 9 --judge IN/reward",
        "preferences IN/policy --prompts IN/prompts.jsonl --out OUT/pairs.jsonl --judge IN/reward --max_new_tokens 9 "
        "--keep_unfinished --label_temperature 1",
        "compare a=IN/policy b=IN/policy --prompts IN/prompts.jsonl --out OUT --judge IN/reward --max_new_tokens 9",
        "export IN/policy --out OUT/export",
    ],
    ids=lambda words: words.split()[0],
)
def test_verbs_that_do_not_train_load_no_training_library(models, tmp_path, words: str):
    """Lightning and datasets cost seconds to import."""
    words = words.replace("IN", str(models)).replace("OUT", str(tmp_path))
    code = (
        f"import sys; from align.cli import main; code = main({words.split()!r});"
        "print(code, *({'lightning', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.split()[-1:] == ["0"], result.stderr
