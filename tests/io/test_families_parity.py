"""Logits of our network against transformers', through files, in both directions.

Float64 is held to 1e-9 and float32 to 1e-4, transformers as it comes.
"""

import json
from itertools import product

import pytest
import torch
import transformers
from network_options import STYLES
from transformers import AutoModelForCausalLM

from align.io.directory import load_network, save_network
from align.io.families import family_of
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling

# Contexts longer than the original one, so that scaled positions are met.
SCALING = Llama3Scaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)
YARN_SCALING = YarnScaling(factor=3.0, original_context=16, attention_factor=1.2, truncate=False)
SHAPE = {"vocab_size": 40, "layers": 2, "heads": 4, "width": 32, "ff_width": 24, "context": 64}
ROTARY = [
    {"kv_heads": kv_heads, "tied_embeddings": tied, "rope_scaling": scaling, "head_width": head_width}
    for kv_heads, tied, scaling, head_width in product((None, 2), (True, False), (None, SCALING), (None, 16))
]
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
OURS = {
    "LlamaForCausalLM": [options | {"qkv_bias": b, "bias": b} for options, b in product(ROTARY, (False, True))],
    "Qwen2ForCausalLM": [options | {"qkv_bias": True} for options in ROTARY],
    "Qwen3ForCausalLM": [options | {"qk_norm": "head"} for options in ROTARY],
    "GPT2LMHeadModel": [
        GPT2 | {"tied_embeddings": tied, "ff_width": ff_width} for tied, ff_width in product((True, False), (None, 24))
    ],
}
GEMMA = STYLES["gemma2"] | {"attention_scale": 30**-0.5}
OURS |= {
    "MistralForCausalLM": [STYLES["mistral"], {"width": 36, "heads": 5, "head_width": 6}],
    "SmolLM3ForCausalLM": [STYLES["smollm3"], {"no_rope_layers": (0, 1), "tied_embeddings": False}],
    "Olmo2ForCausalLM": [STYLES["olmo2"], STYLES["olmo2"] | {"tied_embeddings": True, "kv_heads": None}],
    "Gemma2ForCausalLM": [GEMMA, GEMMA | {"attention_softcap": None, "window": None, "window_layers": None}],
    "Gemma3ForCausalLM": [STYLES["gemma3"] | {"attention_scale": None}],
    "GPTNeoXForCausalLM": [
        STYLES["gpt_neox"],
        STYLES["gpt_neox"] | {"parallel_residual": False, "feed_forward": "gelu"},
    ],
}
OURS["Qwen2ForCausalLM"].append(STYLES["qwen2"] | {"window": 5, "window_layers": (1,)})
OURS["Qwen3ForCausalLM"].append(STYLES["qwen3"] | {"window": 5, "window_layers": (0,)})
OURS["LlamaForCausalLM"] += [{"rope_scaling": YARN_SCALING}, {"rope_scaling": LinearScaling(factor=2.0)}]
OURS["LlamaForCausalLM"].append({"kv_heads": 1, "rope_theta": 500000.0, "norm_eps": 1e-3})
OURS["Qwen3ForCausalLM"].append({"qk_norm": "head", "heads": 3, "width": 32, "head_width": 8})


