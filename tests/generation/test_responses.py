"""The sampling service: what ends a response."""

import json
from dataclasses import replace

import torch

from align.compare.respond import logprobs
from align.generation.responses import sample_responses
from align.generation.sampled_ids import SampledIds
from align.generation.sampling_config import SamplingConfig
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.spec import AddedToken


def test_a_token_of_the_generation_settings_ends_a_response(tmp_path):
    """The greedy network repeats what the settings then name."""
    tokenizer = train_tokenizer(["ab ab"], vocab_size=263)
    tokenizer.save(tmp_path)
    torch.manual_seed(0)
    network = GPT(GPTConfig(vocab_size=263, layers=1, heads=1, width=16, context=32))
    greedy = SamplingConfig(temperature=0, max_new_tokens=5)
    (long,) = sample_responses(network, Tokenizer.load(tmp_path), [[97]], greedy, seeds=[0]).ids
    assert long[0] not in tokenizer.stop_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_id, long[0]]}))
    ended = sample_responses(network, Tokenizer.load(tmp_path), [[97]], greedy, seeds=[0])
    assert (ended.ids, ended.finished) == ([long[:1]], [True])


@torch.no_grad()
def test_log_probs_of_a_tokenizer_with_gaps_are_the_samplers():
    """An added token with a far id leaves gaps, whose rows are the likeliest here."""
    spec = train_tokenizer(["ab ab"], vocab_size=263).spec
    tokenizer = Tokenizer(replace(spec, added=(*spec.added, AddedToken(270, "<far>"))))
    assert tokenizer.missing_ids == tuple(range(263, 270))
    torch.manual_seed(0)
    network = GPT(GPTConfig(vocab_size=280, layers=1, heads=1, width=16, context=32, tied_embeddings=False)).eval()
    network.lm_head.weight *= 20
    network.lm_head.weight[263:270] *= 3
    prompts = [[97], [98, 99], [100]]
    sampled = sample_responses(network, tokenizer, prompts, SamplingConfig(max_new_tokens=9), seeds=[1, 2, 3])
    assert all(map(tokenizer.is_token, sum(sampled.ids, [])))
    found = logprobs(network, prompts, sampled.ids, sampled=SampledIds.of(tokenizer))
    torch.testing.assert_close(found.float(), sampled.samples.logprobs.sum(1), rtol=1e-4, atol=1e-4)
    assert (logprobs(network, prompts, sampled.ids) - found).abs().min() > 0.1
