"""LoRA: adapt a frozen matrix W as W + s B A, with low-rank A and B (Hu et al. 2021, equation 3), using peft's layers.

s is alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023). DoRA (Liu et al. 2024, equation 5) also learns the
norm of each row: m (W + s B A) / |W + s B A|. B starts at 0 (and m at |W|), so a new adapter changes nothing.

Several networks can share base weights, each with its own adapter and head (``share_base``): a policy, its reference
and a value model then take the memory of one. Only this module and ``merging`` use private attributes of peft.

Legend: out, in: dimensions of a matrix; r rank.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from align.adapters.merging import MergedState, base_parameters, lora_layers
from align.model.four_bit import dense, is_four_bit
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a block, by their Hugging Face names"""

NAME = "default"
"""Default name of an adapter"""

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Network = TypeVar("Network", GPT, ScalarGPT)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on frozen base weights.

    Raises:
        ValueError: a setting is invalid.
    """

    rank: int = 16
    """Rank r"""
    alpha: float = 32.0
    """Scales the update by alpha / rank (rslora: alpha / sqrt(rank))"""
    dropout: float = 0.0
    """On the adapter's input, in [0, 1); 0 in DPO and PPO, whose training and sampling log-probs must agree"""
    targets: tuple[str, ...] | None = None
    """Matrices to adapt: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; null: all"""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps the size of updates as the rank grows (Kalajdzievski 2023)"""
    dora: bool = False
    """Learn the norm of each row separately from its direction (Liu et al. 2024)"""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the frozen weights; adapters are always float32. bfloat16 halves their memory, and is slow on CPUs
    without bfloat16 units"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for name, value, valid, expected in (
            ("rank", self.rank, self.rank >= 1, "at least 1"),
            ("alpha", self.alpha, self.alpha > 0, "above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)"),
            ("targets", self.targets, self.targets is None or len(self.targets) > 0, "null (all) or at least one name"),
            ("base_dtype", self.base_dtype, self.base_dtype in _TYPES, " or ".join(_TYPES)),
        ):
            if not valid:
                raise ValueError(f"lora.{name} is {value!r}: it must be {expected}")
        for target in self.targets or ():
            if target not in LAYERS:
                raise ValueError(f"lora.targets has {target!r}: each must be one of {', '.join(LAYERS)}")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base weights."""
        return _TYPES[self.base_dtype]

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def same_weights(self, other: "LoraConfig") -> bool:
        """Whether the weights of an adapter mean the same under both settings."""
        mine, theirs = ((c.rank, c.alpha, set(c.targets or LAYERS), c.rslora, c.dora) for c in (self, other))
        return mine == theirs


def adapters(network: nn.Module) -> dict[str, LoraConfig]:
    """The adapters of a network by name; empty where it has none."""
    found: dict[str, LoraConfig] = network.__dict__.setdefault("_adapters", {})
    return found


def add_adapter(
    network: GPT | ScalarGPT, config: LoraConfig, *, name: str = NAME, seed: int = 0, trained: bool = True
) -> None:
    """Add an adapter that changes nothing yet, make it the active one, and freeze everything else.

    A ScalarGPT's head stays trainable. The base keeps its dtype; ``convert_base`` changes it.

    Args:
        network: changed in place: peft's layers replace linear ones, which become their ``base_layer``.
        config: of the adapter.
        name: of the adapter; a network may have several, one of which is active.
        seed: of A; the global generator is not used.
        trained: False freezes adapter and head too.

    Raises:
        ValueError: the network has an adapter of that name, or lacks a layer that ``config.targets`` names.
    """
    if name in adapters(network):
        raise ValueError(f"the network already has an adapter named {name!r}; choose another name")
    present = {name.rpartition(".")[2] for name, _ in network.model.layers.named_modules()} & set(LAYERS)
    for target in config.targets or ():
        if target not in present:
            raise ValueError(
                f"lora.targets has {target!r}, which this network lacks; it has "
                f"{', '.join(layer for layer in LAYERS if layer in present)}"
            )
    # peft imports transformers, so import it only where adapters are used.
    import peft

    from align.adapters.low_rank import LowRankLinear

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=[layer for layer in LAYERS if layer in (config.targets or present)],
        use_rslora=config.rslora,
        use_dora=config.dora,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # intended
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, network, adapter_name=name)
    adapters(network)[name] = config
    for _, layer in lora_layers(network):
        if type(layer) is peft.tuners.lora.Linear:
            layer.__class__ = LowRankLinear
        for part in _parts(layer, name).values():
            # peft uses the base's dtype, in which small updates would be lost.
            part.data = part.data.to(torch.promote_types(part.dtype, torch.float32))
        if config.dora:
            vector = layer.lora_magnitude_vector[name].weight
            vector.data = torch.linalg.vector_norm(dense(layer.base_layer.weight).to(vector.dtype), dim=1)
    use_adapter(network, name)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in (*adapter_parameters(network, name).values(), *_head(network)):
        parameter.requires_grad_(trained)


def convert_base(network: GPT | ScalarGPT, dtype: torch.dtype) -> None:
    """Convert the base weights, for every network that shares them; a ScalarGPT's head stays float32.

    Quantized and float64 weights are not converted.
    """
    for name, parameter in base_parameters(network).items():
        if parameter.dtype in _TYPES.values():
            parameter.data = parameter.data.to(torch.float32 if name == "score.weight" else dtype)


