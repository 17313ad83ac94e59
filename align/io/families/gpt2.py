"""GPT2LMHeadModel: learned positions, LayerNorm, GELU, biases everywhere."""

import re
from collections.abc import Iterable
from typing import Any

from align.io.families.family import ConfigJson, Family, FileTensor, fused_layout
from align.model.config import GPTConfig

_LAYER = r"model\.layers\.(\d+)\."

_NAMES = {
    r"model\.embed_tokens\.weight": "transformer.wte.weight",
    r"model\.embed_positions\.weight": "transformer.wpe.weight",
    _LAYER + r"input_layernorm\.(weight|bias)": r"transformer.h.\1.ln_1.\2",
    _LAYER + r"self_attn\.q_proj\.(weight|bias)": r"transformer.h.\1.attn.c_attn.\2",
    _LAYER + r"self_attn\.o_proj\.(weight|bias)": r"transformer.h.\1.attn.c_proj.\2",
    _LAYER + r"post_attention_layernorm\.(weight|bias)": r"transformer.h.\1.ln_2.\2",
    _LAYER + r"mlp\.up_proj\.(weight|bias)": r"transformer.h.\1.mlp.c_fc.\2",
    _LAYER + r"mlp\.down_proj\.(weight|bias)": r"transformer.h.\1.mlp.c_proj.\2",
    r"model\.norm\.(weight|bias)": r"transformer.ln_f.\1",
    r"lm_head\.weight": "lm_head.weight",
    r"score\.weight": "score.weight",
}

_CONV1D = re.compile(r"\.c_(attn|proj|fc)\.weight$")

_CAUSAL_MASK = re.compile(r"\.attn\.(bias|masked_bias)$")

_ALIASES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}
"""The names that transformers reads too, and prefers"""


class GPT2(Family):
    """Queries, keys and values are one fused matrix, and matrices are stored ``[in, out]`` (Conv1D)."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    classifier = "GPT2ForSequenceClassification"
    needs = {
        "norm": "layernorm",
        "positions": "learned",
        "feed_forward": "gelu",
        "qkv_bias": True,
        "bias": True,
    }

    defaults = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "embedding_std": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires a head width of width / heads."""
        found = super().misfits(config)
        if config.resolved_kv_heads != config.heads:
            found.append(f"kv_heads is {config.kv_heads} (needs as many as heads, {config.heads})")
        if config.resolved_head_width * config.heads != config.width:
            found.append(f"head_width is {config.head_width} (needs width / heads, {config.width} / {config.heads})")
        return found

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Dropout applies to attention weights and sub-layer outputs, not to the embedding."""
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.context,
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": config.resolved_ff_width,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "attn_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "embd_pdrop": 0.0,
            "initializer_range": config.init_std,
            "embedding_std": config.embedding_std,
            "tie_word_embeddings": config.tied_embeddings,
        }

    def read(self, fields: ConfigJson) -> dict[str, Any]:
        """Reads dropout from resid_pdrop; refuses attention variants."""
        fields.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
        fields.only("scale_attn_weights", True)
        fields.only("scale_attn_by_inverse_layer_idx", False)
        fields.only("add_cross_attention", False)
        width = _size(fields, "n_embd")
        return {
            **self.needs,
            "vocab_size": fields.count("vocab_size"),
            "context": _size(fields, "n_positions"),
            "width": width,
            "layers": _size(fields, "n_layer"),
            "heads": _size(fields, "n_head"),
            "ff_width": fields.count("n_inner", null=4 * width),
            "norm_eps": fields.number("layer_norm_epsilon"),
            "dropout": fields.number("resid_pdrop"),
            "init_std": fields.number("initializer_range"),
            "embedding_std": fields.number("embedding_std"),
            "tied_embeddings": fields.flag("tie_word_embeddings"),
        }

    def layout(self, names: Iterable[str], config: GPTConfig) -> list[FileTensor]:
        """Our tensors under GPT-2's names; the query, key and value matrices of a layer are one tensor."""
        tensors = fused_layout(names, _NAMES)
        return [tensor._replace(transposed=bool(_CONV1D.search(tensor.name))) for tensor in tensors]

    def canonical(self, name: str) -> str | None:
        """Adds the prefix that older files omit; skips the causal mask that they contain."""
        if _CAUSAL_MASK.search(name):
            return None
        return name if name.startswith(("transformer.", "lm_head.", "score.")) else f"transformer.{name}"


def _size(fields: ConfigJson, name: str) -> int:
    """A size under either of its names.

    Raises:
        ValueError: it is no size, or the two differ.
    """
    alias = _ALIASES[name]
    if alias not in fields.values:
        return int(fields.count(name))
    size = int(fields.count(alias))
    if name in fields.values and fields.count(name) != size:
        raise fields.conflict(name, fields.values[name], alias, size)
    return size
