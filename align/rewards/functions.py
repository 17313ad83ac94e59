"""Rewards by name: gold rewards, classes, Python functions, YAML files, reward-model directories."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from align.io.code import code_hash, search_working_directory
from align.rewards.constraints import ConstraintReward
from align.rewards.reward import FunctionReward, Reward
from align.rewards.verifiable import ExactAnswer
from align.tokenizer.prompts import Prompt, as_text

if TYPE_CHECKING:
    import torch

    from align.io.adapter_directory import Base

_IMPORTABLE = re.compile(r"(?P<module>[^\W\d][\w.]*)(?::(?P<name>\w+)|\.(?P<kind>\w+))")


@dataclass(frozen=True)
class SandboxGold(Reward):
    """The gold reward of the synthetic world, in [0, 1]."""

    name = "sandbox"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """See ``Reward``."""
        from align.sandbox import gold_reward

        return [
            gold_reward(as_text(prompt), response).total for prompt, response in zip(prompts, responses, strict=True)
        ]


SHORT_NAMES: dict[str, Reward] = {
    "sandbox": SandboxGold(),
    "constraints": ConstraintReward(),
    "constraints_strict": ConstraintReward(strict=True),
    "exact_answer": ExactAnswer(),
}
"""Rewards that need no class path"""


FILES = (".yaml", ".yml")
"""Endings of files that describe a reward"""


def load_reward(
    reward: str | Path | Reward, *, onto: "Base | None" = None, device: "torch.device | str | None" = None
) -> Reward:
    """A reward by name.

    Args:
        reward: a short name (see ``SHORT_NAMES``); ``module:function`` of a function (prompts, responses) -> scores,
            whose further parameters name the columns that it reads; the class path of a ``Reward``, or its name alone
            if it is in ``align.rewards``, and with settings the mapping that a recipe would have, as in ``{class_path:
            Matches, init_args: {pattern: yes}}``, or a YAML file with it; ``#part`` after one of these but a mapping,
            for a part of a ``WeightedSum``; a directory that the reward stage or transformers wrote (a sequence
            classifier with one label), its Hub id, or the directory of a reward model's adapter; or a ``Reward``, whose
            parts are loaded if it is a ``WeightedSum``.
        onto: weights in memory to which an adapter is applied if they are its base.
        device: where a reward model's network is moved; None leaves it where it was read.

    Returns:
        Reward: of a directory a ``RewardModel``.

    Raises:
        ValueError: there is no such module, function, class, file or directory, or it has no reward.
    """
    reward = _part(reward)
    if (code := _without_weights(reward)) is not None:
        return code.loaded(partial(load_reward, onto=onto, device=device))
    # Other rewards should not wait for torch.
    from align.rewards.reward_model import RewardModel

    name = str(reward)
    try:
        model = RewardModel.load(name, onto=onto)
    except FileNotFoundError as error:
        raise ValueError(f"no reward {name!r}: {error}") from error
    if device is not None:
        model.network.to(device)
    return model


def columns_read(rewards: Iterable[str | Path | Reward | None]) -> tuple[str, ...]:
    """Columns of the records that rewards read, sorted. No network is loaded: a reward model reads none.

    Args:
        rewards: as ``load_reward`` takes them; None reads nothing.

    Raises:
        ValueError: there is no such reward.
    """
    found = [_without_weights(reward) for reward in rewards if reward is not None]
    return tuple(sorted({name for reward in found if reward is not None for name in reward.columns}))


def code_fingerprint(reward: str | Path | Reward) -> str | None:
    """Hash of the code of a reward; None for a reward of align, a reward model, and code without a source.

    Raises:
        ValueError: there is no such reward.
    """
    found = _without_weights(reward)
    if found is None:
        return None
    if found.summed:
        parts = [(name, part.weight, code_fingerprint(part.reward)) for name, part in found.summed.items()]
        return hashlib.sha256(repr(parts).encode()).hexdigest() if any(code for *_, code in parts) else None
    return code_hash(found.function if isinstance(found, FunctionReward) else type(found))


def part_names(reward: str | Path | Reward) -> tuple[str, ...]:
    """The parts of a ``WeightedSum``, as they stand after ``#``; of another reward none. No network is loaded.

    Raises:
        ValueError: there is no such reward.
    """
    found = _without_weights(reward)
    return () if found is None else tuple(found.summed)


def _part(reward: str | Path | Reward) -> str | Path | Reward:
    """What ``REWARD#PART`` names; anything else as it is."""
    if isinstance(reward, Reward) or "#" not in str(reward) or is_mapping(str(reward)) or Path(reward).exists():
        return reward
    whole, _, name = str(reward).rpartition("#")
    found = _without_weights(whole)
    if found is None or name not in found.summed:
        known = ", ".join(part_names(whole)) or "none"
        raise ValueError(f"no reward {str(reward)!r}: {whole} has no part {name!r}; its parts: {known}")
    return found.summed[name].reward


