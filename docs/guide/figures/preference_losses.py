"""Losses of a pair, and their derivatives, over the difference of the two log-ratios."""

import torch
from style import BLUE, GREEN, ORANGE, RED, axes, save

from align.objectives.preference import CDPO, DPO, IPO, Hinge, PairLogprobs

BETA = 0.1
losses = {"DPO": DPO(BETA), "conservative DPO": CDPO(BETA), "IPO": IPO(BETA, per_token=False), "hinge": Hinge(BETA)}

figure, (left, right) = axes(2)
for (name, loss), color in zip(losses.items(), (BLUE, ORANGE, GREEN, RED), strict=True):
    difference = torch.linspace(-20, 40, 400, requires_grad=True)
    none, ones = torch.zeros(400), torch.ones(400, dtype=torch.int64)
    values = loss(PairLogprobs(difference, none, none, none, ones, ones)).loss
    # IPO's loss is in squared nats: scaled to have DPO's slope at 0.
    scale = BETA / 20 if name == "IPO" else 1.0
    (slope,) = torch.autograd.grad(values.sum(), difference)
    label = f"{name}, scaled" if name == "IPO" else name
    left.plot(difference.detach(), scale * values.detach(), color=color, label=label)
    right.plot(difference.detach(), -scale * slope, color=color)
left.set(xlabel="difference of log-ratios, nats", ylabel="loss", ylim=(0, 3))
right.set(xlabel="difference of log-ratios, nats", ylabel="- derivative", ylim=(-0.12, 0.16))
left.legend(fontsize=8)
save(figure, __file__)
