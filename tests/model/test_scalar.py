"""ScalarGPT: its head, scores at the last real token, and directories without transformers."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from align.io.directory import load_network, load_scalar, save_network
from align.io.location import read_config
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT

SMALL = GPTConfig(vocab_size=61, layers=2, heads=4, kv_heads=2, width=32, ff_width=24, context=48)
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
STYLES = [{}, GPT2, {"norm_placement": "post"}, {"qk_norm": "head", "qkv_bias": False}, {"positions": "sinusoidal"}]


def save(network, directory, **options):
    save_network(network, directory, **{"bos_id": 0, "eos_ids": [1], "pad_id": 2} | options)
    return directory


def scalar_of(network: GPT) -> ScalarGPT:
    """A network's trunk with a new head of the same dtype."""
    scalar = ScalarGPT(network.config).to(network.output_weight.dtype).eval()
    scalar.model.load_state_dict(network.model.state_dict())
    return scalar


def test_the_head_is_drawn_by_its_seed_alone():
    """Normal with std 1 / sqrt(1024 + 1): over 1024 draws the sample's std is within 10% of it."""
    config = GPTConfig(vocab_size=3, layers=1, heads=1, width=1024, ff_width=8, context=4)
    one, other = ScalarGPT(config), ScalarGPT(config)
    assert torch.equal(one.score.weight, other.score.weight)
    state = torch.get_rng_state()
    other.initialise_head(1)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one.score.weight, other.score.weight)
    assert one.score.weight.std().item() == pytest.approx(1025**-0.5, rel=0.1)
    assert abs(one.score.weight.mean().item()) < 4 * 1025**-0.5 / 1024**0.5
    assert one.score.bias is None


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_the_last_score_is_the_score_of_the_last_hidden_state(network_of, tokens, style):
    """Running only the last token through the last block gives the score and gradients of the full forward pass."""
    scalar = scalar_of(network_of(**style))
    ids, lengths = tokens(5, 12), torch.tensor([12, 1, 7, 3, 12])
    whole = scalar.scores(scalar.hidden(ids))[torch.arange(5), lengths - 1]
    short = scalar.last_scores(ids, lengths)
    assert short.shape == (5,)
    torch.testing.assert_close(short, whole, rtol=1e-11, atol=1e-11)
    parameters = list(scalar.parameters())
    # The keys' bias moves every logit of a query alike: its gradient is 0 but for rounding.
    for one, other in zip(
        torch.autograd.grad(short.square().sum(), parameters),
        torch.autograd.grad(whole.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), extra=st.integers(0, 6), seed=st.integers(0, 99))
def test_padding_and_order_change_nothing(lengths, extra, seed):
    """A row scores the same alone, among others, in another order and under more padding, whatever the padding is."""
    scalar = ScalarGPT(SMALL).double().eval()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(61, (len(lengths), max(lengths) + extra), generator=generator)
    count = torch.tensor(lengths)
    together = scalar.last_scores(ids, count)
    alone = torch.cat([scalar.last_scores(ids[i : i + 1, :n], count[i : i + 1]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    order = torch.randperm(len(lengths), generator=generator)
    torch.testing.assert_close(scalar.last_scores(ids[order], count[order]), together[order], rtol=1e-9, atol=1e-9)


def test_scores_are_float32_under_autocast():
    """Scores 1000 + 1/16 apart in their last term: bfloat16 (8 bits) would make them one."""
    scalar = ScalarGPT(SMALL).eval()
    scalar.score.weight.data.fill_(1.0)
    hidden = torch.zeros(2, 32)
    hidden[:, 0], hidden[1, 1] = 1000.0, 1 / 16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = scalar.scores(hidden)
    assert scores.dtype == torch.float32
    assert (scores[1] - scores[0]).item() == 1 / 16


def test_a_row_of_nothing_does_no_harm(tokens):
    scores = ScalarGPT(SMALL).last_scores(tokens(2, 4), torch.tensor([4, 0]))
    assert torch.isfinite(scores).all()


def test_flops_by_hand():
    """Width 32, 4 heads of 8, 2 key/value heads, 24 in the feed-forward, 48 tokens.

    First block: q and o 2 x 32 x 32, k and v 2 x 16 x 32, feed-forward 3 x 24 x 32, so 5,376; last block: q, k and v,
    so 2,048. 6 x 7,424 + 12 x 2 layers x 32 x 48.
    """
    assert ScalarGPT(SMALL).flops_per_token(48) == 44_544 + 36_864


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_round_trip(tmp_path, network_of, style):
    scalar = scalar_of(network_of(**style))
    scalar.initialise_head(5)
    again = load_scalar(save(scalar, tmp_path, max_shard_bytes=20_000), dtype=torch.float64, head_seed=9)
    assert again.config == scalar.config
    assert read_config(tmp_path) == scalar.config
    assert again.training
    assert all(torch.equal(tensor, scalar.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_gets_a_fresh_head(tmp_path, network_of, tied):
    network = network_of(tied_embeddings=tied)
    save(network, tmp_path)
    one, other = load_scalar(tmp_path), load_scalar(tmp_path, head_seed=1)
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(one.model.state_dict()[name], tensor.float())
    expected = ScalarGPT(network.config)
    assert torch.equal(one.score.weight, expected.score.weight)
    expected.initialise_head(1)
    assert torch.equal(other.score.weight, expected.score.weight)
    assert not one.score.weight.is_meta
    one.last_scores(torch.tensor([[1, 2, 3]]), torch.tensor([3])).sum().backward()
    assert all(parameter.grad is not None for parameter in one.parameters())


def test_a_reward_model_is_no_language_model(tmp_path):
    save(ScalarGPT(SMALL), tmp_path)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"num_labels": 3, "id2label": None}, "3"),
        ({"id2label": {"0": "bad", "1": "good"}}, "2"),
        ({"num_labels": None, "id2label": None}, "2"),
    ],
)
def test_other_numbers_of_labels_are_refused(tmp_path, fields, found):
    save(ScalarGPT(SMALL), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=rf"config\.json.*num_labels\D*{found}\b.*\b1\b") as error:
        load_scalar(tmp_path)
    assert "\n" not in str(error.value)


def test_a_head_of_another_shape_or_a_missing_one_is_named(tmp_path):
    save(ScalarGPT(SMALL), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"score.weight": torch.zeros(2, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"score\.weight.*\[2, 32\].*\[1, 32\]"):
        load_scalar(tmp_path)
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"score\.weight"):
        load_scalar(tmp_path)
