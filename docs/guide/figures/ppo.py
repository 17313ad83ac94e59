"""PPO: the clipped surrogate over a token's ratio, and advantages along a response for several lambdas."""

import torch
from style import BLUE, GREEN, GREY, ORANGE, RED, axes, save

from align.objectives.advantages import gae
from align.objectives.policy import TokenClip

TOKENS = 20

figure, (left, right) = axes(2)
ratio = torch.linspace(0.4, 1.6, 400)
lengths = torch.tensor([len(ratio)])
for advantage, color in ((1.0, BLUE), (-1.0, ORANGE)):
    losses, _ = TokenClip().losses(ratio.log(), torch.full_like(ratio, advantage), lengths)
    left.plot(ratio, -losses, color=color, label=f"advantage {advantage:+.0f}")
left.axvline(1, color=GREY, linewidth=0.8)
left.set(xlabel="ratio of new to old probability", ylabel="surrogate")
left.legend(fontsize=8)

rewards = torch.zeros(1, TOKENS)
rewards[0, -1] = 1
values, mask = torch.full((1, TOKENS), 0.5), torch.ones(1, TOKENS, dtype=torch.bool)
for lam, color in ((0.0, GREY), (0.8, GREEN), (0.95, BLUE), (1.0, RED)):
    advantages, _ = gae(rewards, values, mask, lam=lam)
    right.plot(range(1, TOKENS + 1), advantages[0], ".-", color=color, label=f"lam = {lam:g}")
right.set(xlabel="token", ylabel="advantage", xticks=range(4, TOKENS + 1, 4))
right.legend(loc="upper left", bbox_to_anchor=(0, 0.95), fontsize=8)
save(figure, __file__)
