"""A comparison of models that have little in common: other tokenizers, no chat template, another context."""

import sys
import types
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.compare.candidates import Candidate, Run
from align.compare.comparison import Task, compare
from align.compare.html import write_html
from align.compare.judges import Judge
from align.compare.markdown import to_markdown
from align.compare.respond import ResponseConfig, Sampler
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer, train_tokenizer

PROMPTS = ["ab", "ba", [{"role": "user", "content": "abba"}]]
TEXTS = ["ab ba abba", "a b c d", "łódź"]


def save(directory: Path, tokenizer: Tokenizer, *, seed: int, context: int = 64) -> Path:
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2, width=16, ff_width=16, context=context)
    network = GPT(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_network(network, directory, bos_id=None, eos_ids=[], pad_id=None)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``chat``; ``base`` with another vocabulary and no chat template; ``short`` and ``twin`` with chat's tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    chat = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    base = train_tokenizer(["abba abba ba ba"], vocab_size=256 + 10)
    base = Tokenizer(replace(base.spec, chat_template=None))
    return {
        "chat": save(folder / "chat", chat, seed=0),
        "base": save(folder / "base", base, seed=1),
        "twin": save(folder / "twin", chat, seed=2),
        "short": save(folder / "short", chat, seed=3, context=16),
    }


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    module = types.ModuleType("a_judge")
    module.length = lambda prompts, responses: [float(len(text)) for text in responses]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_judge", module)
    return Judge("length", ("a_judge:length",))


def compared(models: dict[str, Path], judge: Judge, folder: Path, *names: str) -> Any:
    task = Task(
        candidates=[Candidate(name, (Run.of(models[name]),)) for name in names],
        prompts=PROMPTS,
        columns=[{}] * len(PROMPTS),
        judges=[judge],
        config=ResponseConfig(n=2, max_new_tokens=12),
        texts=TEXTS,
    )
    report, rows = compare(task, folder, lambda *_: nullcontext(lambda done: None))
    return report, to_markdown(report, rows), write_html(report, rows)


def test_another_tokenizer_and_no_chat_template(models: dict[str, Path], judge: Judge, tmp_path: Path) -> None:
    """Bits per byte are comparable; perplexities per token are marked; the KL is that of the texts."""
    report, written, page = compared(models, judge, tmp_path, "chat", "base")
    base = report["models"]["base"]
    assert base["kl"]["by"] == "text"
    assert base["texts"]["same_tokenizer"] is False
    assert base["texts"]["bits_per_byte"]["mean"] > 0
    assert "another tokenizer" in written
    assert "another tokenizer" in page


def test_a_response_that_does_not_fit_the_baseline_has_no_kl(
    models: dict[str, Path], judge: Judge, tmp_path: Path
) -> None:
    """The chat template and 12 tokens are more than the 16 positions of ``short``, and fit the 64 of ``twin``."""
    report, written, page = compared(models, judge, tmp_path, "short", "twin")
    assert report["models"]["twin"]["kl"] == {"mean": None, "ci95": None, "by": "not comparable"}
    assert {point["model"] for point in report["frontier"]} == {"short"}
    assert "not comparable" in written
    assert "not comparable" in page


def test_a_model_without_a_template_that_cannot_be_asked_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ab"}]
    sampler = Sampler(["ab", chat], ResponseConfig(n=1, max_new_tokens=2), tmp_path)
    point = Run.of(models["base"]).final
    with pytest.raises(ValueError, match=r"base.* prompt 2\b.*2 messages"):
        sampler.sample(point, point, lambda done: None)


def test_further_responses_have_seeds_of_their_own(models: dict[str, Path], tmp_path: Path) -> None:
    """Responses 2 to 4 of five are those of a sampler that begins at 2."""
    point = Run.of(models["chat"]).final
    config = ResponseConfig(n=5, max_new_tokens=6)
    all_five = Sampler(PROMPTS, config, tmp_path).sample(point, point, lambda done: None)
    further = Sampler(PROMPTS, replace(config, n=3), tmp_path, first=2).sample(point, point, lambda done: None)
    assert further == [row[2:] for row in all_five]
