"""What a network with LoRA layers computes, seen as one without: its matrices with the adapter added.

Nothing here imports peft: a network without adapters asks, too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from align.model.four_bit import dense


def lora_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that carry adapters, by their name in the network."""
    for name, module in network.named_modules():
        if is_lora(module):
            yield name, module


def is_lora(module: nn.Module) -> bool:
    """Whether a module is a linear layer with adapters; asks without importing peft."""
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def has_lora(network: nn.Module) -> bool:
    """Whether any of a network's layers carries adapters."""
    return any(True for _ in lora_layers(network))


@torch.no_grad()
def merged_weight(layer: nn.Module) -> torch.Tensor:
    """The matrix ``[out, in]`` that a linear layer multiplies by: its own, or with the active adapter added.

    That is a new tensor of the adapter's type; the layer stays as it is.
    """
    if not is_lora(layer):
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        return dense(weight)
    lora: Any = layer
    base = dense(lora.base_layer.weight)
    if lora.disable_adapters or lora.merged:
        return base
    for name in lora.active_adapters:
        if name not in lora.lora_A:
            continue
        delta = lora.get_delta_weight(name)
        whole = base.to(delta.dtype) + delta
        if name in lora.lora_magnitude_vector:
            length = torch.linalg.vector_norm(whole, dim=1)
            whole *= (lora.lora_magnitude_vector[name].weight / length)[:, None]
        base = whole
    return base


class MergedState(Mapping[str, torch.Tensor]):
    """What ``state_dict`` of the network would be with its adapter merged; a matrix is merged when it is asked for.

    Merged matrices have the adapter's type, float32: in bfloat16 most of what training added would be rounded away.
    """

    def __init__(self, network: nn.Module) -> None:
        """Note where each tensor is."""
        self._layers = dict(lora_layers(network))
        self._plain = base_parameters(network)
        self._float = any(not layer.disable_adapters for layer in self._layers.values())

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor of the merged network."""
        place, _, part = name.rpartition(".")
        tensor = dense(self._plain[name]).detach()
        if part == "weight" and place in self._layers:
            tensor = merged_weight(self._layers[place])
        return tensor.float() if self._float and tensor.dtype == torch.bfloat16 else tensor

    def __iter__(self) -> Iterator[str]:
        """Names as in the network without adapters."""
        return iter(self._plain)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._plain)


def base_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the network below its adapters, under the names that they have without."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if ".lora_" not in name
    }