@torch.no_grad()
def shuffled(network):
    """Random values for every parameter, norms and biases too, so that a misplaced tensor is noticed."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return network.eval()


def written(network, directory, **options):
    save_network(network, directory, bos_id=0, eos_ids=[1, 2], pad_id=3, **options)
    return directory


def opened(directory):
    """In transformers; only the eager implementation has soft caps."""
    return AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager" if soft_capped(directory) else None
    )


def soft_capped(directory):
    return json.loads((directory / "config.json").read_text()).get("attn_logit_softcapping") is not None


@torch.no_grad()
def difference(ours, theirs):
    ids = torch.randint(0, 40, (2, 50), generator=torch.Generator().manual_seed(6))
    return (ours.eval()(ids) - theirs.eval()(ids).logits).abs().max().item()


@pytest.mark.parametrize(
    ("architecture", "options"),
    [(name, options) for name, choices in OURS.items() for options in choices],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_ours_opens_in_transformers(tmp_path, architecture, options):
    config = GPTConfig(**SHAPE | options)
    network = shuffled(GPT(config).double())
    assert family_of(config).architecture == architecture
    theirs = opened(written(network, tmp_path))
    assert type(theirs).__name__ == architecture
    assert theirs.dtype == torch.float64
    # The eager implementation's softmax is in float32.
    tolerance = 1e-5 if architecture == "Gemma2ForCausalLM" else 1e-9
    assert difference(network, theirs) <= tolerance
    again = load_network(tmp_path, dtype=torch.float64)
    assert again.config == config
    assert difference(again, theirs) <= tolerance


@pytest.mark.parametrize("architecture", OURS)
def test_single_precision_opens_too(tmp_path, architecture):
    network = shuffled(GPT(GPTConfig(**SHAPE | OURS[architecture][0])).double())
    theirs = opened(written(network, tmp_path / "double"))
    assert difference(network, theirs) <= (1e-5 if network.config.attention_softcap else 1e-9)
    network.float()
    theirs = opened(written(network, tmp_path / "single"))
    assert theirs.dtype == torch.float32
    assert difference(network, theirs) <= 1e-4


def test_special_ids_and_generation_arrive(tmp_path):
    """Greedy decoding stops at either of the two ids that end a response."""
    network = GPT(GPTConfig(**SHAPE))
    theirs = AutoModelForCausalLM.from_pretrained(written(network, tmp_path))
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (0, [1, 2], 3)
    generation = theirs.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (0, [1, 2], 3)
    assert theirs.generate(torch.tensor([[5, 6]]), max_new_tokens=4).shape[0] == 1


def test_sharded_ours_opens_in_transformers(tmp_path):
    network = shuffled(GPT(GPTConfig(**SHAPE)))
    written(network, tmp_path, max_shard_bytes=4000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert difference(network, AutoModelForCausalLM.from_pretrained(tmp_path)) <= 1e-4


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PLAIN = {"rope_type": "default", "rope_theta": 777.0}
THEIR_SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
THEIR_ROTARY = [
    {"num_key_value_heads": kv_heads, "tie_word_embeddings": tied, "rope_parameters": rope}
    for kv_heads, tied, rope in product((1, 4), (True, False), (PLAIN, LLAMA3))
]
BIASED = {"attention_bias": True, "mlp_bias": True}
THEIR_GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
THEIRS = (
    [("Llama", options) for options in THEIR_ROTARY]
    + [("Llama", BIASED), ("Llama", {"head_dim": 6}), ("Llama", BIASED | {"head_dim": 16, "num_key_value_heads": 2})]
    + [("Qwen2", options) for options in THEIR_ROTARY]
    + [("Qwen3", options | {"head_dim": 12}) for options in THEIR_ROTARY]
    + [("Qwen3", {"num_key_value_heads": 2})]
    + [("GPT2", options) for options in ({}, {"tie_word_embeddings": False}, {"n_inner": 20}, {"resid_pdrop": 0.0})]
)

LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
FIXED_YARN = YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False}
MSCALE = YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}
THEIRS += [("Llama", {"rope_parameters": rope}) for rope in (LINEAR, YARN, FIXED_YARN, MSCALE)]
THEIRS += [
    ("Mistral", {"sliding_window": window, "num_key_value_heads": 2, "head_dim": 12}) for window in (None, 1, 7, 64)
]
THEIRS += [
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "rope_parameters": YARN}),
    (
        "Qwen3",
        {"use_sliding_window": True, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    ("SmolLM3", {"num_hidden_layers": 5, "rope_parameters": PLAIN, "pad_token_id": 3}),
    ("SmolLM3", {"no_rope_layers": [0, 1], "tie_word_embeddings": False, "pad_token_id": 3}),
    ("Olmo2", {"num_key_value_heads": 2, "rope_parameters": PLAIN}),
    ("Olmo2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
]
GEMMA_FILE = {"head_dim": 12, "num_hidden_layers": 3, "sliding_window": 7, "num_key_value_heads": 2}
THEIRS += [
    ("Gemma2", GEMMA_FILE | {"query_pre_attn_scalar": 30}),
    (
        "Gemma2",
        GEMMA_FILE | {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0, "tie_word_embeddings": False},
    ),
    ("Gemma2", GEMMA_FILE | {"attn_logit_softcapping": 1.5, "layer_types": ["full_attention"] * 3}),
    ("Gemma3", GEMMA_FILE | {"sliding_window_pattern": 3, "rope_parameters": {"full_attention": LINEAR}}),
    ("Gemma3", GEMMA_FILE | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
]
NEOX = {"hidden_dropout": 0.0}
THEIRS += [
    ("GPTNeoX", NEOX | options)
    for options in (
        {},
        {"rotary_pct": 1.0, "use_parallel_residual": False},
        {"rotary_pct": 0.5, "rotary_emb_base": 300.0, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
        {"rope_scaling": LINEAR},
    )
]


def random_theirs(family, options, seed=0):
    shape = THEIR_GPT2 if family == "GPT2" else THEIR_SHAPE
    kind = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    config = kind(**shape | {"num_key_value_heads": 4} | options)
    torch.manual_seed(seed)
    # Only the eager implementation has soft caps; its softmax is in float32.
    eager = {"attn_implementation": "eager"} if family == "Gemma2" else {}
    theirs = shuffled(AutoModelForCausalLM.from_config(config, **eager).double())
    if family.startswith("Gemma"):  # a buffer that from_pretrained makes in the network's dtype
        theirs.model.embed_tokens.embed_scale = torch.tensor(shape["hidden_size"] ** 0.5, dtype=torch.float64)
    return theirs


@pytest.mark.parametrize(("family", "options"), THEIRS, ids=str)
def test_transformers_opens_in_ours(tmp_path, family, options):
    theirs = random_theirs(family, options)
    theirs.save_pretrained(tmp_path)
    ours = load_network(tmp_path, dtype=torch.float64)
    assert difference(ours, theirs) <= (1e-5 if family == "Gemma2" else 1e-9)
    assert difference(load_network(tmp_path).double(), theirs) <= 1e-4


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "GPT2", "GPTNeoX"])
def test_transformers_sharded_opens_in_ours(tmp_path, family):
    theirs = random_theirs(family, {})
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert difference(load_network(tmp_path, dtype=torch.float64), theirs) <= 1e-9


def test_gpt2_without_its_head_has_no_prefix(tmp_path):
    """GPT2Model files call the embedding wte.weight, as openai-community/gpt2 does; architectures is the caller's."""
    theirs = random_theirs("GPT2", {})
    theirs.transformer.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("GPT2Model", "GPT2LMHeadModel"))
    assert difference(load_network(tmp_path, dtype=torch.float64), theirs) <= 1e-9


