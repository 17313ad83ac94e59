"""Checkpoints of a run: load the network from one, and find the best."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from align.io.lightning_checkpoint import adapted_network, fill_from, read_stored, trained_state
from align.io.location import read_config
from align.io.manifest import read_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

CHECKPOINTS = "checkpoints"


class Checkpoint(NamedTuple):
    """The network of a checkpoint.

    Attributes:
        network: in memory of its own, in the checkpoint's dtype.
        directory: a model directory with its tokenizer.
        manifest: as in align.json, for the checkpoint's step.
    """

    network: GPT | ScalarGPT
    directory: Path
    manifest: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Load the network of a checkpoint.

    A checkpoint has weights only; the configuration comes from the run's ``model/`` or its ``config.yaml``.

    Args:
        path: a ``.ckpt``, in ``RUN/checkpoints`` or in ``RUN``.

    Raises:
        FileNotFoundError: the run's files are missing.
        ValueError: the file is truncated, is not a checkpoint of a stage, or does not match the run's network.
    """
    stored = read_stored(path)
    state = trained_state(stored, path)
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    recipe = _recipe(run)
    config, directory = _configuration(run, recipe, path)
    network = adapted_network(stored, path)
    if network is None:
        with built_without_memory():
            network = ScalarGPT(config) if "score.weight" in state else GPT(config)
        fill_from(network, state, path)
    return Checkpoint(network, directory, _manifest(run, recipe, int(stored["global_step"])))


def best_of(run: Path, metric: str, mode: str) -> Path:
    """Find the best of a run's ``model/`` and its checkpoints.

    A checkpoint's value is the one its ModelCheckpoint monitored, or the one in ``metrics.csv`` of the validation at
    its step; a checkpoint saved between two validations has none and is skipped.

    Args:
        run: the run folder.
        metric: as logged, such as ``val/loss``.
        mode: ``min`` or ``max``.

    Returns:
        ``model/`` or a ``.ckpt``; among equals the one with the most steps.

    Raises:
        ValueError: none has a value of this metric; the message names the available metrics.
    """
    rows = _metric_rows(run)
    found: list[tuple[float, int, Path]] = []
    names = {name for row in rows for name, value in row.items() if value and name not in ("step", "epoch")}
    if (run / "model" / "align.json").is_file():
        manifest = read_manifest(run / "model")
        metrics = manifest.get("metrics", {})
        names |= set(metrics)
        if isinstance(value := metrics.get(metric), (int, float)):
            found.append((float(value), int(manifest.get("step", 0)), run / "model"))
    unmeasured = []
    for path in sorted((run / CHECKPOINTS).glob("*.ckpt")):
        stored = read_stored(path)
        step = int(stored["global_step"])
        measured = _value(stored, rows, metric, step)
        if measured is None:
            unmeasured.append(f"{path.name} (step {step})")
        else:
            found.append((measured, step, path))
    if not found:
        if metric not in names:
            raise ValueError(f"{run}: --best {metric}: no such metric; available: {', '.join(sorted(names)) or 'none'}")
        raise ValueError(f"{run}: --best {metric}: not measured at the step of {', '.join(unmeasured)}")
    sign = 1 if mode == "min" else -1
    return min(found, key=lambda entry: (sign * entry[0], -entry[1]))[2]


def _value(stored: dict[str, Any], rows: list[dict[str, str]], metric: str, step: int) -> float | None:
    for name, state in stored.get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint") and state.get("monitor") == metric:
            score = state.get("current_score")
            return None if score is None else float(score)
    # Lightning logs a validation under the index of the last step, counted from 0.
    at_step = [row[metric] for row in rows if row.get(metric) and int(row["step"]) in (step - 1, step)]
    return float(at_step[-1]) if at_step else None


def _metric_rows(run: Path) -> list[dict[str, str]]:
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _recipe(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return recipe if isinstance(recipe, dict) else {}


def _configuration(run: Path, recipe: dict[str, Any], path: Path) -> tuple[GPTConfig, Path]:
    """The network's configuration, and a directory with its tokenizer."""
    if (run / "model" / "config.json").is_file():
        return read_config(run / "model"), run / "model"
    model = recipe.get("model", {}).get("init_args", {})
    tokenizer = recipe.get("data", {}).get("init_args", {}).get("tokenizer")
    parent = model.get("init_from")
    if not (tokenizer or parent):
        raise ValueError(
            f"{path}: a checkpoint has no network configuration or tokenizer, and {run} has neither model/config.json "
            "nor a config.yaml that names them: keep the .ckpt in its run folder"
        )
    directory = Path(tokenizer or parent)
    if parent:
        return read_config(parent), directory
    settings = model.get("network") or {}
    return GPTConfig.from_dict(settings.get("init_args", settings)), directory


def _manifest(run: Path, recipe: dict[str, Any], step: int) -> dict[str, Any]:
    """The manifest that the stage would have written at this step."""
    written = read_manifest(run / "model") if (run / "model" / "align.json").is_file() else None
    if written and written.get("step") == step:
        return written
    metrics: dict[str, float] = {}
    for row in _metric_rows(run):
        if row.get("step") and int(row["step"]) <= step:
            metrics |= {name: float(value) for name, value in row.items() if value and name not in ("step", "epoch")}
    model = recipe.get("model", {})
    parent = model.get("init_args", {}).get("init_from")
    base: dict[str, Any] = {
        "stage": str(model.get("class_path", "unknown")).rpartition(".")[2].lower(),
        "recipe": {name: recipe[name] for name in ("seed_everything", "model", "data") if name in recipe} or None,
        "parent": {"directory": parent, "weights": None} if parent else None,
        "data": {},
        "libraries": {},
    }
    if written:
        # Reward statistics are those of the final weights.
        base = {name: value for name, value in written.items() if not name.startswith("reward_")}
    return {**base, "step": step, "metrics": metrics}
