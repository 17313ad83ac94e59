"""From a checkpoint of sharded weights to a process that holds them whole, and back."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer


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
