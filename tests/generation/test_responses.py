"""The sampling service: what ends a response."""

import json

import torch

from align.generation.responses import sample_responses
from align.generation.sampling_config import SamplingConfig
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer, train_tokenizer


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
