"""LoRA: a frozen matrix W learns as W + s B A, with A and B thin (Hu et al. 2021, equation 3). The layers are peft's.

s is alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023). DoRA (Liu et al. 2024, equation 5) also learns the
length of each row: m (W + s B A) / |W + s B A|. B starts at 0 (and m at |W|), so a fresh adapter changes nothing.

Several networks can stand on one set of base weights, each with an adapter and a head of its own (``share_base``): to
have a policy, its reference and a value model then costs the memory of one. What is private in peft is touched here
and in ``merging`` only.

Legend: out, in: sides of a matrix; r rank.
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
"""The matrices of a block, by Hugging Face's names"""

NAME = "default"
"""What an adapter is called that stands alone"""

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Network = TypeVar("Network", GPT, ScalarGPT)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on frozen base weights.

    Raises:
        ValueError: a setting is impossible.
    """

    rank: int = 16
    """Inner width r of the thin matrices"""
    alpha: float = 32.0
    """Strength: what the adapter adds is multiplied by alpha / rank (rslora: alpha / sqrt(rank))"""
    dropout: float = 0.0
    """On what the adapter reads, in [0, 1); 0 in DPO and PPO, whose log-probs are to be those of sampling"""
    targets: tuple[str, ...] | None = None
    """Which of a block's matrices learn: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; null: all"""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank), which keeps the size of updates as the rank grows (Kalajdzievski 2023)"""
    dora: bool = False
    """Learn the length of each row apart from its direction (Liu et al. 2024)"""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights; the adapters' is float32 always. bfloat16 halves them and computes in it: slow on
    CPUs without bfloat16 units"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        for name, value, holds, right in (
            ("rank", self.rank, self.rank >= 1, "at least 1"),
            ("alpha", self.alpha, self.alpha > 0, "above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)"),
            ("targets", self.targets, self.targets is None or len(self.targets) > 0, "null (all) or some names"),
            ("base_dtype", self.base_dtype, self.base_dtype in _TYPES, " or ".join(_TYPES)),
        ):
            if not holds:
                raise ValueError(f"lora.{name} is {value!r}: it must be {right}")
        for target in self.targets or ():
            if target not in LAYERS:
                raise ValueError(f"lora.targets has {target!r}: each must be one of {', '.join(LAYERS)}")

    @property
    def dtype(self) -> torch.dtype:
        """Of the base weights."""
        return _TYPES[self.base_dtype]

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def same_weights(self, other: "LoraConfig") -> bool:
        """Whether an adapter of one of the two can be read as one of the other, and means the same."""
        mine, theirs = ((c.rank, c.alpha, set(c.targets or LAYERS), c.rslora, c.dora) for c in (self, other))
        return mine == theirs


def adapters(network: nn.Module) -> dict[str, LoraConfig]:
    """The adapters of a network by name; empty where it has none."""
    found: dict[str, LoraConfig] = network.__dict__.setdefault("_adapters", {})
    return found


def add_adapter(
    network: GPT | ScalarGPT, config: LoraConfig, *, name: str = NAME, seed: int = 0, trained: bool = True
) -> None:
    """Give a network an adapter that changes nothing yet, make it the active one, and freeze everything else.

    A ScalarGPT's head goes on learning. The base keeps its type: ``convert_base`` changes it.

    Args:
        network: changed in place: peft's layers take the place of linear ones, which become their ``base_layer``.
        config: what the adapter is.
        name: of the adapter; a network may have several, of which one is active.
        seed: decides A; no global generator is touched.
        trained: False freezes adapter and head too.

    Raises:
        ValueError: the network has an adapter of that name, or lacks a layer that ``config.targets`` names.
    """
    if name in adapters(network):
        raise ValueError(f"the network has an adapter named {name!r} already; give this one another name")
    present = {name.rpartition(".")[2] for name, _ in network.model.layers.named_modules()} & set(LAYERS)
    for target in config.targets or ():
        if target not in present:
            raise ValueError(
                f"lora.targets has {target!r}, which this network lacks; it has "
                f"{', '.join(layer for layer in LAYERS if layer in present)}"
            )
    # peft pulls in transformers: only who asks for adapters waits for it.
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=[layer for layer in LAYERS if layer in (config.targets or present)],
        use_rslora=config.rslora,
        use_dora=config.dora,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second one is meant
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, network, adapter_name=name)
    adapters(network)[name] = config
    for _, layer in lora_layers(network):
        for part in _parts(layer, name).values():
            # peft gives them the base's type, in which small steps would be lost.
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
    """Convert the weights below the adapters, for every network that shares them; a ScalarGPT's head stays float32.

    Quantized weights stay what they are, and so does float64, which only Python asks for, to be exact.
    """
    for name, parameter in base_parameters(network).items():
        if parameter.dtype in _TYPES.values():
            parameter.data = parameter.data.to(torch.float32 if name == "score.weight" else dtype)


