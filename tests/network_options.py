"""Options of networks for tests: the style of each family of checkpoints, and any combination for hypothesis.

For the shape of ``network_of`` in tests/conftest.py: 2 layers, 4 heads of width 8. Windows are shorter than the rows of
the tests, so that they matter.
"""

from hypothesis import strategies as st

from align.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling

GEMMA = {
    "norm_placement": "both",
    "norm_offset": True,
    "scale_embeddings": True,
    "feed_forward": "geglu",
    "kv_heads": 2,
    "window": 3,
    "window_layers": (0,),
    "attention_scale": 0.3,
}

STYLES = {
    "llama": {"kv_heads": 2, "rope_scaling": Llama3Scaling(original_context=8)},
    "mistral": {"kv_heads": 2, "window": 4, "head_width": 6},
    "qwen2": {"kv_heads": 1, "qkv_bias": True, "rope_scaling": YarnScaling(original_context=8)},
    "qwen3": {"kv_heads": 2, "qk_norm": "head", "head_width": 6},
    "smollm3": {"kv_heads": 2, "no_rope_layers": (1,)},
    "olmo2": {"kv_heads": 2, "norm_placement": "output", "qk_norm": "all", "tied_embeddings": False},
    "gemma2": GEMMA | {"attention_softcap": 2.0, "logit_softcap": 3.0},
    "gemma3": GEMMA | {"qk_norm": "head", "window_rope_theta": 50.0, "rope_scaling": LinearScaling(factor=3.0)},
    "gpt2": {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True},
    "gpt_neox": {
        "norm": "layernorm",
        "rope_fraction": 0.5,
        "parallel_residual": True,
        "feed_forward": "gelu_exact",
        "qkv_bias": True,
        "bias": True,
        "tied_embeddings": False,
    },
    "post": {"positions": "sinusoidal", "norm_placement": "post"},
}
"""Settings of GPTConfig by family; the last has no Hugging Face equivalent"""


@st.composite
def any_options(draw):
    """Any valid combination of settings."""
    options = {
        "norm": draw(st.sampled_from(["rmsnorm", "layernorm"])),
        "norm_placement": draw(st.sampled_from(["pre", "post", "output", "both"])),
        "positions": draw(st.sampled_from(["rope", "learned", "sinusoidal"])),
        "feed_forward": draw(st.sampled_from(["swiglu", "geglu", "gelu", "gelu_exact"])),
        "kv_heads": draw(st.sampled_from([1, 2, 4])),
        "head_width": draw(st.sampled_from([None, 6])),
        "qk_norm": draw(st.sampled_from(["none", "head", "all"])),
        "attention_scale": draw(st.sampled_from([None, 0.4])),
        "attention_softcap": draw(st.sampled_from([None, 1.5])),
        "logit_softcap": draw(st.sampled_from([None, 2.5])),
        "window": draw(st.sampled_from([None, 1, 4])),
    }
    for name in ("qkv_bias", "bias", "tied_embeddings", "scale_embeddings"):
        options[name] = draw(st.booleans())
    options["norm_offset"] = options["norm"] == "rmsnorm" and draw(st.booleans())
    options["parallel_residual"] = options["norm_placement"] == "pre" and draw(st.booleans())
    if options["window"] is not None:
        options["window_layers"] = draw(st.sampled_from([None, (0,), (1,)]))
    if options["positions"] == "rope":
        options["no_rope_layers"] = draw(st.sampled_from([(), (0,), (0, 1)]))
        scalings = [None, LinearScaling(factor=2.0), Llama3Scaling(original_context=8), YarnScaling(original_context=8)]
        options["rope_scaling"] = draw(st.sampled_from(scalings))
        if options["head_width"] is None:
            options["rope_fraction"] = draw(st.sampled_from([1.0, 0.5]))
        if options["window"] is not None:
            options["window_rope_theta"] = draw(st.sampled_from([None, 30.0]))
    return options
