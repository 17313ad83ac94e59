"""Rewards by name: the sandbox's gold, Python functions, reward-model directories."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from align.rewards.base import FunctionReward, Reward

if TYPE_CHECKING:
    import torch

    from align.io.adapter_directory import Base


def sandbox_gold(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The sandbox's gold reward of each response, in [0, 1].

    Args:
        prompts: texts of the sandbox's prompts.
        responses: as many texts.

    Returns:
        list[float]: as many scores.
    """
    from align.sandbox import gold_reward

    return [gold_reward(prompt, response).total for prompt, response in zip(prompts, responses, strict=True)]


def search_working_directory() -> None:
    """Make modules in the working directory importable: the installed command, unlike ``python -m``, ignores them."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def load_reward(name: str | Path, *, onto: "Base | None" = None, device: "torch.device | str | None" = None) -> Reward:
    """A reward by name.

    Args:
        name: ``sandbox``; a directory that the Reward stage or transformers wrote (a sequence classifier with one
            label), its Hub id, or the directory of a reward model's adapter; or ``module:function`` of a function
            (prompts, responses) -> scores.
        onto: weights in memory on which an adapter may stand if they are its base.
        device: where a reward model's network is moved; None leaves it where it was read.

    Returns:
        Reward: of a directory a ``RewardModel``.

    Raises:
        ValueError: there is no such module, function or directory, or the directory is no reward model.
    """
    if name == "sandbox":
        return FunctionReward("sandbox", sandbox_gold)
    module, colon, function = str(name).partition(":")
    if colon and module.replace(".", "").isidentifier() and not Path(name).exists():
        search_working_directory()
        try:
            return FunctionReward(str(name), getattr(import_module(module), function))
        except (ImportError, AttributeError) as error:
            raise ValueError(f"no reward {name!r}: {error}") from error
    if not Path(name).exists() and "/" not in str(name):
        raise ValueError(f"no reward {name!r}: give 'sandbox', 'module:function' or a reward-model directory")
    # Sandbox and functions should not wait for torch.
    from align.rewards.reward_model import RewardModel

    try:
        reward = RewardModel.load(name, onto=onto)
    except FileNotFoundError as error:
        raise ValueError(f"no reward {str(name)!r}: {error}") from error
    if device is not None:
        reward.network.to(device)
    return reward
