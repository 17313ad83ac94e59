"""GPTNeoXForCausalLM (Pythia): LayerNorm, partial rotary positions, GELU, biases, usually a parallel residual."""

import re
from collections.abc import Iterable
from typing import Any

from align.io.families.family import ConfigJson, Family, FileTensor, fused_layout, read_rope, write_rope
from align.model.config import GPTConfig

_LAYER = r"model\.layers\.(\d+)\."

_NAMES = {
    r"model\.embed_tokens\.weight": "gpt_neox.embed_in.weight",
    _LAYER + r"(input_layernorm|post_attention_layernorm)\.(weight|bias)": r"gpt_neox.layers.\1.\2.\3",
    _LAYER + r"self_attn\.q_proj\.(weight|bias)": r"gpt_neox.layers.\1.attention.query_key_value.\2",
    _LAYER + r"self_attn\.o_proj\.(weight|bias)": r"gpt_neox.layers.\1.attention.dense.\2",
    _LAYER + r"mlp\.up_proj\.(weight|bias)": r"gpt_neox.layers.\1.mlp.dense_h_to_4h.\2",
    _LAYER + r"mlp\.down_proj\.(weight|bias)": r"gpt_neox.layers.\1.mlp.dense_4h_to_h.\2",
    r"model\.norm\.(weight|bias)": r"gpt_neox.final_layer_norm.\1",
    r"lm_head\.weight": "embed_out.weight",
    r"score\.weight": "score.weight",
}

_BUFFER = re.compile(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$")

_ACTS = {"gelu_exact": ("gelu",), "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")}


class GPTNeoX(Family):
    """Queries, keys and values are one fused matrix, head by head."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    classifier = "GPTNeoXForSequenceClassification"
    needs = {"norm": "layernorm", "qkv_bias": True, "bias": True}
    free = frozenset({"rope_scaling", "rope_fraction", "parallel_residual", "feed_forward"})

    defaults = {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "embedding_std": 0.02,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
    }

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires a feed-forward layer without a gate, as many key heads as heads, and heads of width / heads."""
        found = super().misfits(config)
        if config.feed_forward not in _ACTS:
            found.append(f"feed_forward is {config.feed_forward!r} (needs 'gelu' or 'gelu_exact')")
        if config.resolved_kv_heads != config.heads:
            found.append(f"kv_heads is {config.kv_heads} (needs as many as heads, {config.heads})")
        if config.resolved_head_width * config.heads != config.width:
            found.append(f"head_width is {config.head_width} (needs width / heads, {config.width} / {config.heads})")
        return found

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Dropout applies to attention weights and sub-layer outputs, not to the embedding."""
        rope = write_rope(config)
        rope["rope_parameters"]["partial_rotary_factor"] = config.rope_fraction
        return rope | {
            "vocab_size": config.vocab_size,
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "intermediate_size": config.resolved_ff_width,
            "hidden_act": _ACTS[config.feed_forward][0],
            "rotary_pct": config.rope_fraction,
            "rotary_emb_base": config.rope_theta,
            "max_position_embeddings": config.context,
            "layer_norm_eps": config.norm_eps,
            "attention_dropout": config.dropout,
            "hidden_dropout": config.dropout,
            "initializer_range": config.init_std,
            "embedding_std": config.embedding_std,
            "tie_word_embeddings": config.tied_embeddings,
            "use_parallel_residual": config.parallel_residual,
            "attention_bias": True,
        }

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Refuses attention without biases, heads of another width, and other activations than GELU."""
        fields.only("attention_bias", True)
        by_act = {theirs: ours for ours, acts in _ACTS.items() for theirs in acts}
        act = fields.only("hidden_act", *by_act)
        width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
        fields.only("head_dim", None, width // heads, default=None)
        return {
            **self.needs,
            **read_rope(fields, theta=10_000.0, fraction=0.25, names=("rotary_emb_base", "rotary_pct")),
            "vocab_size": fields.count("vocab_size"),
            "context": fields.count("max_position_embeddings"),
            "width": width,
            "layers": fields.count("num_hidden_layers"),
            "heads": heads,
            "ff_width": fields.count("intermediate_size"),
            "norm_eps": fields.number("layer_norm_eps"),
            "dropout": fields.number("attention_dropout"),
            "init_std": fields.number("initializer_range"),
            "embedding_std": fields.number("embedding_std"),
            "tied_embeddings": fields.flag("tie_word_embeddings"),
            "parallel_residual": fields.flag("use_parallel_residual"),
            "feed_forward": by_act[act],
        }

    def layout(self, names: Iterable[str], config: GPTConfig) -> list[FileTensor]:
        """Our tensors under GPT-NeoX's names; queries, keys and values alternate head by head."""
        return fused_layout(names, _NAMES, groups=config.heads)

    def canonical(self, name: str) -> str | None:
        """Skips the causal mask and the rotary frequencies that older files contain."""
        return None if _BUFFER.search(name) else name