def adapter_parameters(network: nn.Module, name: str = NAME) -> dict[str, nn.Parameter]:
    """The tensors of an adapter by their names in peft's files: ``model.layers.0.self_attn.q_proj.lora_A.weight``."""
    return {
        f"{module}.{part}": parameter
        for module, layer in lora_layers(network)
        for part, parameter in _parts(layer, name).items()
    }


def use_adapter(network: nn.Module, name: str | None) -> None:
    """Activate one of a network's adapters, or none (None), which gives the base exactly.

    Unlike peft's own methods this does not change ``requires_grad``.

    Raises:
        ValueError: there is no such adapter.
    """
    if name is not None and name not in adapters(network):
        raise ValueError(f"the network has no adapter named {name!r}; it has {', '.join(adapters(network)) or 'none'}")
    for _, layer in lora_layers(network):
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]


def active_adapter(network: nn.Module) -> str | None:
    """The active adapter; None if the network has none or they are off."""
    for _, layer in lora_layers(network):
        return None if layer.disable_adapters else str(layer.active_adapters[0])
    return None


@contextmanager
def using_adapter(network: nn.Module, name: str | None) -> Iterator[None]:
    """``use_adapter`` for the length of a block.

    With activation checkpointing the backward pass must be inside too, because it recomputes blocks. Networks of
    ``share_base`` don't have this restriction.
    """
    before = active_adapter(network)
    use_adapter(network, name)
    try:
        yield
    finally:
        use_adapter(network, before)


def merge(network: nn.Module) -> None:
    """Merge the active adapter into the base weights, in place.

    Raises:
        ValueError: it is merged already, there is none, or the base has 4 bits, which can't represent the update.
    """
    if active_adapter(network) is None:
        raise ValueError("there is no active adapter to merge")
    for _, layer in lora_layers(network):
        if is_four_bit(layer.base_layer.weight):
            raise ValueError("the base has 4 bits, which can't represent a merged adapter: use merged_copy")
        if layer.merged:
            raise ValueError("the adapter is merged already")
        layer.merge()


def unmerge(network: nn.Module) -> None:
    """Undo ``merge``, up to rounding.

    Raises:
        ValueError: nothing is merged.
    """
    for _, layer in lora_layers(network):
        if not layer.merged:
            raise ValueError("no adapter is merged")
        layer.unmerge()


def merged_copy(network: GPT | ScalarGPT) -> GPT | ScalarGPT:
    """A copy of ``network`` with its active adapter merged, in memory of its own."""
    with built_without_memory():
        plain = type(network)(network.config)
    state = MergedState(network)
    plain.load_state_dict({name: state[name].clone() for name in state}, assign=True)
    return plain.train(network.training)


def share_base(network: GPT | ScalarGPT, kind: type[Network]) -> Network:
    """Another network on the same base weights, without adapters and without memory of its own.

    Adapters of one network don't affect the other; moving the base to a device moves both.

    Args:
        network: with or without adapters.
        kind: GPT, or ScalarGPT, with a copy of the head of ``network``, or a new one (seed 0, float32) if it has none.

    Raises:
        ValueError: a GPT can't share a ScalarGPT, which has no output matrix; or the base has 4 bits.
    """
    if kind is GPT and isinstance(network, ScalarGPT):
        raise ValueError("a ScalarGPT has no output matrix to share with a GPT")
    if any(is_four_bit(tensor) for tensor in network.parameters()):
        raise ValueError("the base has 4 bits already: share it before quantizing it")
    with built_without_memory():
        other = kind(network.config)
    names = ("model.", "lm_head.") if kind is GPT else ("model.",)
    shared = {name: tensor for name, tensor in base_parameters(network).items() if name.startswith(names)}
    trainable = {id(tensor): tensor.requires_grad for tensor in shared.values()}
    other.load_state_dict(shared, assign=True, strict=kind is GPT)
    for tensor in shared.values():
        # load_state_dict took it from the new network.
        tensor.requires_grad_(trainable[id(tensor)])
    if isinstance(other, ScalarGPT):
        other.score = nn.Linear(network.config.width, 1, bias=False, device=network.model.embed_tokens.weight.device)
        other.initialise_head(0)
        if isinstance(network, ScalarGPT):
            other.score.load_state_dict(network.score.state_dict())
    return other


@torch.no_grad()
def copy_adapter(source: GPT | ScalarGPT, target: GPT | ScalarGPT, *, name: str = NAME, trained: bool = False) -> None:
    """Copy an adapter from ``source`` to ``target`` and activate it.

    Args:
        source: with the adapter.
        target: with the same configuration.
        name: of the adapter in both.
        trained: whether the copy is trainable.
    """
    add_adapter(target, adapters(source)[name], name=name, trained=trained)
    stored = adapter_parameters(source, name)
    for tensor, parameter in adapter_parameters(target, name).items():
        parameter.copy_(stored[tensor])


def _head(network: nn.Module) -> list[nn.Parameter]:
    return list(network.score.parameters()) if isinstance(network, ScalarGPT) else []


def _parts(layer: Any, name: str) -> dict[str, nn.Parameter]:
    """An adapter's tensors in a layer, by their names in peft's files."""
    if name not in layer.lora_A:
        return {}
    parts = {"lora_A.weight": layer.lora_A[name].weight, "lora_B.weight": layer.lora_B[name].weight}
    if name in layer.lora_magnitude_vector:
        parts["lora_magnitude_vector"] = layer.lora_magnitude_vector[name].weight
    return parts
