"""AdamW whose running means have 8 bits."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from align.stages.optimization import OptimizerConfig


def eight_bit_adamw(groups: list[dict[str, Any]], config: "OptimizerConfig") -> torch.optim.Optimizer:
    """Torchao's AdamW with both running means in blocks of 256 codes of 8 bits and one float32 scale.

    Matrices of fewer than 4096 numbers, and those that 256 does not divide, keep a state of 32 bits. A step is torch's
    AdamW on the dequantised means, but for the order of its operations. Its ``state_dict`` has plain tensors, codes and
    scales, so that who reads a checkpoint needs no torchao.

    Args:
        groups: of parameters.
        config: learning rate, betas, eps.

    Raises:
        ModuleNotFoundError: there is no torchao.
    """
    torchao = _torchao()
    quantised = import_module("torchao.optim.subclass_8bit").OptimState8bit

    class AdamW(torchao.AdamW8bit):  # type: ignore[name-defined]
        def step(self, closure: Any = None) -> Any:
            # torchao compiles for every shape of matrix, which on a CPU is a minute of C++ for what saves nothing.
            on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
            with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
                return super().step(closure)

        def state_dict(self) -> dict[str, Any]:
            stored = super().state_dict()
            states = stored["state"].items()
            stored["state"] = {number: {name: plain(value) for name, value in of.items()} for number, of in states}
            return stored

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            states = state_dict["state"].items()
            found = {number: {name: packed(value) for name, value in of.items()} for number, of in states}
            super().load_state_dict({**state_dict, "state": found})

    def plain(value: Any) -> Any:
        if not isinstance(value, quantised):
            return value
        return {"codes": value.codes, "scale": value.scale, "signed": value.signed}

    def packed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        like = quantised.zeros(value["codes"].shape, value["signed"])
        return quantised(value["codes"], value["scale"], like.qmap, value["signed"])

    optimizer: torch.optim.Optimizer = AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return optimizer


def _torchao() -> Any:
    # torchao warns of GPU kernels, and torch of torchao, on every import.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return import_module("torchao.optim")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'optimizer.state_bits is 8, which needs torchao: pip install "lightning-align[export]", or set it to 32'
        ) from error
