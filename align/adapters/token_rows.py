"""Training the rows of added tokens beside an adapter, whose base is frozen."""

from collections.abc import Sequence

import torch
from torch import nn

from align.model.gpt import GPT


def train_rows(network: GPT, ids: Sequence[int]) -> None:
    """Train the rows of some tokens in the embedding and the output matrix; the other rows get no gradient.

    AdamW without weight decay then leaves the other rows bitwise as they were. Gradient and running means still have
    the size of the whole matrix.

    Args:
        network: with an adapter; changed in place.
        ids: of the tokens.
    """

    def only_these(gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        kept[list(ids)] = gradient[list(ids)]
        return kept

    for module in _modules(network).values():
        module.weight.requires_grad_(True)
        module.weight.register_hook(only_these)
    network.__dict__["_token_rows"] = list(ids)


def trained_rows(network: nn.Module) -> list[int]:
    """The ids whose rows train beside an adapter; empty for most networks."""
    found: list[int] = network.__dict__.get("_token_rows", [])
    return found


def row_parameters(network: GPT) -> dict[str, torch.Tensor]:
    """Those rows, ``[ids, D]``, by the names of their tensors in peft's files; a tied matrix once."""
    ids = trained_rows(network)
    return {
        f"{name}.token_adapter.trainable_tokens_delta": module.weight[ids].detach()
        for name, module in _modules(network).items()
        if ids
    }


def _modules(network: GPT) -> dict[str, nn.Embedding | nn.Linear]:
    found: dict[str, nn.Embedding | nn.Linear] = {"model.embed_tokens": network.model.embed_tokens}
    return found if network.lm_head is None else found | {"lm_head": network.lm_head}
