"""Rounding error of a matrix with an outlier over bits, and the most tokens per second that memory bandwidth allows."""

import numpy as np
import torch
from style import BLUE, GREEN, ORANGE, axes, save

from align.plan.hardware import find

BITS = range(2, 9)
PARAMETERS = 8e9
torch.manual_seed(0)
weight = torch.randn(256, 256)
weight[3, 5] = 30  # an outlier


def error(bits, per_scale):
    """Root mean square of the rounding error, in units of the weights' own."""
    groups = weight.reshape(-1, per_scale)
    most = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(1, keepdim=True) / most
    rounded = (groups / scale).round() * scale
    return ((rounded - groups).square().mean() / groups.square().mean()).sqrt().item()


figure, (left, right) = axes(2)
for name, per_scale, color in (("matrix", weight.numel(), BLUE), ("row", 256, ORANGE), ("32 weights", 32, GREEN)):
    left.semilogy(list(BITS), [error(bits, per_scale) for bits in BITS], "o-", color=color, label=f"a scale per {name}")
left.set(xlabel="bits per weight, without scales", ylabel="relative rounding error")
left.legend(fontsize=8, loc="lower left")

devices = ("rtx4090", "a100-80", "h100")
formats = {"bfloat16": (16, BLUE), "8 bits": (8.5, ORANGE), "4 bits": (4.5, GREEN)}
for number, (name, (bits, color)) in enumerate(formats.items()):
    fastest = [find(device).bandwidth / (PARAMETERS * bits / 8) for device in devices]
    right.bar(np.arange(len(devices)) + 0.27 * (number - 1), fastest, width=0.25, color=color, label=name)
names = [find(device).name.removeprefix("NVIDIA ").removeprefix("GeForce ") for device in devices]
right.set_xticks(range(len(devices)), names, fontsize=8)
right.set(ylabel="tokens per second, at most")
right.legend(fontsize=8)
save(figure, __file__)
