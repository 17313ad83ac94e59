"""Weights out of a Lightning checkpoint."""

from pathlib import Path
from typing import Any

import torch

from align.model.directory import load_network
from align.model.gpt import GPT

_PREFIX = "network."
"""What a stage calls the network that it trains and writes"""


def load_checkpoint(file: str | Path, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> GPT:
    """The network that a stage had trained when it wrote a checkpoint, on the CPU and in training mode.

    Args:
        file: a ``.ckpt`` of one of our stages.
        directory: the model directory of the same run, which knows the network's shape.
        dtype: what the weights are converted to.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the checkpoint is cut short, holds no network of ours, or one of another shape.
    """
    network = load_network(directory, dtype=dtype)
    state = {name[len(_PREFIX) :]: value for name, value in read_state(file).items() if name.startswith(_PREFIX)}
    if not state:
        raise ValueError(f"{file}: holds no weights named {_PREFIX}*: it is no checkpoint of a stage of align")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file}: its network is not that of {directory}: {' '.join(str(error).split())}") from None
    return network


def read_state(file: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut short or no checkpoint of Lightning.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise ValueError(f"{file}: damaged or no checkpoint ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{file}: no checkpoint of Lightning, it has no state_dict")
    state: dict[str, torch.Tensor] = content["state_dict"]
    return state
