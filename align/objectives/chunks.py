"""How many positions' logits exist at once."""

import torch

_CPU = 256
_ELSEWHERE = 2048


def chunk_size(hidden: torch.Tensor) -> int:
    """``chunk_positions`` of the device that ``hidden`` lies on."""
    return chunk_positions(hidden.device)


def chunk_positions(device: torch.device) -> int:
    """Positions whose logits are made at once on a device.

    On a CPU 256: 256 x 4096 float32 is 4 MB, which stays in its cache. Elsewhere 2048: every chunk reads and writes the
    whole gradient of the output matrix once, which a GPU's products would otherwise wait for; 2048 x 50k float32 is
    0.4 GB.
    """
    return _CPU if device.type == "cpu" else _ELSEWHERE
