"""Bradley-Terry: probability of the chosen response, and loss, over the difference of two scores."""

import math

import torch
from style import BLUE, GREEN, ORANGE, axes, save

from align.objectives.bradley_terry import bradley_terry_loss

lead = torch.linspace(-6, 6, 300)
none = torch.zeros_like(lead)

figure, (left, right) = axes(2)
left.plot(lead, lead.sigmoid(), color=BLUE)
left.set(xlabel="score of chosen - score of rejected", ylabel="P(chosen is better)")
for share, color in ((0.0, BLUE), (0.1, ORANGE), (0.25, GREEN)):
    label = f"e = {share}" if share else "no smoothing"
    right.plot(lead, bradley_terry_loss(lead, none, label_smoothing=share), color=color, label=label)
    if share:
        best = torch.tensor([math.log((1 - share) / share)])
        right.plot(best, bradley_terry_loss(best, torch.zeros(1), label_smoothing=share), "o", color=color)
right.set(xlabel="score of chosen - score of rejected", ylabel="loss, nats", ylim=(0, 4))
right.legend()
save(figure, __file__)
