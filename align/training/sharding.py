"""Shard networks over devices, and gather their weights where a step needs them whole.

Two methods, alone or together. Tensor parallelism splits the matrices of each block over devices that compute the same
batch (Shoeybi et al. 2019, arXiv:1909.08053, section 3); embeddings, norms and the output matrix are replicated. FSDP2
shards every tensor over devices that compute different batches, and gathers a block's tensors when it runs.

Under FSDP2 all ranks must run a network equally often, or they deadlock. Training steps run each network once; sampling
and evaluation, whose number of calls depends on the data, use ``gathered``.
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
"""Methods that stages call instead of forward, before which FSDP2 must gather weights"""


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network in place.

    Args:
        module: a GPT or ScalarGPT, or a separate head; unsharded, and equal on every rank.
        mesh: with the axes "data_parallel" and "tensor_parallel", from Lightning's ModelParallelStrategy.

    Raises:
        ValueError: heads or widths are not divisible by the tensor-parallel devices, or adapters are DoRA.
    """
    tensor, data = mesh["tensor_parallel"], mesh["data_parallel"]
    layers: Iterable[Any] = module.model.layers if isinstance(module, Network) else ()
    if tensor.size() > 1 and isinstance(module, Network):
        check_split(module.config, tensor.size())
        if any(config.dora for config in adapters(module).values()):
            raise ValueError(
                f"lora.dora is true and tensor_parallel_size is {tensor.size()}, but DoRA needs whole rows: set "
                "lora.dora to false, or shard over data only (recipes/hardware/fsdp2.yaml)"
            )
        for layer in layers:
            parallelize_module(layer, tensor, _plan(layer))
            layer.self_attn.kv_heads //= tensor.size()
    if data.size() > 1:
        for layer in layers:
            fully_shard(layer, mesh=data)
        # The root stays gathered after its forward pass: the loss reads its output matrix.
        fully_shard(module, mesh=data, reshard_after_forward=False)
        for name in _FORWARDS:
            # scores comes first only for a separate head; a network computes its hidden states before.
            if hasattr(module, name) and (name != "scores" or not layers):
                register_fsdp_forward_method(module, name)


def check_split(config: GPTConfig, devices: int) -> None:
    """Refuse a network that tensor parallelism can't split evenly.

    Args:
        config: of the network.
        devices: size of a tensor-parallel group.

    Raises:
        ValueError: heads, kv_heads or ff_width is not a multiple of ``devices``, or a norm needs all heads.
    """
    if config.qk_norm == "all":
        raise ValueError(
            f"qk_norm is 'all', which normalizes over all heads, and {devices} tensor-parallel devices split them: use "
            "data_parallel_size alone"
        )
    parts = {"heads": config.heads, "kv_heads": config.resolved_kv_heads, "ff_width": config.resolved_ff_width}
    for name, value in parts.items():
        if value % devices:
            raise ValueError(
                f"{name} is {value}, not a multiple of {devices} tensor-parallel devices: set tensor_parallel_size "
                f"to a divisor of {', '.join(f'{name} ({value})' for name, value in parts.items())}, or use "
                "data_parallel_size alone"
            )


def _plan(layer: nn.Module) -> dict[str, ParallelStyle]:
    """How each matrix of a block is split: column-wise (by outputs) on the way in, row-wise on the way out."""
    plan: dict[str, ParallelStyle] = {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ColwiseParallel()),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), ColwiseParallel()),
        **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel()),
        # One weight for all heads, which devices split: its gradient is summed over devices.
        **dict.fromkeys(
            ("self_attn.q_norm", "self_attn.k_norm"), SequenceParallel(sequence_dim=2, use_local_output=True)
        ),
    }
    return {
        part: style
        for name, style in plan.items()
        if (module := _submodule(layer, name)) is not None
        for part in _split_names(name, module, style)
    }


def _split_names(name: str, module: nn.Module, style: ParallelStyle) -> list[str]:
    """Names of the layers to split by ``style``: for a LoRA layer, the base and one matrix of each adapter.

    Column-wise that is B, with A replicated; row-wise it is A, whose partial outputs are summed before a replicated B.
    """
    if not is_lora(module):
        return [name]
    side = "lora_B" if isinstance(style, ColwiseParallel) else "lora_A"
    return [f"{name}.base_layer", *(f"{name}.{side}.{adapter}" for adapter in getattr(module, side))]


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter is sharded, so that several ranks must run its forward pass together."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def gathered(module: nn.Module | None) -> Iterator[Any]:
    """Gather a module's weights on every data-parallel rank for the length of the block; call it on all ranks.

    Inside, forward passes without gradients need no other data-parallel rank. It takes the memory of all the weights
    (under tensor parallelism, of this device's share).

    Args:
        module: sharded or not; None yields None.

    Yields:
        The module; for a network under FSDP2 alone an unsharded twin on the same memory, which samples at full speed.
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
    """An unsharded network that shares the parameters of ``module``."""
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
    """The unsharded network: itself if it is not sharded, else a copy on the CPU.

    Call it on all ranks; only rank 0's copy has weights.
    """
    if not is_sharded(network):
        return network
    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    whole = _shell(network)
    if state:
        whole.load_state_dict(state, assign=True)
    return whole


def _shell(network: Network) -> Network:
    """An unsharded network of the same configuration, adapters included, on the meta device."""
    with built_without_memory():
        shell = GPT(network.config) if isinstance(network, GPT) else ScalarGPT(network.config)
        for name, layer in lora_layers(network):
            empty = {id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype)) for p in layer.parameters()}
            shell.set_submodule(name, copy.deepcopy(layer, empty))
    adapters(shell).update(adapters(network))
    return shell


def by_mesh(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group tensors that one kernel can process: by device mesh, unsharded ones together."""
    lists: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        lists.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(lists.values())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor, on the same memory; an unsharded tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm ``[]`` over all elements of all tensors; call it on all ranks.

    An unsharded tensor is equal on all ranks and counts once.
    """
    norms = [torch.nn.utils.get_total_norm(part) for part in by_mesh(tensors)]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip gradients to a total norm of ``max_norm`` in place, where some are sharded and others are not.

    ``torch.nn.utils.clip_grad_norm_`` does not accept a mix.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = total_norm(parameter.grad for parameter in trained if parameter.grad is not None)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(parameter.grad) for parameter in trained if parameter.grad is not None], factor)
