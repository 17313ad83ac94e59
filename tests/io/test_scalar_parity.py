"""Scores against transformers' sequence classifiers, through files, in both directions.

Float64 is held to 1e-9 and float32 to 1e-4, transformers as it comes: right padding, found by pad_token_id.
"""

import pytest
import torch
import transformers
from network_options import STYLES
from transformers import AutoModelForSequenceClassification

from align.io.directory import load_scalar, save_network
from align.model.config import GPTConfig
from align.model.gpt import ScalarGPT

SHAPE = {"vocab_size": 40, "layers": 2, "heads": 4, "width": 32, "ff_width": 24, "context": 64}
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
NO_WINDOW = {"window": None, "window_layers": None}
"""transformers' eager attention, the only one of Gemma 2, makes NaN of padding beyond a window"""
OURS = {
    "LlamaForSequenceClassification": {"kv_heads": 2},
    "Qwen2ForSequenceClassification": {"qkv_bias": True, "tied_embeddings": False},
    "Qwen3ForSequenceClassification": {"qk_norm": "head", "head_width": 16},
    "GPT2ForSequenceClassification": GPT2,
    "MistralForSequenceClassification": STYLES["mistral"],
    "SmolLM3ForSequenceClassification": STYLES["smollm3"],
    "Olmo2ForSequenceClassification": STYLES["olmo2"],
    "Gemma2ForSequenceClassification": STYLES["gemma2"] | NO_WINDOW | {"attention_scale": 30**-0.5},
    "Gemma3TextForSequenceClassification": STYLES["gemma3"] | {"attention_scale": None},
    "GPTNeoXForSequenceClassification": STYLES["gpt_neox"],
}
THEIR_SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
THEIR_GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
PAD = 3


@torch.no_grad()
def shuffled(network):
    """Random values for every parameter, norms and biases too, so that a misplaced tensor is noticed."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return network.eval()


@torch.no_grad()
def difference(ours, theirs):
    """The largest difference over right-padded rows of several lengths, one of a single token."""
    lengths = torch.tensor([50, 1, 17, 33])
    ids = torch.randint(4, 40, (4, 50), generator=torch.Generator().manual_seed(6))
    padded = torch.arange(50) >= lengths[:, None]
    ids[padded] = PAD
    logits = theirs.eval()(ids, attention_mask=(~padded).long()).logits
    assert logits.shape == (4, 1)
    return (ours.eval().last_scores(ids, lengths) - logits[:, 0]).abs().max().item()


@pytest.mark.parametrize("architecture", OURS)
def test_ours_opens_in_transformers(tmp_path, architecture):
    network = shuffled(ScalarGPT(GPTConfig(**SHAPE | OURS[architecture])).double())
    save_network(network, tmp_path / "double", bos_id=0, eos_ids=[1, 2], pad_id=PAD)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "double")
    assert type(theirs).__name__ == architecture
    assert theirs.config.num_labels == 1
    tolerance = 1e-9 if network.config.attention_softcap is None else 1e-5  # whose softmax is in float32
    assert difference(network, theirs) <= tolerance
    assert difference(load_scalar(tmp_path / "double", dtype=torch.float64), theirs) <= tolerance
    network.float()
    save_network(network, tmp_path / "single", bos_id=0, eos_ids=[1, 2], pad_id=PAD)
    assert difference(network, AutoModelForSequenceClassification.from_pretrained(tmp_path / "single")) <= 1e-4


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "GPT2"])
def test_transformers_opens_in_ours(tmp_path, family):
    shape = THEIR_GPT2 if family == "GPT2" else THEIR_SHAPE
    config = getattr(transformers, f"{family}Config")(**shape, num_labels=1, pad_token_id=PAD)
    torch.manual_seed(0)
    theirs = shuffled(AutoModelForSequenceClassification.from_config(config).double())
    theirs.save_pretrained(tmp_path)
    assert difference(load_scalar(tmp_path, dtype=torch.float64), theirs) <= 1e-9
    assert difference(load_scalar(tmp_path).double(), theirs) <= 1e-4


def test_two_labels_of_transformers_are_refused(tmp_path):
    config = transformers.LlamaConfig(**THEIR_SHAPE, num_labels=2, pad_token_id=PAD)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_labels\D*2\b.*\b1\b"):
        load_scalar(tmp_path)


def test_a_language_model_lends_its_trunk(tmp_path):
    """GPT-NeoX calls its output matrix embed_out; it is left out under any name."""
    config = transformers.GPTNeoXConfig(**THEIR_SHAPE)
    theirs = transformers.GPTNeoXForCausalLM(config)
    theirs.save_pretrained(tmp_path)
    ours = load_scalar(tmp_path)
    assert torch.equal(ours.model.embed_tokens.weight, theirs.gpt_neox.embed_in.weight)
    assert ours.score.weight.shape == (1, 32)
