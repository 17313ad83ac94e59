"""Rewards that are Python functions of the prompt's and the response's text."""

from collections.abc import Callable, Sequence
from importlib import import_module

RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, responses) -> one score each; higher is better."""


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


def load_reward(name: str) -> RewardFunction:
    """A reward by name.

    Args:
        name: ``sandbox``, or ``module:function`` of a function (prompts, responses) -> scores.

    Returns:
        RewardFunction: the function.

    Raises:
        ValueError: no such module or function.
    """
    if name == "sandbox":
        return sandbox_gold
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"no reward {name!r}: give 'sandbox' or 'module:function'")
    try:
        found: RewardFunction = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no reward {name!r}: {error}") from error
    return found
