"""What a model's manifest says of how it was made: its settings, and what it cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.compare.entrants import Entrant
from align.io.manifest import read_manifest

COSTS = {
    "tokens_trained": "token positions trained on",
    "tokens_sampled": "tokens sampled while training",
    "flops": "model FLOPs of both",
    "wall_seconds": "wall-clock seconds",
    "cpu_seconds": "CPU seconds, all threads",
    "peak_memory_mib": "most resident memory, MiB",
    "labels": "labelled pairs read",
    "samples": "answers sampled while training",
}
"""Fields of the manifest's ``cost``, as the Cost callback writes it, and what they count"""


def settings_diff(entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """The settings in which the recipes of the models' first runs differ.

    Returns:
        list: ``{"setting": dotted name, "values": {NAME: value}}``; a model without the setting has no value.
    """
    flat = {entrant.name: _flatten(entrant.runs[0].manifest.get("recipe") or {}) for entrant in entrants}
    names = sorted({name for values in flat.values() for name in values})
    found = []
    for name in names:
        values = {model: settings[name] for model, settings in flat.items() if name in settings}
        if len(values) < len(flat) or any(value != next(iter(values.values())) for value in values.values()):
            found.append({"setting": name, "values": values})
    return found


def costs(entrant: Entrant) -> dict[str, Any] | None:
    """What an entrant's stage cost, the mean over its runs.

    Returns:
        dict: the fields of ``COSTS``, None where one was not measured, and ``reward_model``: the same of the reward
        model that the stage learned from, None where it learned from none or that does not say; None altogether where
        a run's manifest does not say.
    """
    own = _mean_cost([run.manifest for run in entrant.runs])
    if own is None:
        return None
    return own | {"reward_model": _mean_cost([_reward_manifest(run.manifest) for run in entrant.runs])}


def _mean_cost(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    found = [manifest.get("cost") for manifest in manifests]
    if not all(isinstance(cost, Mapping) for cost in found):
        return None
    return {name: _mean([cost[name] for cost in found if cost]) for name in COSTS}


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them was not measured."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if len(measured) == len(values) else None


def _reward_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the reward-model directory that a recipe names, if that is still there."""
    reward = _flatten(manifest.get("recipe") or {}).get("model.init_args.reward")
    if not isinstance(reward, str) or not (Path(reward) / "align.json").is_file():
        return {}
    return read_manifest(reward)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flatten(item, f"{prefix}.{name}" if prefix else str(name))
    return flat
