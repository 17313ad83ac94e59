"""Training the rows of added tokens beside an adapter, whose base is frozen."""

from collections.abc import Sequence

import torch

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

    for module in (network.model.embed_tokens, network.lm_head):
        if module is not None:
            module.weight.requires_grad_(True)
            module.weight.register_hook(only_these)
