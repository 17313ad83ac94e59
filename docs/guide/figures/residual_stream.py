"""Standard deviation of the residual stream, and norm of its gradient, after each block of new networks."""

import torch
import torch.nn.functional as F
from style import BLUE, ORANGE, axes, save

from align.model import GPT, GPTConfig

BLOCKS, WIDTH = 16, 64


def stream(placement: str, *, divided: bool) -> list[torch.Tensor]:
    """The stream after each block, with gradients of the loss on random tokens."""
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (8, 33))
    network = GPT(
        GPTConfig(
            vocab_size=256,
            layers=BLOCKS,
            heads=4,
            width=WIDTH,
            context=32,
            norm_placement=placement,
            init_std=WIDTH**-0.5,
            embedding_std=1.0,
            tied_embeddings=False,
        )
    )
    states: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        states.append(output)

    for block in network.model.layers:
        if not divided:
            with torch.no_grad():
                block.self_attn.o_proj.weight *= (2 * BLOCKS) ** 0.5
                block.mlp.down_proj.weight *= (2 * BLOCKS) ** 0.5
        block.register_forward_hook(keep)
    F.cross_entropy(network(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    return states


figure, (left, right) = axes(2)
for placement, color in (("pre", BLUE), ("post", ORANGE)):
    for divided in (False, True):
        states = stream(placement, divided=divided)
        label = f"{placement.capitalize()}-LN" + (", divided" if divided else "")
        style = {"color": color, "linestyle": "-" if divided else "--", "marker": ".", "label": label}
        depth = range(1, BLOCKS + 1)
        left.plot(depth, [state.detach().std() for state in states], **style)
        right.semilogy(depth, [state.grad.norm() for state in states], **style)
left.set(xlabel="block", ylabel="standard deviation of the stream", ylim=(0, None), xticks=range(4, BLOCKS + 1, 4))
right.set(xlabel="block", ylabel="norm of the gradient", xticks=range(4, BLOCKS + 1, 4))
right.legend(fontsize=8)
save(figure, __file__)
