"""Networks over many devices: the plan by which weights are cut, and whole weights again where a step needs them.

Two cuts, alone or together. Tensor parallelism splits the matrices of each block over devices that compute one batch
together (Shoeybi et al. 2019, arXiv:1909.08053, section 3); embeddings, norms and the output matrix stay whole. FSDP2
spreads every tensor over devices that compute different batches, and gathers a block's tensors when it runs.

Under FSDP2 all ranks must run a network equally often, or they wait for each other for ever. Training steps run each
network once; sampling and reading, whose number of calls depends on the data, go through ``gathered``.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from align.adapters.lora import adapters
from align.adapters.merging import is_lora, lora_layers
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

Network: TypeAlias = GPT | ScalarGPT

_FORWARDS = ("hidden", "last_scores", "scores")
"""What stages call instead of forward, and what may therefore come first in a step"""


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a network in place.

    Args:
        module: a GPT or ScalarGPT, or a head of its own; whole, and the same on every rank.
        mesh: with the axes "data_parallel" and "tensor_parallel", as Lightning's ModelParallelStrategy makes it.

    Raises:
        ValueError: the network's heads or widths can't be split over so many devices, or its adapters can't.
    """
    tensor, data = mesh["tensor_parallel"], mesh["data_parallel"]
    layers: Iterable[Any] = module.model.layers if isinstance(module, Network) else ()
    if tensor.size() > 1 and isinstance(module, Network):
        check_split(module.config, tensor.size())
        if any(config.dora for config in adapters(module).values()):
            raise ValueError(
                f"lora.dora is true and tensor_parallel_size is {tensor.size()}, over which the rows whose lengths it "
                "learns would be split: set lora.dora to false, or shard over data only (recipes/hardware/fsdp2.yaml)"
            )
        for layer in layers:
            parallelize_module(layer, tensor, _plan(layer))
            layer.self_attn.kv_heads //= tensor.size()
    if data.size() > 1:
        for layer in layers:
            fully_shard(layer, mesh=data)
        # The root stays gathered after its forward: the loss reads its output matrix.
        fully_shard(module, mesh=data, reshard_after_forward=False)
        for name in _FORWARDS:
            # A head is its own network; a network's scores are read from hidden states that it has just made.
            if hasattr(module, name) and (name != "scores" or not layers):
                register_fsdp_forward_method(module, name)


def check_split(config: GPTConfig, devices: int) -> None:
    """Refuse a network that tensor parallelism can't split evenly.

    Args:
        config: its shape.
        devices: of a tensor-parallel group.

    Raises:
        ValueError: one of its numbers is no multiple of ``devices``.
    """
    parts = {"heads": config.heads, "kv_heads": config.resolved_kv_heads, "ff_width": config.resolved_ff_width}
    for name, value in parts.items():
        if value % devices:
            raise ValueError(
                f"{name} is {value}, which {devices} tensor-parallel devices can't share: set tensor_parallel_size to "
                f"a divisor of {', '.join(f'{name} ({value})' for name, value in parts.items())}, or use "
                "data_parallel_size alone"
            )


def _plan(layer: nn.Module) -> dict[str, ParallelStyle]:
    """How the matrices of a block are split: by outputs on the way in, by inputs on the way out."""
    plan: dict[str, ParallelStyle] = {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ColwiseParallel()),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), ColwiseParallel()),
        **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel()),
        # One weight for all heads, of which each device has some: its gradient is the sum over devices.
        **dict.fromkeys(
            ("self_attn.q_norm", "self_attn.k_norm"), SequenceParallel(sequence_dim=2, use_local_output=True)
        ),
    }
    return {
        part: style
        for name, style in plan.items()
        if (module := _part(layer, name)) is not None
        for part in _split(name, module, style)
    }


def _split(name: str, module: nn.Module, style: ParallelStyle) -> list[str]:
    """What of a module is split as ``style`` says: of one with adapters the base and each adapter's matrix on its side.

    By outputs that is B, which reads what a whole A makes of the whole input; by inputs A, whose parts are added up
    before a whole B.
    """
    if not is_lora(module):
        return [name]
    side = "lora_B" if isinstance(style, ColwiseParallel) else "lora_A"
    return [f"{name}.base_layer", *(f"{name}.{side}.{adapter}" for adapter in getattr(module, side))]


def _part(module: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module


def is_sharded(module: nn.Module) -> bool:
    """Whether it is cut in any way, so that its forwards are work that several ranks do together."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def gathered(module: nn.Module | None) -> Iterator[Any]:
    """The module with whole weights on each rank of its data-parallel group; call it on all of them.

    Within, forwards without gradient need no other data-parallel rank. It costs the memory of the whole weights (of
    this device's share of them, under tensor parallelism).

    Args:
        module: cut or not; None gives None.

    Yields:
        The module; of a network under FSDP2 alone an ordinary twin on the same memory, which samples at full speed.
    """
    if not isinstance(module, FSDPModule):
        yield module
        return
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield _twin(module)
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()


def _twin(module: FSDPModule) -> Any:
    """An ordinary network whose parameters are those that ``module`` has now."""
    if not isinstance(module, Network) or any(isinstance(p, DTensor) for p in module.parameters()):
        return module
    twin = _shell(module)
    for (_, ours), (_, theirs) in zip(twin.named_modules(), module.named_modules(), strict=True):
        ours._parameters.update(theirs._parameters)
        ours.training = theirs.training
        if isinstance(getattr(theirs, "dropout", None), float):
            ours.dropout = theirs.dropout
    twin.model.reference_attention = module.model.reference_attention
    return twin


def whole_copy(network: Network) -> Network:
    """The network as one process would have it: itself where it is not cut, else a copy on the CPU.

    Call it on all ranks; the copy is filled on rank 0 only.
    """
    if not is_sharded(network):
        return network
    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    whole = _shell(network)
    if state:
        whole.load_state_dict(state, assign=True)
    return whole


def _shell(network: Network) -> Network:
    """An ordinary network of the same shape, adapters included, without memory."""
    with built_without_memory():
        shell = GPT(network.config) if isinstance(network, GPT) else ScalarGPT(network.config)
        for place, layer in lora_layers(network):
            empty = {id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype)) for p in layer.parameters()}
            shell.set_submodule(place, copy.deepcopy(layer, empty))
    adapters(shell).update(adapters(network))
    return shell


def by_mesh(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors in lists that one kernel may work on: those of one device mesh, and the uncut ones."""
    lists: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        lists.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(lists.values())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, on the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm ``[]`` of all tensors as if they were one, whole and uncut; call it on all ranks.

    An uncut tensor is the same on all ranks and counts once.
    """
    norms = [torch.nn.utils.get_total_norm(part) for part in by_mesh(tensors)]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale gradients down to a norm of ``max_norm`` in place, where some of them are cut and others are not.

    ``torch.nn.utils.clip_grad_norm_`` takes tensors of one kind only.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = total_norm(parameter.grad for parameter in trained if parameter.grad is not None)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(parameter.grad) for parameter in trained if parameter.grad is not None], factor)
