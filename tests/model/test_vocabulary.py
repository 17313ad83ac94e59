"""Rows for added tokens, by hand and against transformers' resize_token_embeddings."""

import pytest
import torch

from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.vocabulary import extend_vocabulary

CONFIG = GPTConfig(vocab_size=6, layers=1, heads=2, width=8, ff_width=8, context=8)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_known_ones(tied: bool):
    """Ids 0 to 3 are known and 4 is a gap: the mean of four rows; what was there stays."""
    network = GPT(GPTConfig(**{**vars(CONFIG), "tied_embeddings": tied}))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    extend_vocabulary(network, known=[0, 1, 2, 3], added=[6, 7])
    assert network.config.vocab_size == network.model.config.vocab_size == 8
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        weight = dict(network.named_parameters())[name]
        assert torch.equal(weight[:6], before[name])
        mean = (before[name][0] + before[name][1] + before[name][2] + before[name][3]) / 4
        torch.testing.assert_close(weight[6:], torch.stack([mean, mean]))
    ids = torch.tensor([[0, 6, 7]])
    logits = network(ids)
    assert logits.shape == (1, 3, 8)
    torch.testing.assert_close(logits[..., 6], logits[..., 7])


def test_rows_of_a_padded_vocabulary_come_first():
    network = GPT(CONFIG)
    mean = network.output_weight[:4].mean(0)
    extend_vocabulary(network, known=range(4), added=[4])
    assert network.config.vocab_size == 6
    torch.testing.assert_close(network.output_weight[4], mean)


def test_a_known_id_is_refused():
    with pytest.raises(ValueError, match=r"\b3\b"):
        extend_vocabulary(GPT(CONFIG), known=range(4), added=[3, 4])


def test_transformers_starts_new_rows_at_the_same_mean():
    """Its rows have noise of about a thousandth of the old rows' deviation besides."""
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    ours = GPT(GPTConfig(**{**vars(CONFIG), "vocab_size": 40, "tied_embeddings": False}))
    with torch.no_grad():
        ours.model.embed_tokens.weight.copy_(theirs.model.embed_tokens.weight)
        ours.lm_head.weight.copy_(theirs.lm_head.weight)
    theirs.resize_token_embeddings(42, mean_resizing=True)
    extend_vocabulary(ours, known=range(40), added=[40, 41])
    deviation = float(theirs.model.embed_tokens.weight[:40].std())
    torch.testing.assert_close(
        ours.model.embed_tokens.weight, theirs.model.embed_tokens.weight, rtol=0, atol=0.01 * deviation
    )
    torch.testing.assert_close(ours.lm_head.weight, theirs.lm_head.weight, rtol=0, atol=0.01 * deviation)
