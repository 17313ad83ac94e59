"""Peak memory and CPU seconds of a training step: logits in chunks or whole, activations kept or recomputed.

python benchmarks/memory_activations.py --rounds 1 --threads 1 --out benchmarks/results/memory_activations.json
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from measure import Meter, Numbers, Setting, main, parser, peak_rss_mb

from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.layers import Recompute
from align.objectives import next_token_loss
from align.plan.activations import activation_bytes
from align.training.memory import recompute_activations
from align.training.optimization import OptimizerConfig, build_optimizer

SETTINGS: list[Setting] = [
    {
        "name": "12.2 M, 8 x 256",
        "shape": {"vocab_size": 4096, "layers": 6, "heads": 6, "width": 384, "ff_width": 1024, "context": 256},
        "rows": 8,
        "steps": 2,
    },
    {
        "name": "97.6 M, 4 x 512",
        "shape": {"vocab_size": 16384, "layers": 12, "heads": 12, "width": 768, "ff_width": 2048, "context": 512},
        "rows": 4,
        "steps": 1,
    },
]


def whole_logits(network: GPT, ids: torch.Tensor) -> torch.Tensor:
    """The usual loss: all logits at once."""
    logits = network(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def chunked(network: GPT, ids: torch.Tensor) -> torch.Tensor:
    """The chunked loss of align."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    result = next_token_loss(network.hidden(ids[:, :-1]), network.output_weight, ids, mask)
    return result.loss / result.tokens


def measure(
    setting: Setting, *, recompute: Recompute, loss: Callable[[GPT, torch.Tensor], torch.Tensor] = chunked
) -> Numbers:
    """Means over ``steps`` steps, after a warm-up step that allocates gradients and optimizer state."""
    # Libraries allocate memory when they are first used.
    small = GPT(GPTConfig(vocab_size=64, layers=1, heads=2, width=64, context=32))
    loss(small, torch.zeros(2, 33, dtype=torch.int64)).backward()
    config = GPTConfig(**setting["shape"])
    network = GPT(config)
    recompute_activations(network, recompute)
    optimizer = build_optimizer(network.parameters(), OptimizerConfig(lr=3e-4))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (setting["rows"], config.context + 1), generator=generator)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    held = peak_rss_mb()

    def step() -> None:
        loss(network, ids).backward()
        optimizer.step()
        # Not to None: the gradients stay allocated, and the peak above them is the step's.
        optimizer.zero_grad(set_to_none=False)

    step()
    with Meter() as meter:
        for _ in range(setting["steps"]):
            step()
    peak = peak_rss_mb()
    estimate = activation_bytes(config, setting["rows"], config.context, recompute=recompute, narrow=False)
    return {
        "cpu_s": meter.cpu / setting["steps"],
        "held_mb": round(held),
        "step_mb": round(peak - held),
        "estimated_mb": round(estimate / 2**20),
    }


PEERS = {
    "whole logits": partial(measure, recompute="none", loss=whole_logits),
    "chunked": partial(measure, recompute="none"),
    "chunked + selective": partial(measure, recompute="selective"),
    "chunked + block": partial(measure, recompute="block"),
}

if __name__ == "__main__":
    args = parser(__doc__ or "", PEERS).parse_args()
    main(args, PEERS, SETTINGS, columns=["cpu_s", "held_mb", "step_mb", "estimated_mb", "peak_rss_mb"])
