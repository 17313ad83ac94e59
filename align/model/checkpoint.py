"""Weights out of the checkpoints that Lightning writes of our stages."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from align.model.directory import built_without_memory, load_network, locate, read_config
from align.model.four_bit import round_matrices
from align.model.gpt import GPT
from align.model.lora import LoraConfig, add_adapter, convert_base, merged_copy
from align.model.manifest import weights_fingerprint
from align.model.scalar import ScalarGPT, load_scalar
from align.model.sharded_checkpoint import METADATA, read_sharded

_PREFIX = "network."
"""What a stage calls the network that it trains and writes"""


def load_checkpoint(file: str | Path, directory: str | Path) -> GPT:
    """The language model that a stage had trained when it wrote a checkpoint, on the CPU, in the checkpoint's type.

    Args:
        file: a ``.ckpt`` of one of our stages.
        directory: a model directory of the same run, which knows the network's shape.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the checkpoint is cut short, holds no network of ours, or one of another shape, or an adapter over
            a base that is no longer what it was.
    """
    path = Path(file)
    stored = read_stored(path)
    if (adapted := adapted_network(stored, path)) is not None:
        if not isinstance(adapted, GPT):
            raise ValueError(f"{path}: a reward model's adapter, which gives a score and no text")
        return adapted
    state = trained_state(stored, path)
    with built_without_memory():
        network = GPT(read_config(directory))
    fill_from(network, state, path)
    return network


def is_checkpoint(path: Path) -> bool:
    """Whether this is something that ``read_stored`` reads: any file, or the folder of a sharded checkpoint."""
    return path.is_file() or (path / METADATA).is_file()


def read_stored(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, its tensors mapped from the file; of a sharded one, a folder, in memory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut short, or no checkpoint of Lightning.
    """
    if path.is_dir():
        return read_sharded(path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        size = path.stat().st_size
        # torch follows its first sentence with a paragraph of guesses.
        reason = str(error).strip().partition(". ")[0].partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: no whole checkpoint ({size} bytes; cut short, or not a .ckpt of Lightning): {reason}"
        ) from None
    for field in ("state_dict", "global_step"):
        if not isinstance(stored, dict) or field not in stored:
            raise ValueError(f"{path}: {field} is missing: not a checkpoint of Lightning")
    return stored


def adapted_network(stored: dict[str, Any], path: Path) -> GPT | ScalarGPT | None:
    """The merged network of a checkpoint that holds an adapter; None where it holds a whole network.

    Args:
        stored: from ``read_stored``.
        path: where it was read, for errors.

    Raises:
        FileNotFoundError: the base is no longer where it was.
        ValueError: the base holds other weights now, was made in Python, or the adapter's tensors do not fit it.
    """
    record = stored.get("adapter")
    if record is None:
        return None
    base = record["base"]
    if base is None:
        raise ValueError(f"{path}: holds an adapter over a network that was made in Python: there is no base to read")
    try:
        directory = locate(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: holds an adapter, and its base is gone: {error}") from None
    if (weights := weights_fingerprint(directory)) != record["weights"]:
        raise ValueError(
            f"{path}: holds an adapter over base weights {record['weights'][:12]}, but {base} holds {weights[:12]}: "
            "it was trained again since"
        )
    state = trained_state(stored, path)
    config = LoraConfig(**record["lora"])
    network: GPT | ScalarGPT = load_scalar(directory) if "score.weight" in state else load_network(directory)
    convert_base(network, config.dtype)
    if record.get("four_bit"):
        round_matrices(network, record["four_bit"])
    add_adapter(network, config)
    learning = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}
    _check_fit(state, learning, path)
    with torch.no_grad():
        for name, tensor in learning.items():
            tensor.copy_(state[name])
    return merged_copy(network)


def trained_state(stored: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The trained network's tensors by their names in it.

    Args:
        stored: from ``read_stored``.
        path: where it was read, for errors.

    Raises:
        ValueError: no stage of ours wrote it.
    """
    tensors = stored["state_dict"]
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    if not state:
        names = ", ".join(sorted({name.partition(".")[0] for name in tensors})) or "nothing"
        raise ValueError(f"{path}: state_dict holds {names}, no {_PREFIX}*: not a checkpoint of a stage of align")
    return state


def fill_from(network: GPT | ScalarGPT, state: dict[str, torch.Tensor], path: Path) -> None:
    """Give a network copies of a checkpoint's tensors.

    Args:
        network: of the run's shape; may be without memory.
        state: from ``trained_state``.
        path: where it was read, for errors.

    Raises:
        ValueError: a tensor is missing, surplus or of another shape.
    """
    _check_fit(state, network.state_dict(), path)
    network.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


def _check_fit(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise ValueError(f"{path}: {_PREFIX}{name} is missing from state_dict, which the run's network calls for")
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {_PREFIX}{name} is {list(state[name].shape)}; the run's network has {list(tensor.shape)}"
            )
    if surplus := sorted(state.keys() - expected.keys()):
        raise ValueError(f"{path}: {_PREFIX}{surplus[0]} is no part of the run's network")
