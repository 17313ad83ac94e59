"""The weights of a network with its LoRA adapter merged.

Does not import peft, because networks without adapters use it too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from align.model.four_bit import dense


def lora_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with adapters, and their names in the network."""
    for name, module in network.named_modules():
        if is_lora(module):
            yield name, module


def is_lora(module: nn.Module) -> bool:
    """Whether a module is a linear layer with adapters."""
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def has_lora(network: nn.Module) -> bool:
    """Whether any layer of a network has adapters."""
    return any(True for _ in lora_layers(network))


@torch.no_grad()
def merged_weight(layer: nn.Module) -> torch.Tensor:
    """The effective ``[out, in]`` matrix of a linear layer: its own, or with the active adapter merged.

    A merged matrix is a new tensor of the adapter's dtype; the layer is not changed.
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
    """The network's ``state_dict`` with its adapter merged; each matrix is merged when it is read.

    Merged tensors are float32, the adapter's dtype: bfloat16 would round away most of the update.
    """

    def __init__(self, network: nn.Module) -> None:
        """Index the tensors by name."""
        self._layers = dict(lora_layers(network))
        self._plain = base_parameters(network)
        self._float = any(not layer.disable_adapters for layer in self._layers.values())

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor of the merged network."""
        module, _, part = name.rpartition(".")
        tensor = dense(self._plain[name]).detach()
        if part == "weight" and module in self._layers:
            tensor = merged_weight(self._layers[module])
        return tensor.float() if self._float and tensor.dtype == torch.bfloat16 else tensor

    def __iter__(self) -> Iterator[str]:
        """The names without adapters."""
        return iter(self._plain)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._plain)


def base_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The base parameters of a network, by their names without adapters."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if ".lora_" not in name
    }
