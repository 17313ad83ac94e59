"""RoPE: how pairs of components turn with the distance, and the score of a query and a key with equal components."""

import torch
from style import BLUE, GREEN, GREY, ORANGE, RED, axes, save

from align.model.positions import rotary_frequencies

WIDTH = 64
frequencies = rotary_frequencies(WIDTH, theta=10000.0)

figure, (left, right) = axes(2)
near = torch.linspace(0, 64, 600)
for pair, color in zip((0, 4, 8, 16), (BLUE, ORANGE, GREEN, RED), strict=True):
    left.plot(near, (near * frequencies[pair]).cos(), color=color, label=f"pair {pair}")
left.set(xlabel="distance, tokens", ylabel="cosine of the angle")
left.set_ylim(-1.1, 1.5)
left.legend(loc="upper center", fontsize=8, ncol=4, columnspacing=1, handlelength=1)
far = torch.arange(0, 1024)
right.plot(far, (far[:, None] * frequencies).cos().mean(1), color=BLUE)
right.axhline(0, color=GREY, linewidth=0.8)
right.set(xlabel="distance, tokens", ylabel="score, as a share of that at 0")
save(figure, __file__)