def _without_weights(reward: str | Path | Reward) -> Reward | None:
    """The reward; None where the name is that of a reward model, which is not loaded.

    Raises:
        ValueError: the name can't be one of either.
    """
    reward = _part(reward)
    if isinstance(reward, Reward):
        return reward
    name = str(reward)
    if is_mapping(name):
        return _described(name)
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if name.endswith(FILES):
        return _described(name, Path(name))
    if (kind := _own_kind(name)) is not None:
        return _built(name, kind)
    if (found := _IMPORTABLE.fullmatch(name)) and not Path(name).exists():
        search_working_directory()
        return _imported(name, found["module"], found["name"] or found["kind"])
    if not Path(name).exists() and "/" not in name:
        known = ", ".join(map(repr, SHORT_NAMES))
        raise ValueError(f"no reward {name!r}: give {known}, module:function, a class path or a reward-model directory")
    return None


def is_mapping(name: str) -> bool:
    """Whether a reward is named with its settings: ``{class_path: CLASS, init_args: {NAME: VALUE}}``."""
    return name.lstrip().startswith("{")


def _described(name: str, file: Path | None = None) -> Reward:
    """The reward of a mapping ``{class_path: CLASS, init_args: {NAME: VALUE}}``, or of a YAML file with one."""
    import jsonargparse

    form = "give {class_path: CLASS, init_args: {NAME: VALUE}}"
    try:
        given = yaml.safe_load(name if file is None else file.read_text(encoding="utf-8"))
        if not isinstance(given, dict) or given.keys() - {"class_path", "init_args"} or "class_path" not in given:
            raise ValueError(f"it is no mapping with class_path and init_args: {given!r}")
        if not isinstance(values := given.get("init_args") or {}, dict):
            raise ValueError(f"init_args is no mapping: {values!r}")
        kind = _kind(str(given["class_path"]))
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind)
        settings = parser.instantiate_classes(parser.parse_object(values))
        return kind(**vars(settings))
    except (OSError, ValueError, TypeError, yaml.YAMLError, jsonargparse.ArgumentError) as error:
        raise ValueError(f"no reward {name!r}: {' '.join(str(error).split())}; {form}") from error


def _kind(path: str) -> type[Reward]:
    """The class that a class path, or a name of ``align.rewards``, names."""
    if (own := _own_kind(path)) is not None:
        return own
    search_working_directory()
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"class_path {path!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Reward)):
        raise ValueError(f"class_path {path!r} is no Reward")
    return kind


def _own_kind(name: str) -> type[Reward] | None:
    """The class of ``align.rewards`` that has a name."""
    package = import_module("align.rewards")
    kind = getattr(package, name) if name in package.__all__ else None
    return kind if isinstance(kind, type) and issubclass(kind, Reward) and not isabstract(kind) else None


def _built(name: str, kind: type[Reward]) -> Reward:
    try:
        return kind()
    except TypeError as error:
        raise ValueError(
            f"reward {name!r} was given no settings: {error}; give {{class_path: {name}, init_args: {{NAME: VALUE}}}}"
        ) from error


def _imported(name: str, module: str, attribute: str) -> Reward:
    """The reward that a module has under a name."""
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no reward {name!r}: {error}") from error
    if isinstance(found, type) and issubclass(found, Reward):
        return _built(name, found)
    if not callable(found):
        raise ValueError(f"no reward {name!r}: a {type(found).__name__} is neither a function nor a Reward")
    return found if isinstance(found, Reward) else FunctionReward(name, found)
