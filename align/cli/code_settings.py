"""The code behind the settings of a recipe, as settings of their own: a resumed run notices that it was edited."""

from collections.abc import Mapping
from pydoc import locate
from typing import Any

from align.io.code import code_hash
from align.rewards.functions import code_fingerprint

_REWARDS = ("reward", "gold", "judge")
"""Settings that may name a reward function"""


def code_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """``KEY.code`` -> hash, for each setting that is a user's class or reward function.

    Args:
        settings: by their full keys, as ``flat_settings`` returns them.
    """
    found = {key: _code(key, value) for key, value in settings.items() if isinstance(value, str)}
    return {f"{key.removesuffix('.class_path')}.code": code for key, code in found.items() if code is not None}


def _code(key: str, value: str) -> str | None:
    name = key.rpartition(".")[2]
    if name == "class_path":
        kind = locate(value)
        return code_hash(kind) if isinstance(kind, type) else None
    try:
        return code_fingerprint(value) if name in _REWARDS else None
    except ValueError:  # the stage says that there is no such reward
        return None
