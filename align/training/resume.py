"""Compares the settings of a resumed run with those that its checkpoint recorded.

What settings stand for (weights, reward models, files) is compared by the stage and the data loader once they have
read it; see ``Stage.sources`` and ``ResumableLoader``.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from align.training.resume_rules import NOT_TRAINING, Behaviour, Rule, rule_of

_UNDECLARED = Rule(Behaviour.REFUSED, "nothing says that a run may change it")
_LONGEST = 80
"""Characters of a value in a message"""


class Change(NamedTuple):
    """A setting whose value differs from the checkpoint's.

    Attributes:
        key: of the recipe.
        before: the checkpoint's value; None also where the key did not exist.
        now: the value of the run that resumes.
        rule: what follows from it.
    """

    key: str
    before: Any
    now: Any
    rule: Rule

    def __str__(self) -> str:
        """Key and both values, on one line."""
        return f"{self.key} {_short(self.before)} -> {_short(self.now)}"


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by their full keys, as JSON values.

    Args:
        config: nested settings; a class is a mapping of ``class_path`` and ``init_args``.

    Returns:
        dict: lists stay values, and so do mappings in them.
    """
    return dict(_flat(json.loads(json.dumps(config, default=str)), ""))


def settings_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The differences between two results of ``flat_settings``, in the order of keys of ``now``."""
    keys = [*now, *(key for key in before if key not in now)]
    found = (Change(key, before.get(key), now.get(key), rule_of(key) or _UNDECLARED) for key in keys)
    return [change for change in found if change.before != change.now]


def refuse_changes(changes: Iterable[Change], checkpoint: str) -> None:
    """Raise if a run must not resume with these changes.

    Args:
        changes: from ``settings_changes``.
        checkpoint: its path and step, for the error.

    Raises:
        ValueError: it must not; names each setting, its values and the reason.
    """
    refused = [c for c in changes if c.rule.behaviour == Behaviour.REFUSED and not c.rule.by_content]
    # Another class has other settings too.
    refused = [c for c in refused if c.key == "model.class_path"] or refused
    if refused:
        listed = "; ".join(
            f"{c.key} is {_short(c.now)} (checkpoint: {_short(c.before)}; {c.rule.why})" for c in refused
        )
        raise ValueError(
            f"can't resume from {checkpoint} with other settings: {listed}. Set the checkpoint's values, or start a "
            "new run in another trainer.default_root_dir, with model.init_args.init_from set to the model directory of "
            "this one if it should continue from its weights"
        )


def changes_of_training(changes: Iterable[Change]) -> list[Change]:
    """Those that take effect on what is trained, for the manifest of the model."""
    return [c for c in changes if c.rule.behaviour == Behaviour.EFFECT and c.rule.why != NOT_TRAINING]


def describe_changes(changes: Iterable[Change]) -> tuple[str, list[str]]:
    """Lines for the user about changes that are not refused.

    Args:
        changes: from ``settings_changes``.

    Returns:
        tuple: a line that lists those that take effect, empty if there are none; and a warning for each reason to
        report others.
    """
    effect: list[str] = []
    reported: dict[str, list[str]] = {}
    for change in changes:
        if change.rule.by_content:
            reported.setdefault("what it stands for must be the same", []).append(str(change))
        elif change.rule.behaviour == Behaviour.REPORTED:
            reported.setdefault(change.rule.why, []).append(str(change))
        else:
            effect.append(str(change))
    return ", ".join(effect), [f"{', '.join(listed)} ({why})" for why, listed in reported.items()]


def _flat(value: Any, key: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, part in value.items():
        inner = f"{key}.{name}" if key else str(name)
        # A class without settings may be written with or without empty init_args.
        yield from _flat(part, inner) if not isinstance(part, Mapping) or part else ()


def _short(value: Any) -> str:
    text = "null" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
