"""Muon for the matrices of the blocks, and AdamW for everything else, as one torch optimizer."""

from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import StateDict

MUON = "muon"
"""Key of a parameter group: True where Muon updates it"""


def block_matrices(network: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon updates: those of the blocks, not embeddings and output matrix, whose rows are tokens."""
    return [p for name, p in network.named_parameters() if p.ndim == 2 and "layers" in name.split(".")]


class AdamWAndMuon(torch.optim.Optimizer):
    """Two optimizers over the groups and the state of one.

    Muon (Jordan et al. 2024) replaces the gradient's running mean by the nearest matrix whose singular values are all
    about 1. torch's is used, scaled so that an update has the root mean square of AdamW's (0.2; Liu et al. 2025,
    arXiv:2502.16982, equation 4), so learning rate and weight decay mean the same for both.

    Args:
        groups: parameter groups; those with ``MUON`` True hold matrices for Muon.
        adamw: class of the other optimizer.
        lr: learning rate.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of Muon, decay rate of the gradient's running mean.
        fused: use AdamW's fused kernel.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        adamw: type[torch.optim.AdamW],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        fused: bool,
    ) -> None:
        """Make both, empty, and give them the groups."""
        placeholder = [nn.Parameter(torch.zeros(1, 1))]
        self._adamw = adamw(placeholder, lr=lr, betas=betas, eps=eps, fused=fused)
        self._muon = torch.optim.Muon(placeholder, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        # Each group has the settings of both, so that code which changes a setting of all groups need not ask.
        settings = {**self._muon.defaults, **self._adamw.defaults, MUON: False}
        super().__init__(groups, settings)

    def step(self, closure: Any = None) -> Any:
        """Update every group by its optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, is_muon in ((self._adamw, False), (self._muon, True)):
            optimizer.param_groups = [group for group in self.param_groups if group[MUON] is is_muon]
            optimizer.state = self.state
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore state and groups; see ``torch.optim.Optimizer``.

        Raises:
            ValueError: the state is of another optimizer.
        """
        if any(MUON not in group for group in state_dict["param_groups"]):
            raise ValueError("the checkpoint's optimizer is AdamW alone, the recipe's has optimizer.matrices muon")
        super().load_state_dict(state_dict)