def test_what_has_no_twin_is_refused_by_transformers(tmp_path):
    written(GPT(GPTConfig(**SHAPE | {"norm_placement": "post"})), tmp_path)
    with pytest.raises(ValueError, match="align_gpt"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


GRADIENTS = [("Llama", {}), ("Mistral", {"sliding_window": 7}), ("Qwen2", {}), ("Qwen3", {}), ("Olmo2", {})] + [
    ("SmolLM3", {"no_rope_layers": [1, 0], "pad_token_id": 3}),
    ("Gemma2", GEMMA_FILE),
    ("Gemma3", GEMMA_FILE),
    ("GPT2", {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}),
    ("GPTNeoX", NEOX),
]


@pytest.mark.parametrize(("family", "options"), GRADIENTS, ids=[name for name, _ in GRADIENTS])
def test_gradients_equal_those_of_transformers(tmp_path, family, options):
    """Of the mean cross-entropy, tensor by tensor in the names of the file: our gradients are saved as if weights."""
    theirs = random_theirs(family, options).train()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_network(tmp_path / "theirs", dtype=torch.float64)
    # No padding tokens, whose embeddings have no gradient there.
    ids = torch.randint(4, 40, (2, 30), generator=torch.Generator().manual_seed(6))
    # Not their own loss, which is in float32.
    for logits in (ours(ids[:, :-1]), theirs(ids[:, :-1]).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    with torch.no_grad():
        for network in (ours, theirs):
            for parameter in network.parameters():
                parameter.copy_(parameter.grad)
    written(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "expected")
    expected = load_network(tmp_path / "expected", dtype=torch.float64).state_dict()
    found = load_network(tmp_path / "ours", dtype=torch.float64).state_dict()
    tolerance = 1e-5 if family == "Gemma2" else 1e-9
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance, msg=name)
