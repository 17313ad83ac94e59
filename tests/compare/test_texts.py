"""The loss on ordinary text against transformers, the windows by hand, and the statistics."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from align.compare import texts as texts_module
from align.compare.candidates import Point
from align.compare.texts import logged_text_losses
from align.evaluate.statistics import interval, ratio_values
from align.generation import likelihood
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

TEXTS = ["ab ba abba", "b", "a longer document, which takes several windows of eight tokens: łódź."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["ab ba abba"], vocab_size=256 + 10)


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a context of 8 tokens."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, layers=2, heads=2, width=16, ff_width=16, context=8)
    network = GPT(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    directory = tmp_path_factory.mktemp("model")
    save_network(network, directory, bos_id=None, eos_ids=[], pad_id=None)
    tokenizer.save(directory)
    return directory


def losses(model: Path, folder: Path, texts=TEXTS):
    read: list[int] = []
    found = logged_text_losses(Point(model, None, None), texts, folder=folder, device="cpu", advance=read.append)
    assert sum(read) == len(texts)
    return found


@torch.no_grad()
def test_nats_are_those_of_transformers(model: Path, tokenizer, tmp_path: Path) -> None:
    """Each window on its own through transformers, position by position; the last one is as long as the others."""
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(model).eval()
    opening = list(tokenizer.opening_ids)
    for text, loss in zip(TEXTS, losses(model, tmp_path), strict=True):
        ids = [*opening, *tokenizer.encode(text)]
        nats = 0.0
        for start in range(1, len(ids), 8):
            end = min(len(ids), start + 8)
            part = torch.tensor([ids[max(0, end - 9) : end]])
            table = peer(part[:, :-1]).logits[0].double().log_softmax(-1)
            nats -= float(table.gather(1, part[0, 1:, None])[start - end :].sum())
        assert loss.nats == pytest.approx(nats, rel=1e-4, abs=1e-4)
        assert loss.tokens == len(ids) - 1
        assert loss.bytes == len(text.encode()) - (0 if opening else int(tokenizer.token_bytes[ids[0]]))


def test_batches_do_not_change_the_loss_and_a_second_run_reads_the_log(
    model: Path, tmp_path: Path, monkeypatch
) -> None:
    whole = losses(model, tmp_path / "a")
    monkeypatch.setitem(likelihood._PACKED_TOKENS, "cpu", 1)
    monkeypatch.setattr(texts_module, "_LOGGED", 2)
    parts = losses(model, tmp_path / "b")
    assert [of.nats for of in parts] == pytest.approx([of.nats for of in whole], rel=1e-5)
    monkeypatch.setattr(Point, "load", lambda *_: pytest.fail("the log has all documents"))
    assert losses(model, tmp_path / "b") == parts


def test_a_ratio_has_the_mean_of_sums_and_pairs_documents() -> None:
    """6 nats of 12 bytes and 3 of 4: (6 + 3) / 16 is the mean of the values. Two models that differ by 0.1 per byte on
    every document differ by 0.1 without an interval.
    """
    size = np.array([[12.0, 4.0, 9.0]])
    first = np.array([[6.0, 3.0, 1.0]])
    assert interval(ratio_values(first, size)).mean == pytest.approx(10 / 25)
    change = interval(ratio_values(first + 0.1 * size, size) - ratio_values(first, size))
    assert change[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert math.isclose(ratio_values(first, size)[0, 0], 0.4 + (6 - 0.4 * 12) / (25 / 3))


def test_texts_without_a_token_to_predict_are_refused(model: Path, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(type(tokenizer), "opening_ids", ())
    with pytest.raises(ValueError, match="too short"):
        losses(model, tmp_path, ["a"])
