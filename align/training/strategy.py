"""The sharding strategy of the hardware overlays: Lightning's, told only what it can't work out.

From a checkpoint of sharded weights to a process that holds them whole, and back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer


def check_accumulation(strategy: Strategy, accumulate_grad_batches: int) -> None:
    """Refuse what a strategy would get wrong without a word.

    Raises:
        ValueError: gradients are accumulated under DeepSpeed, which divides each micro-batch's by their number alone.
    """
    if isinstance(strategy, DeepSpeedStrategy) and accumulate_grad_batches > 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {accumulate_grad_batches}: DeepSpeed keeps the gradients to itself, "
            "so that micro-batches of different length would not weigh by their tokens; set it to 1, or train with "
            "recipes/hardware/fsdp2.yaml"
        )


class ModelParallel(ModelParallelStrategy):
    """FSDP2, tensor parallelism or both, over all the devices there are.

    Lightning's own wants both sizes, so that a recipe would have to know the cluster. How the networks are cut is in
    ``align.training.sharding``.

    Args:
        tensor_parallel_size: devices that split each matrix among them, at best those of one machine; the rest of the
            devices share the data and the weights by FSDP2. It divides the number of devices.
        save_distributed_checkpoint: each rank writes its part, a folder in all; false: rank 0 gathers and writes one
            file, for networks that fit into its memory.
    """

    def __init__(self, tensor_parallel_size: int = 1, save_distributed_checkpoint: bool = True) -> None:
        """Keep the settings."""
        super().__init__("auto", tensor_parallel_size, save_distributed_checkpoint=save_distributed_checkpoint)
        self._tensor_devices = tensor_parallel_size

    def setup_environment(self) -> None:
        """Deal the devices out.

        Raises:
            ValueError: they can't be dealt out so.
        """
        devices = self.num_nodes * self.num_processes
        if self._tensor_devices < 1 or devices % self._tensor_devices:
            raise ValueError(
                f"tensor_parallel_size is {self._tensor_devices}: it must divide the number of devices ({devices})"
            )
        self._data_parallel_size = devices // self._tensor_devices
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Take up a folder as Lightning does, and a file whichever strategy wrote it.

        Lightning's own takes the numbers of a file's optimizer for places among all parameters, frozen ones too.

        Raises:
            ValueError: the file is of another network.
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


def number_optimizer_state(
    stored: Mapping[str, Any], optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Any]:
    """An optimizer's state by the numbers that ``Optimizer.load_state_dict`` wants.

    A sharded checkpoint calls parameters by name, and may have them in other groups: one for each device mesh.

    Args:
        stored: ``state`` and ``param_groups`` of such a checkpoint.
        optimizer: that is to take it up.
        names: of its parameters.

    Returns:
        As ``optimizer.state_dict()`` would be; ``stored`` itself where it has numbers already.

    Raises:
        ValueError: the checkpoint knows a parameter not, or another run's.
    """
    if not any(isinstance(name, str) for group in stored["param_groups"] for name in group["params"]):
        return dict(stored)
    settings = {name: group for group in stored["param_groups"] for name in group["params"]}
    groups: list[dict[str, Any]] = []
    state: dict[int, Any] = {}
    number = 0
    for group in optimizer.param_groups:
        here = [names[parameter] for parameter in group["params"]]
        if missing := [name for name in here if name not in settings]:
            raise ValueError(f"the checkpoint's optimizer has no {missing[0]}: it is of another network")
        numbers = list(range(number, number + len(here)))
        number += len(here)
        kept = settings[here[0]] if here else {key: value for key, value in group.items() if key != "params"}
        groups.append({**kept, "params": numbers})
        state |= {at: stored["state"][name] for at, name in zip(numbers, here, strict=True) if name in stored["state"]}
    return {"state": state, "param_groups": groups}


def name_optimizer_state(
    stored: Mapping[str, Any], optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Any]:
    """An optimizer's state by parameters' names, which those of cut networks go by: undoes ``number_optimizer_state``.

    Args:
        stored: ``state`` and ``param_groups`` as a process with whole networks writes them.
        optimizer: that is to take it up.
        names: of its parameters.

    Returns:
        The same with names for numbers, which count the parameters in the order of the groups.

    Raises:
        ValueError: the checkpoint's optimizer moved another number of tensors.
    """
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    here = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    if len(numbers) != len(here):
        raise ValueError(
            f"the checkpoint's optimizer moves {len(numbers)} tensors, this run's {len(here)}: it is of another network"
        )
    called = dict(zip(numbers, here, strict=True))
    groups = [{**group, "params": [called[number] for number in group["params"]]} for group in stored["param_groups"]]
    return {"state": {called[number]: state for number, state in stored["state"].items()}, "param_groups": groups}
