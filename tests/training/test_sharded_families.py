"""Each family's network on two processes gives the logits and gradients of one, by tensor parallelism and by FSDP2."""

from functools import partial
from pathlib import Path

import pytest
import torch
from network_options import STYLES
from ranks import on_two_ranks
from torch.distributed.device_mesh import init_device_mesh

from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.training.sharding import check_split, shard

SHAPE = {"vocab_size": 61, "layers": 2, "heads": 4, "width": 32, "ff_width": 24, "context": 16}
SPLIT = {name: style | {"kv_heads": 2} for name, style in STYLES.items() if style.get("qk_norm") != "all"}


def made(style: dict) -> GPT:
    network = GPT(GPTConfig(**SHAPE | {"init_std": 0.3} | style)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 8)
    return network


def step(network: GPT, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = network(ids)
    logits.square().mean().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


def check(shape: tuple[int, int], styles: dict) -> None:
    """On each rank: all styles, sharded by ``shape``, against the unsharded network."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data_parallel", "tensor_parallel"))
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(3))
    for name, style in styles.items():
        expected, gradients = step(made(style), ids)
        network = made(style)
        shard(network, mesh)
        logits, found = step(network, ids)
        torch.testing.assert_close(
            logits, expected, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
        for parameter, gradient in found.items():
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            torch.testing.assert_close(
                whole,
                gradients[parameter],
                rtol=1e-5,
                atol=1e-7,
                msg=lambda text, at=(name, parameter): f"{at}: {text}",
            )
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)], ids=["tensor parallel", "fsdp2"])
def test_logits_and_gradients_equal_those_of_one_process(tmp_path: Path, shape: tuple[int, int]):
    styles = SPLIT if shape == (1, 2) else STYLES
    on_two_ranks(partial(check, shape, styles), tmp_path / "log")


def test_norms_over_all_heads_are_not_split():
    with pytest.raises(ValueError, match=r"qk_norm.*'all'.*\b2\b.*data_parallel_size"):
        check_split(GPTConfig(**SHAPE | {"qk_norm": "all"}), 2)
