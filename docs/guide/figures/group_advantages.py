"""Advantage of a success, and pull of a prompt, over the share of successes in groups of 16."""

import torch
from style import BLUE, GREEN, ORANGE, axes, save

from align.objectives.advantages import GRPO, DrGRPO, MaxRL

SIZE = 16
successes = torch.arange(1, SIZE)
rewards = (torch.arange(SIZE) < successes[:, None]).float()
share = successes / SIZE

figure, (left, right) = axes(2)
for (name, estimator), color in zip(
    {"Dr. GRPO": DrGRPO(), "GRPO": GRPO(), "MaxRL": MaxRL()}.items(), (BLUE, ORANGE, GREEN), strict=True
):
    advantages = estimator.compare(rewards)
    left.semilogy(share, advantages[:, 0], ".-", color=color, label=name)
    right.plot(share, advantages.clamp(min=0).mean(1), ".-", color=color, label=name)
left.set(xlabel="share of successes", ylabel="advantage of a success")
right.set(xlabel="share of successes", ylabel="positive advantages / 16", ylim=(0, None))
left.legend()
save(figure, __file__)
