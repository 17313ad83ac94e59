"""Memory per device of an 8-billion-parameter network by strategy, and predicted loss over size at fixed compute."""

from dataclasses import replace

import numpy as np
from style import BLUE, GREEN, GREY, ORANGE, RED, axes, save

from align.model.config import GPTConfig
from align.plan.compute_optimal import BESIROGLU
from align.plan.job import Job, PlannedNetwork, Volume
from align.plan.memory import memory_of
from align.plan.precision import PRECISIONS
from align.plan.strategy import Strategy

CONFIG = GPTConfig(
    vocab_size=128256, layers=32, heads=32, kv_heads=8, width=4096, ff_width=14336, context=8192, tied_embeddings=False
)
JOB = Job(
    "Pretrain",
    (PlannedNetwork("policy", CONFIG, trained=True),),
    rows=1,
    tokens=8192,
    volume=Volume(1, 8192.0, 8192.0),
    precision=PRECISIONS["bf16-mixed"],
    accelerator="cuda",
)
RUNS = {
    "DDP x8": replace(JOB, strategy=Strategy(data=8)),
    "FSDP x8": replace(JOB, strategy=Strategy(data=8, sharded=True)),
    "FSDP x8,\nrecomputed": replace(JOB, strategy=Strategy(data=8, sharded=True), recompute="block"),
    "tensor x8": replace(JOB, strategy=Strategy(tensor=8)),
}
PARTS = {
    "weights": (BLUE, ("parameters",)),
    "gradients": (GREEN, ("gradients",)),
    "AdamW": (ORANGE, ("optimizer",)),
    "activations": (RED, ("activations",)),
    "other": (GREY, ("logits", "workspace", "gathered")),
}

figure, (left, right) = axes(2, height=3.4)
estimates = [memory_of(job) for job in RUNS.values()]
bottom = np.zeros(len(RUNS))
for name, (color, parts) in PARTS.items():
    size = np.array([sum(getattr(one, part) for part in parts) / 1e9 for one in estimates])
    left.bar(range(len(RUNS)), size, bottom=bottom, color=color, label=name, width=0.7)
    bottom += size
left.axhline(80, color="black", linewidth=1, linestyle="--")
left.text(3.4, 82, "80 GB", ha="right", fontsize=8)
left.set_xticks(range(len(RUNS)), list(RUNS), fontsize=8)
left.set(ylabel="GB per device")
left.legend(fontsize=8)

for budget, color in ((1e19, BLUE), (1e20, GREEN), (1e21, ORANGE), (1e22, RED)):
    size = np.logspace(7.5, 11, 200)
    loss = np.array([BESIROGLU.loss(n, budget / (6 * n)) for n in size])
    right.semilogx(size, loss, color=color, label=f"{budget:.0e} FLOPs")
    right.plot(size[loss.argmin()], loss.min(), "o", color=color)
right.set(xlabel="parameters", ylabel="predicted loss, nats per token", ylim=(2, 4))
right.legend(fontsize=8, loc="upper left")
save(figure, __file__)
