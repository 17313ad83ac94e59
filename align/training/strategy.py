"""The sharding strategy of the hardware overlays, and optimizer state that moves between sharded and unsharded runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer


def check_accumulation(strategy: Strategy, accumulate_grad_batches: int) -> None:
    """Refuse gradient accumulation under DeepSpeed, which would silently average micro-batches of different length.

    Raises:
        ValueError: it is configured.
    """
    if isinstance(strategy, DeepSpeedStrategy) and accumulate_grad_batches > 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {accumulate_grad_batches}: DeepSpeed would weight micro-batches "
            "equally instead of by their tokens; set it to 1, or train with recipes/hardware/fsdp2.yaml"
        )


class ModelParallel(ModelParallelStrategy):
    """FSDP2, tensor parallelism or both, over all available devices.

    Lightning's own strategy needs both sizes, so that a recipe would depend on the cluster. ``align.training.sharding``
    shards the networks.

    Args:
        tensor_parallel_size: devices that split each matrix, preferably within one machine; FSDP2 shards over the rest.
            Must divide the number of devices.
        save_distributed_checkpoint: every rank writes its shards into one directory; false: rank 0 gathers them and
            writes one file, if the network fits into its memory.
    """

    def __init__(self, tensor_parallel_size: int = 1, save_distributed_checkpoint: bool = True) -> None:
        """Store the settings."""
        super().__init__("auto", tensor_parallel_size, save_distributed_checkpoint=save_distributed_checkpoint)
        self._tensor_devices = tensor_parallel_size

    def setup_environment(self) -> None:
        """Set the data-parallel size from the number of devices.

        Raises:
            ValueError: tensor_parallel_size does not divide it.
        """
        devices = self.num_nodes * self.num_processes
        if self._tensor_devices < 1 or devices % self._tensor_devices:
            raise ValueError(
                f"tensor_parallel_size is {self._tensor_devices}: it must divide the number of devices ({devices})"
            )
        self._data_parallel_size = devices // self._tensor_devices
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a directory as Lightning does, and a file from any strategy.

        Lightning itself would take the parameter indices in a file's optimizer state as indices among all parameters,
        including frozen ones.

        Raises:
            ValueError: the file belongs to another network.
        """
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_file():
            return super().load_checkpoint(path, weights_only)
        stored: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        module = self.lightning_module
        assert module is not None
        options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
        set_model_state_dict(module, stored.pop("state_dict"), options=options)
        names = {parameter: name for name, parameter in module.named_parameters()}
        for optimizer, state in zip(self.optimizers, stored.pop("optimizer_states", ()), strict=False):
            named = name_optimizer_state(state, optimizer, names)
            set_optimizer_state_dict(module, optimizer, optim_state_dict=named, options=options)
        return stored


def index_optimizer_state(
    stored: Mapping[str, Any], optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Any]:
    """Convert optimizer state keyed by parameter names to the indices that ``Optimizer.load_state_dict`` needs.

    Sharded checkpoints use names, and may have other groups: one per device mesh.

    Args:
        stored: ``state`` and ``param_groups`` of a checkpoint.
        optimizer: to load it into.
        names: of its parameters.

    Returns:
        In the format of ``optimizer.state_dict()``; ``stored`` itself if it has indices already.

    Raises:
        ValueError: the checkpoint lacks a parameter.
    """
    if not any(isinstance(name, str) for group in stored["param_groups"] for name in group["params"]):
        return dict(stored)
    settings = {name: group for group in stored["param_groups"] for name in group["params"]}
    groups: list[dict[str, Any]] = []
    state: dict[int, Any] = {}
    count = 0
    for group in optimizer.param_groups:
        here = [names[parameter] for parameter in group["params"]]
        if missing := [name for name in here if name not in settings]:
            raise ValueError(f"the checkpoint's optimizer has no {missing[0]}: it belongs to another network")
        indices = list(range(count, count + len(here)))
        count += len(here)
        kept = settings[here[0]] if here else {key: value for key, value in group.items() if key != "params"}
        groups.append({**kept, "params": indices})
        state |= {i: stored["state"][name] for i, name in zip(indices, here, strict=True) if name in stored["state"]}
    return {"state": state, "param_groups": groups}


def name_optimizer_state(
    stored: Mapping[str, Any], optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Any]:
    """Convert optimizer state keyed by indices to parameter names, for sharded networks; see ``index_optimizer_state``.

    Args:
        stored: ``state`` and ``param_groups`` of an unsharded checkpoint.
        optimizer: to load it into.
        names: of its parameters.

    Returns:
        The same, with names for indices, which count parameters in the order of the groups.

    Raises:
        ValueError: the checkpoint's optimizer has another number of tensors.
    """
    indices = [index for group in stored["param_groups"] for index in group["params"]]
    here = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    if len(indices) != len(here):
        raise ValueError(
            f"the checkpoint's optimizer has {len(indices)} tensors, this run's has {len(here)}: it belongs to another "
            "network"
        )
    name_of = dict(zip(indices, here, strict=True))
    groups = [{**group, "params": [name_of[index] for index in group["params"]]} for group in stored["param_groups"]]
    return {"state": {name_of[index]: state for index, state in stored["state"].items()}, "param_groups": groups}
