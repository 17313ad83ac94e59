"""What test_memory.py has two processes do: a module of its own, which they can import."""

import os

import torch
from torch.distributed.device_mesh import init_device_mesh

from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.training import memory as training
from align.training.sharding import shard

CONFIG = GPTConfig(vocab_size=11, layers=2, heads=4, kv_heads=2, width=16, ff_width=24, context=8)


def recomputed_and_compiled(rank: int, port: int):
    """Every way of saving memory gives the gradients of the plain one, over data and over heads."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    training.BACKEND = "aot_eager"

    def gradients(mesh, what, compile):
        network = GPT(CONFIG)
        training.recompute_activations(network, what)
        if compile:
            training.compile_blocks(network)
        shard(network, mesh)
        network.hidden(ids).square().sum().backward()
        return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in network.parameters()]

    for devices in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", devices, mesh_dim_names=("data_parallel", "tensor_parallel"))
        plain = gradients(mesh, "none", False)
        ways = [("selective", False), ("block", False), ("none", True), ("block", devices == (2, 1))]
        for what, compile in ways:
            for one, other in zip(gradients(mesh, what, compile), plain, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.distributed.destroy_process_group()