def adapter_parameters(network: nn.Module, name: str = NAME) -> dict[str, nn.Parameter]:
    """The tensors of an adapter, named as in peft's files: ``model.layers.0.self_attn.q_proj.lora_A.weight``."""
    return {
        f"{place}.{part}": parameter
        for place, layer in lora_layers(network)
        for part, parameter in _parts(layer, name).items()
    }


def use_adapter(network: nn.Module, name: str | None) -> None:
    """Let a network compute with one of its adapters, or with none (None): then it is the base, exactly.

    Unlike peft's own switches this leaves ``requires_grad`` as it is.

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
    """The adapter that a network computes with; None where it has none or they are off."""
    for _, layer in lora_layers(network):
        return None if layer.disable_adapters else str(layer.active_adapters[0])
    return None


@contextmanager
def using_adapter(network: nn.Module, name: str | None) -> Iterator[None]:
    """``use_adapter`` for the length of a block.

    What is differentiated belongs inside, too, if blocks are computed again in the backward pass (activation
    checkpointing): networks of ``share_base`` have no such condition.
    """
    before = active_adapter(network)
    use_adapter(network, name)
    try:
        yield
    finally:
        use_adapter(network, before)


def merge(network: nn.Module) -> None:
    """Add the active adapter into the base weights, in place: products are then as cheap as without.

    Raises:
        ValueError: it is merged already, or there is none; or the base has 4 bits, which can't hold it.
    """
    if active_adapter(network) is None:
        raise ValueError("there is no active adapter to merge")
    for _, layer in lora_layers(network):
        if is_four_bit(layer.base_layer.weight):
            raise ValueError("the base is kept in 4 bits, which can't hold an adapter: take merged_copy")
        if layer.merged:
            raise ValueError("the adapter is merged already")
        layer.merge()


def unmerge(network: nn.Module) -> None:
    """Undo ``merge``, to rounding.

    Raises:
        ValueError: nothing is merged.
    """
    for _, layer in lora_layers(network):
        if not layer.merged:
            raise ValueError("no adapter is merged")
        layer.unmerge()


def merged_copy(network: GPT | ScalarGPT) -> GPT | ScalarGPT:
    """A plain network in memory of its own that computes what ``network`` does with its active adapter."""
    with built_without_memory():
        plain = type(network)(network.config)
    state = MergedState(network)
    plain.load_state_dict({name: state[name].clone() for name in state}, assign=True)
    return plain.train(network.training)


def share_base(network: GPT | ScalarGPT, kind: type[Network]) -> Network:
    """Another network on the same base weights, without adapters: it costs no memory of its own.

    What one network's adapters learn the other does not see; moving the base moves both.

    Args:
        network: with or without adapters.
        kind: GPT, or ScalarGPT: then with a fresh head (seed 0) in float32 where ``network`` has none, else its own
            copy of it.

    Raises:
        ValueError: a GPT is asked of a ScalarGPT, which has no output matrix; or the base is kept in 4 bits.
    """
    if kind is GPT and isinstance(network, ScalarGPT):
        raise ValueError("a ScalarGPT has no output matrix to share with a GPT")
    if any(is_four_bit(tensor) for tensor in network.parameters()):
        raise ValueError("the base is kept in 4 bits already: share it first")
    with built_without_memory():
        other = kind(network.config)
    names = ("model.", "lm_head.") if kind is GPT else ("model.",)
    shared = {name: tensor for name, tensor in base_parameters(network).items() if name.startswith(names)}
    learns = {id(tensor): tensor.requires_grad for tensor in shared.values()}
    other.load_state_dict(shared, assign=True, strict=kind is GPT)
    for tensor in shared.values():
        # Loading sets it to what the new network had.
        tensor.requires_grad_(learns[id(tensor)])
    if isinstance(other, ScalarGPT):
        other.score = nn.Linear(network.config.width, 1, bias=False, device=network.model.embed_tokens.weight.device)
        other.initialise_head(0)
        if isinstance(network, ScalarGPT):
            other.score.load_state_dict(network.score.state_dict())
    return other


@torch.no_grad()
def copy_adapter(source: GPT | ScalarGPT, target: GPT | ScalarGPT, *, name: str = NAME, trained: bool = False) -> None:
    """Give ``target`` a copy of an adapter of ``source``, as its active one.

    Args:
        source: has the adapter.
        target: of the same shape.
        name: of the adapter in both.
        trained: whether the copy learns.
    """
    add_adapter(target, adapters(source)[name], name=name, trained=trained)
    for place, parameter in adapter_parameters(target, name).items():
        parameter.copy_(adapter_parameters(source, name)[place])


def _head(network: nn.Module) -> list[nn.Parameter]:
    return list(network.score.parameters()) if isinstance(network, ScalarGPT) else []


def _parts(layer: Any, name: str) -> dict[str, nn.Parameter]:
    """An adapter's tensors in a layer, named as in peft's files."""
    if name not in layer.lora_A:
        return {}
    parts = {"lora_A.weight": layer.lora_A[name].weight, "lora_B.weight": layer.lora_B[name].weight}
    if name in layer.lora_magnitude_vector:
        parts["lora_magnitude_vector"] = layer.lora_magnitude_vector[name].weight
    return parts
