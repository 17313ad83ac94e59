"""llama.cpp's architectures: which of our configurations they compute, their metadata and their tensors.

Sources: ggml-org/llama.cpp, ``conversion/`` for names and values, ``src/models/`` for what is computed from them.

Legend: D width, H heads, W head width.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from align.io.families import family_of, why_no_twin
from align.io.gguf.metadata import Metadata
from align.io.gguf.rope import read_scaling, scaling_misfits, write_scaling
from align.model.config import GPTConfig
from align.model.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

if TYPE_CHECKING:
    import torch

OURS = "align.settings"
"""Key of our own, which llama.cpp ignores: settings of GPTConfig, as JSON, that its metadata can't express"""

_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}

_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "attention_output_layernorm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp_output_layernorm": "post_ffw_norm",
}

_FOREIGN = (
    "expert_count",
    "expert_used_count",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.clamp_kqv",
)
"""Keys of other networks that share an architecture's name"""

_KEPT = ("init_std", "embedding_std", "dropout")
"""Settings that only training reads"""


class GgufTensor(NamedTuple):
    """A tensor of a GGUF file, made of one or more of ours.

    Attributes:
        name: its name in the file.
        parts: names of our tensors, concatenated along their first axis.
        heads: if not 0, the two halves of the rows of each of so many heads alternate in the file.
        offset: what the file's values are above ours.
    """

    name: str
    parts: tuple[str, ...]
    heads: int = 0
    offset: float = 0.0

    def join(self, state: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """The file's tensor from ours."""
        import torch

        first, *others = (state[part] for part in self.parts)
        values = torch.cat([first, *others]) if others else first
        if self.heads:
            values = values.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return values + self.offset if self.offset else values

    def split(self, values: "torch.Tensor", rows: Sequence[int]) -> "dict[str, torch.Tensor]":
        """Our tensors from the file's; ``rows`` has the length of each."""
        if self.heads:
            values = values.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        if self.offset:
            values = values - self.offset
        return dict(zip(self.parts, values.split(list(rows)), strict=True))


class Architecture:
    """One of llama.cpp's architectures; subclasses are singletons without state."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """Of the families of ``align.io.families`` that it computes"""
    needs: ClassVar[Mapping[str, Any]] = {}
    """Settings of GPTConfig that it fixes, where they are not the defaults"""
    scalings: ClassVar[tuple[type[RopeScaling], ...]] = (LinearScaling, YarnScaling)
    """RoPE scalings that it computes"""
    alternates: ClassVar[bool] = False
    """RoPE rotates adjacent rows of query and key matrices, instead of rows of the two halves of a head"""
    fused: ClassVar[bool] = False
    """Queries, keys and values are one tensor"""
    head: ClassVar[Literal["optional", "required", "tied"]] = "optional"
    """Whether a file may, must or can't have an output matrix; without one it is tied"""

    def misfits(self, config: GPTConfig) -> list[str]:
        """Why llama.cpp can't compute ``config``: one phrase per setting; empty if it can."""
        found = scaling_misfits(config, self.scalings)
        if self.head == "tied" and not config.tied_embeddings:
            found.append("tied_embeddings is False (needs True)")
        return found + self.window_misfits(config)

    def window_misfits(self, config: GPTConfig) -> list[str]:
        """Why it can't compute the windows."""
        if config.window is not None and config.window < config.context:
            return [f"window is {config.window} (needs None, or the context, {config.context})"]
        return []

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Metadata, by key without the architecture's name."""
        return {
            "vocab_size": config.vocab_size,
            "context_length": config.context,
            "embedding_length": config.width,
            "block_count": config.layers,
            "feed_forward_length": config.resolved_ff_width,
            "attention.head_count": config.heads,
            "attention.head_count_kv": config.resolved_kv_heads,
            "attention.key_length": config.resolved_head_width,
            "attention.value_length": config.resolved_head_width,
            self.norm_key: config.norm_eps,
            **self.write_rope(config),
        }

    norm_key: ClassVar[str] = "attention.layer_norm_rms_epsilon"

    def write_rope(self, config: GPTConfig) -> dict[str, Any]:
        """Metadata of position encodings."""
        return {
            "rope.dimension_count": config.rotated_width,
            "rope.freq_base": config.rope_theta,
            **write_scaling(config.rope_scaling),
        }

    def own_settings(self, config: GPTConfig) -> dict[str, Any]:
        """Settings that llama.cpp's metadata can't express, for ``OURS``."""
        values = config.to_dict()
        names = [name for name in _KEPT if values[name] != getattr(GPTConfig, name)]
        if isinstance(config.rope_scaling, Llama3Scaling):
            names.append("rope_scaling")
        return {name: values[name] for name in names}

    def read(self, metadata: Metadata, divisors: Sequence[float] | None, names: Iterable[str]) -> GPTConfig:
        """The configuration of a file.

        Args:
            metadata: of the file.
            divisors: of RoPE's frequencies, its tensor ``rope_freqs``; None if it has none.
            names: of its tensors.

        Raises:
            ValueError: a key is missing, or the file needs something our network does not support.
        """
        for key in _FOREIGN:
            if value := metadata.get(key, 0):
                raise metadata.unsupported(key, value, "none")
        settings = self.settings(metadata, set(names)) | self.read_rope(metadata)
        try:
            own = json.loads(metadata.values.get(OURS, "{}"))
            scaling = read_scaling(metadata, settings, divisors, own.pop("rope_scaling", None))
            return GPTConfig.from_dict(settings | {"rope_scaling": scaling} | own)
        except (TypeError, AttributeError, ValueError) as error:
            prefix = "" if str(error).startswith(str(metadata.path)) else f"{metadata.path}: "
            raise ValueError(f"{prefix}{error}") from None

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """The settings of GPTConfig except those of RoPE."""
        heads, width = metadata.get("attention.head_count"), metadata.get("embedding_length")
        head_width = metadata.get("attention.key_length", None)
        metadata.only("attention.value_length", width // heads if head_width is None else head_width)
        return {
            **self.needs,
            "vocab_size": metadata.embedding[0],
            "width": width,
            "layers": metadata.get("block_count"),
            "heads": heads,
            "kv_heads": metadata.get("attention.head_count_kv", heads),
            "head_width": head_width,
            "ff_width": metadata.get("feed_forward_length"),
            "context": metadata.get("context_length"),
            "norm_eps": metadata.get(self.norm_key),
            "tied_embeddings": "output.weight" not in names,
        }

    def read_rope(self, metadata: Metadata) -> dict[str, Any]:
        """Base and share of rotated components."""
        heads, width = metadata.get("attention.head_count"), metadata.get("embedding_length")
        head_width = metadata.get("attention.key_length", width // heads)
        rotated = metadata.get("rope.dimension_count", head_width)
        # Rows of query and key matrices alternate within a whole head; llama.cpp refuses the key too.
        if not 0 < rotated <= head_width or (self.alternates and rotated != head_width):
            raise metadata.unsupported("rope.dimension_count", rotated, f"the width of a head, {head_width}")
        return {"rope_theta": metadata.get("rope.freq_base", 10000.0), "rope_fraction": rotated / head_width}

    def layout(self, names: Iterable[str], config: GPTConfig) -> list[GgufTensor]:
        """The tensors of a file for our tensors ``names``."""
        found = []
        names = [name for name in names if not (name == "lm_head.weight" and config.tied_embeddings)]
        for name in names:
            part = name.rpartition(".")[0].rpartition(".")[2]
            if self.fused and part in ("q_proj", "k_proj", "v_proj"):
                if part == "q_proj":
                    parts = tuple(name.replace("q_proj", kind) for kind in ("q_proj", "k_proj", "v_proj"))
                    found.append(GgufTensor(_named(name).replace("attn_q", "attn_qkv"), parts))
                continue
            heads = {"q_proj": config.heads, "k_proj": config.resolved_kv_heads}.get(part, 0) if self.alternates else 0
            offset = 1.0 if config.norm_offset and name.endswith("norm.weight") else 0.0
            found.append(GgufTensor(_named(name), (name,), heads, offset))
        if self.head == "required" and config.tied_embeddings:
            found.append(GgufTensor("output.weight", ("model.embed_tokens.weight",)))
        return found


class Llama(Architecture):
    """Llama and Mistral; biases are where the file has them."""

    name = "llama"
    model_types = ("llama", "mistral")
    scalings = (LinearScaling, Llama3Scaling, YarnScaling)
    alternates = True

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """Adds biases."""
        biases = {"qkv_bias": "blk.0.attn_q.bias" in names, "bias": "blk.0.attn_output.bias" in names}
        return super().settings(metadata, names) | biases


class Qwen2(Architecture):
    """Llama with biases on queries, keys and values."""

    name = "qwen2"
    model_types = ("qwen2",)
    needs = {"qkv_bias": True}


class Qwen3(Architecture):
    """Llama with norms on each head's queries and keys."""

    name = "qwen3"
    model_types = ("qwen3",)
    needs = {"qk_norm": "head"}


class SmolLM3(Architecture):
    """Llama without RoPE in every fourth block."""

    name = "smollm3"
    model_types = ("smollm3",)
    alternates = True

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires the blocks without RoPE."""
        found = super().misfits(config)
        if config.no_rope_layers != (needed := _every_fourth(config.layers)):
            found.append(f"no_rope_layers is {config.no_rope_layers} (needs {needed})")
        return found

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """Adds the blocks without RoPE."""
        found = super().settings(metadata, names)
        return found | {"no_rope_layers": _every_fourth(found["layers"])}


class Olmo2(Architecture):
    """Norms on the outputs of sub-layers, and on all queries and keys together."""

    name = "olmo2"
    model_types = ("olmo2",)
    needs = {"norm_placement": "output", "qk_norm": "all"}
    head = "required"

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """Refuses windows (OLMo-3)."""
        if window := metadata.get("attention.sliding_window", 0):
            raise metadata.unsupported("attention.sliding_window", window, "none")
        return super().settings(metadata, names)


class _Gemma(Architecture):
    """What both share: file values of norms are 1 + weight."""

    needs = {"norm_placement": "both", "norm_offset": True, "scale_embeddings": True, "feed_forward": "geglu"}
    interval: ClassVar[int]
    """One block in this many has no window, the last of each group"""
    largest: ClassVar[int]
    """Blocks of the model whose attention scale is 1 / sqrt(D / H) instead of 1 / sqrt(W)"""

    def attention_scale(self, layers: int, width: int, heads: int, head_width: int) -> float:
        """The factor of query-key products, which llama.cpp derives from the number of blocks."""
        return float((width // heads if layers == self.largest else head_width) ** -0.5)

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires the attention scale."""
        found = super().misfits(config)
        scale = self.attention_scale(config.layers, config.width, config.heads, config.resolved_head_width)
        ours = config.attention_scale or config.resolved_head_width**-0.5
        if abs(ours - scale) > 1e-6 * scale:
            found.append(f"attention_scale is {config.attention_scale} (needs {scale})")
        return found

    def windowed(self, layers: int) -> tuple[int, ...]:
        """The blocks with a window."""
        return tuple(layer for layer in range(layers) if (layer + 1) % self.interval)

    def window_misfits(self, config: GPTConfig) -> list[str]:
        """Windows are in all but every ``interval``-th block."""
        if config.window is None or config.window >= config.context:
            return []
        layers = tuple(range(config.layers)) if config.window_layers is None else config.window_layers
        if layers != (needed := self.windowed(config.layers)):
            return [f"window_layers is {config.window_layers} (needs {needed})"]
        return []

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the window, and soft caps."""
        caps = {
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
        return (
            super().write(config)
            | {"attention.sliding_window": config.window or config.context}
            | {key: cap for key, cap in caps.items() if cap is not None}
        )

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """Adds windows and the attention scale."""
        found = super().settings(metadata, names)
        layers, width, heads = found["layers"], found["width"], found["heads"]
        window = self.read_window(metadata)
        interval = metadata.values.get(f"{self.name}.attention.sliding_window_pattern", self.interval)
        windowed = self.windowed(layers)
        if isinstance(interval, list):
            windowed = tuple(layer for layer, has_window in enumerate(interval[:layers]) if has_window)
        elif interval != self.interval:
            raise metadata.unsupported("attention.sliding_window_pattern", interval, str(self.interval))
        if window and window < found["context"] and windowed:
            found |= {"window": window, "window_layers": None if len(windowed) == layers else windowed}
        head_width = found["head_width"] or width // heads
        return found | {"attention_scale": self.attention_scale(layers, width, heads, head_width)}

    def read_window(self, metadata: Metadata) -> int:
        """The window, tokens; 0 if there is none."""
        return int(metadata.get("attention.sliding_window", 0))


class Gemma2(_Gemma):
    """Soft caps, and windows in every other block."""

    name = "gemma2"
    model_types = ("gemma2",)
    scalings = (LinearScaling,)
    interval = 2
    largest = 46
    head = "tied"

    def misfits(self, config: GPTConfig) -> list[str]:
        """Also requires soft caps, which it computes with 50 and 30 where the file has none."""
        caps = [name for name in ("attention_softcap", "logit_softcap") if getattr(config, name) is None]
        return super().misfits(config) + [f"{name} is None (needs a number)" for name in caps]

    def read_window(self, metadata: Metadata) -> int:
        """As llama.cpp, 4,096 where the file has none."""
        return int(metadata.get("attention.sliding_window", 4096))

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """Adds soft caps."""
        return super().settings(metadata, names) | {
            "attention_softcap": metadata.get("attn_logit_softcapping", 50.0),
            "logit_softcap": metadata.get("final_logit_softcapping", 30.0),
        }


class Gemma3(_Gemma):
    """The text model: norms on queries and keys, and a RoPE base of their own in the blocks with a window."""

    name = "gemma3"
    model_types = ("gemma3_text",)
    needs = _Gemma.needs | {"qk_norm": "head"}
    scalings = (LinearScaling,)
    interval = 6
    largest = 62

    def write_rope(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the base of blocks with a window."""
        return super().write_rope(config) | {"rope.freq_base_swa": config.window_rope_theta or config.rope_theta}

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """Adds the soft cap of logits, and the base of blocks with a window."""
        found = super().settings(metadata, names)
        if "window" in found:
            found["window_rope_theta"] = metadata.get("rope.freq_base_swa", 10000.0)
        return found | {"logit_softcap": metadata.get("final_logit_softcapping", None)}


class GPT2(Architecture):
    """Learned positions, LayerNorm, GELU, biases everywhere."""

    name = "gpt2"
    model_types = ("gpt2",)
    needs = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
    scalings = ()
    fused = True
    norm_key = "attention.layer_norm_epsilon"

    def write_rope(self, config: GPTConfig) -> dict[str, Any]:
        """It has none."""
        return {}

    def read_rope(self, metadata: Metadata) -> dict[str, Any]:
        """It has none."""
        return {}


class GPTNeoX(Architecture):
    """Partial rotary positions, LayerNorm, biases, usually a parallel residual.

    llama.cpp computes its GELU with tanh, like all others; Pythia has the exact one, which is what files without a
    setting of ours are read as.
    """

    name = "gptneox"
    model_types = ("gpt_neox",)
    needs = {"norm": "layernorm", "qkv_bias": True, "bias": True}
    fused = True
    head = "required"
    norm_key = "attention.layer_norm_epsilon"

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the residual."""
        return super().write(config) | {"use_parallel_residual": config.parallel_residual}

    def own_settings(self, config: GPTConfig) -> dict[str, Any]:
        """Adds the kind of GELU, unless it is the exact one."""
        kind = {} if config.feed_forward == "gelu_exact" else {"feed_forward": config.feed_forward}
        return super().own_settings(config) | kind

    def settings(self, metadata: Metadata, names: set[str]) -> dict[str, Any]:
        """Adds the residual, and Pythia's GELU."""
        return super().settings(metadata, names) | {
            "parallel_residual": metadata.get("use_parallel_residual", True),
            "feed_forward": "gelu_exact",
        }


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Llama(),
        Qwen2(),
        Qwen3(),
        SmolLM3(),
        Olmo2(),
        Gemma2(),
        Gemma3(),
        GPT2(),
        GPTNeoX(),
    )
}
"""By the name that files state"""

_BY_TYPE = {kind: architecture for architecture in ARCHITECTURES.values() for kind in architecture.model_types}


def architecture_of(config: GPTConfig) -> Architecture:
    """The architecture that computes ``config``.

    Raises:
        ValueError: none does; the line names the nearest and the settings that it can't compute.
    """
    if reason := why_no_twin(config):
        raise ValueError(f"llama.cpp does not support the architecture: {reason}")
    architecture = _BY_TYPE[family_of(config).model_type]
    if misfits := architecture.misfits(config):
        raise ValueError(f"llama.cpp's architecture {architecture.name} can't compute it: {', '.join(misfits)}")
    return architecture


def architecture_in(metadata: Metadata) -> Architecture:
    """The architecture of a file.

    Raises:
        ValueError: it is not supported.
    """
    architecture = ARCHITECTURES.get(metadata.architecture)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{metadata.path}: general.architecture is {metadata.architecture!r}; supported: {known}")
    return architecture


def _named(name: str) -> str:
    """llama.cpp's name of one of our tensors."""
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _every_fourth(layers: int) -> tuple[int, ...]:
    return tuple(range(3, layers, 4))
