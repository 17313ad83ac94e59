"""Responses of models that are asked in different ways."""

import pytest
import torch

from align.compare.candidates import Run
from align.compare.respond import ResponseConfig, Sampler
from align.generation.generate import generate
from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

CONFIG = GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=64)
PROMPTS = ["ab", [{"role": "user", "content": "ba"}]]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["ab ab"], vocab_size=256 + 7)


@pytest.fixture
def models(tokenizer, tmp_path):
    """A pretrained network and one that has seen chats, with the same tokenizer and its template."""
    networks, points = {}, {}
    for seed, stage in enumerate(("pretrain", "sft")):
        torch.manual_seed(seed)
        networks[stage], directory = GPT(CONFIG).eval(), tmp_path / stage
        for parameter in networks[stage].parameters():  # a new network's logits are all the same
            torch.nn.init.normal_(parameter, std=0.5)
        save_network(networks[stage], directory, bos_id=None, eos_ids=[], pad_id=None)
        tokenizer.save(directory)
        write_manifest(directory, {"stage": stage})
        points[stage] = Run.of(directory).final
    return networks, points


def logprob(network, prompt, response):
    """nats, position by position."""
    ids = torch.tensor([[*prompt, *response]])
    table = network(ids).double().log_softmax(-1)[0]
    places = range(len(prompt) - 1, ids.shape[1] - 1)
    return sum(float(table[place, ids[0, place + 1]]) for place in places)


@pytest.mark.parametrize(("policy", "baseline"), [("pretrain", "sft"), ("sft", "pretrain")])
@torch.no_grad()
def test_each_model_is_asked_in_its_own_way(models, tokenizer, tmp_path, monkeypatch, policy, baseline):
    """A pretrained network continues the text; the ratio has each network's own prompt before the same response."""
    networks, points = models
    said = {}

    def spy(network, rows, *rest, **settings):
        samples = generate(network, rows, *rest, **settings)
        said["asked"], said["ids"] = rows, [samples.ids[i, samples.mask[i]].tolist() for i in range(len(rows))]
        return samples

    monkeypatch.setattr("align.generation.responses.generate", spy)
    sampler = Sampler(PROMPTS, ResponseConfig(n=1, max_new_tokens=4), tmp_path / "cache")
    found = sampler.sample(points[policy], points[baseline], lambda done: None)
    asked = {
        "pretrain": [[*tokenizer.opening_ids, *tokenizer.encode(text)] for text in ("ab", "ba")],
        "sft": [
            tokenizer.render_chat([{"role": "user", "content": text}], add_generation_prompt=True).ids
            for text in ("ab", "ba")
        ],
    }
    assert said["asked"] == asked[policy]
    for i, ids in enumerate(said["ids"]):
        ratio = logprob(networks[policy], asked[policy][i], ids) - logprob(networks[baseline], asked[baseline][i], ids)
        assert found[i][0].log_ratio == pytest.approx(ratio, abs=2e-4)
