"""The models of a comparison: their runs and checkpoints, and the settings and costs in their manifests."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.compare.best_of import BestOf
from align.io.directory import load_network
from align.io.lightning_checkpoint import load_checkpoint
from align.io.manifest import read_manifest, weights_fingerprint
from align.model.gpt import GPT

COSTS = {
    "tokens_trained": "tokens trained on",
    "tokens_sampled": "tokens sampled in training",
    "flops": "model FLOPs of both",
    "wall_seconds": "wall-clock seconds",
    "cpu_seconds": "CPU seconds, all threads",
    "peak_memory_mib": "peak memory, MiB",
    "labels": "labelled pairs read",
    "samples": "responses sampled in training",
}
"""Fields of the manifest's ``cost``, which the Cost callback writes -> their meaning"""


class Point(NamedTuple):
    """Weights to sample from.

    Attributes:
        model: model directory, with the tokenizer and the network's configuration.
        checkpoint: a ``.ckpt`` whose weights replace the directory's, or None.
        step: optimizer steps taken, or None if unknown.
    """

    model: Path
    checkpoint: Path | None
    step: int | None

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.checkpoint.name if self.checkpoint else "model"

    def load(self, device: str = "cpu") -> GPT:
        """The network, in eval mode on a device.

        Raises:
            ValueError: the directory or the checkpoint is damaged or of another type; the line names the file.
        """
        network = load_checkpoint(self.checkpoint, self.model) if self.checkpoint else load_network(self.model)
        return network.eval().to(device)

    def fingerprint(self) -> str:
        """Hash of the weights, in hexadecimal."""
        if self.checkpoint is None:
            return weights_fingerprint(self.model)
        with self.checkpoint.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Run(NamedTuple):
    """A trained model.

    Attributes:
        model: its model directory.
        manifest: its align.json; empty if no stage of align wrote the directory.
    """

    model: Path
    manifest: dict[str, Any]

    @classmethod
    def of(cls, model: Path) -> "Run":
        """Read a model directory's manifest."""
        return cls(model, read_manifest(model) if (model / "align.json").is_file() else {})

    @property
    def final(self) -> Point:
        """The weights of the model directory."""
        return Point(self.model, None, self.manifest.get("step"))

    def points(self) -> list[Point]:
        """Every checkpoint of the run, by step, then the model directory.

        Left out: ``last.ckpt``, which is for resuming, and a checkpoint at the model directory's own step.
        """
        found = []
        for path in (self.model.parent / "checkpoints").glob("*.ckpt"):
            match = re.search(r"step=(\d+)", path.name)
            if match and int(match[1]) != self.final.step:
                found.append(Point(self.model, path, int(match[1])))
        return [*sorted(found, key=lambda point: point.step or 0), self.final]


class Candidate(NamedTuple):
    """A model: its name and its runs, one per seed.

    Attributes:
        name: of the model in reports.
        runs: at least one.
        best_of: how its responses are chosen from another candidate's, which has the same runs; None: they are the
            model's own.
    """

    name: str
    runs: tuple[Run, ...]
    best_of: BestOf | None = None


def check_candidates(candidates: Sequence[Candidate]) -> int:
    """The number of seeds of a comparison: the most runs that a candidate has.

    Raises:
        ValueError: fewer than two candidates, a name twice, or a candidate with neither one run nor as many as others.
    """
    if len(candidates) < 2:
        raise ValueError(f"{len(candidates)} model to compare: give at least two, the baseline first")
    names = [candidate.name for candidate in candidates]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two models are called {name!r}: give each its own name (NAME=PATH)")
    seeds = max(len(candidate.runs) for candidate in candidates)
    for candidate in candidates:
        if len(candidate.runs) not in (1, seeds):
            raise ValueError(
                f"{candidate.name} has {len(candidate.runs)} runs where another model has {seeds}: run i is compared "
                f"with run i of the others, so give 1 or {seeds}"
            )
    return seeds


def settings_diff(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """The settings in which the recipes of the candidates' first runs differ.

    Returns:
        list: ``{"setting": dotted name, "values": {NAME: value}}``; a model without the setting has no value. Models
        without a recipe of their own, such as a published one or the best of N, are left out.
    """
    recipes = {of.name: of.runs[0].manifest.get("recipe") for of in candidates if of.best_of is None}
    flat = {name: _flatten(recipe) for name, recipe in recipes.items() if recipe}
    if len(flat) < 2:
        return []
    names = sorted({name for values in flat.values() for name in values})
    found = []
    for name in names:
        values = {model: settings[name] for model, settings in flat.items() if name in settings}
        if len(values) < len(flat) or any(value != next(iter(values.values())) for value in values.values()):
            found.append({"setting": name, "values": values})
    return found


def costs(candidate: Candidate) -> dict[str, Any] | None:
    """The cost of a candidate's stage, the mean over its runs.

    Returns:
        dict: the fields of ``COSTS``, None for one that was not measured, and ``reward_model``: the same of the reward
        model that the stage trained with, or None; None altogether if a run's manifest has no cost, and for the best
        of N, which trains nothing.
    """
    if candidate.best_of is not None:
        return None
    own = _mean_cost([run.manifest for run in candidate.runs])
    if own is None:
        return None
    return own | {"reward_model": _mean_cost([_reward_manifest(run.manifest) for run in candidate.runs])}


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
    """The manifest of the reward-model directory that a recipe names, if it still exists."""
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
