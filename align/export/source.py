"""The source of an export: a run folder, a checkpoint, an adapter or a model directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from align.export.peft_adapter import merged
from align.export.run_checkpoints import CHECKPOINTS, best_of, read_checkpoint
from align.io.directory import is_scalar, load_network, load_scalar
from align.io.gguf.container import gguf_in
from align.io.lightning_checkpoint import is_checkpoint
from align.io.location import locate, read_fields
from align.io.manifest import ADAPTER_CONFIG as ADAPTER
from align.io.manifest import read_manifest
from align.io.weight_files import stored_weights
from align.model.gpt import GPT, ScalarGPT
from align.tokenizer import Tokenizer

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Adapter(NamedTuple):
    """An adapter that a source was merged from.

    Attributes:
        directory: of the adapter.
        base: directory of the base it was merged into.
    """

    directory: Path
    base: Path


@dataclass(frozen=True)
class Source:
    """A network to export, and its metadata."""

    name: str
    """As given by the user"""
    origin: str
    """What was read, for the card: ``model directory DIR``, ``checkpoint FILE, step 300``"""
    directory: Path
    """Of its card, licence and tokenizer"""
    network: GPT | ScalarGPT
    """On the CPU, float32 (or the source's dtype if wider), in eval mode"""
    tokenizer: Tokenizer
    """The network's tokenizer"""
    manifest: dict[str, Any]
    """As in align.json; a default where there is none"""
    dtype: torch.dtype
    """Of the weights on disk"""
    adapter: Adapter | None = None
    """What it was merged from"""

    @property
    def scalar(self) -> bool:
        """Whether it is a reward model."""
        return isinstance(self.network, ScalarGPT)


def open_source(name: str, *, best: str | None = None, mode: str = "min", base: str | None = None) -> Source:
    """Load the source of an export.

    Args:
        name: a run folder (its ``model/``, or with ``best`` the best of that and its checkpoints), a Lightning
            ``.ckpt`` in a run's folder, a LoRA adapter, a model directory, a GGUF file, or a Hub id.
        best: metric that selects among a run's checkpoints, such as ``val/loss``.
        mode: ``min``: lower is better; ``max``: higher is.
        base: the model to merge an adapter into; None: the one that it names.

    Raises:
        FileNotFoundError: it does not exist, or a file is missing.
        ValueError: it is none of these, or damaged; the message names file and field.
    """
    path = Path(name).expanduser()
    run = _is_run(path)
    if best is not None and not run:
        raise ValueError(f"{name}: --best selects among the checkpoints of a run folder, which this is not")
    if base is not None and not (path / ADAPTER).is_file():
        raise ValueError(f"{name}: --base is for adapters (with {ADAPTER}), which this is not")
    if gguf_in(path) is not None and not run:
        return _of_directory(name, locate(path))
    if is_checkpoint(path):
        return _of_checkpoint(name, path)
    if (path / ADAPTER).is_file():
        return _of_adapter(name, path, base)
    if run:
        chosen = path / "model" if best is None else best_of(path, best, mode)
        return _of_checkpoint(name, chosen) if is_checkpoint(chosen) else _of_directory(name, chosen)
    if path.is_dir() and not (path / "config.json").is_file():
        stages = [str(model.parent) for model in sorted(path.glob("*/model")) if (model / "config.json").is_file()]
        raise ValueError(
            f"{path}: nothing to export: a run folder has model/ or {CHECKPOINTS}/, a model directory config.json, an "
            f"adapter {ADAPTER}" + (f"; did you mean {' or '.join(stages)}?" if stages else "")
        )
    return _of_directory(name, locate(name))


def _is_run(path: Path) -> bool:
    """Whether this is a run folder; one without model/ and checkpoints/ was perhaps killed early and raises."""
    if (path / "config.json").is_file() or not path.is_dir():
        return False
    if any((path / part).is_dir() for part in ("model", CHECKPOINTS)):
        return True
    if (path / "config.yaml").is_file():
        raise ValueError(
            f"{path}: a run folder without a model: neither model/ nor {CHECKPOINTS}/; did the run finish?"
        )
    return False


def _of_directory(name: str, directory: Path) -> Source:
    if not (directory / "config.json").is_file():
        if found := sorted((directory.parent / CHECKPOINTS).glob("*.ckpt")):
            raise ValueError(
                f"{directory.parent}: a run folder without a model: model/config.json is missing; export a checkpoint, "
                f"such as {found[-1]}, or select one with --best"
            )
        raise ValueError(f"{directory.parent}: a run folder without a model: model/config.json is missing")
    dtype = _stored_dtype(directory)
    network = _load(directory, dtype)
    manifest = read_manifest(directory) if (directory / "align.json").is_file() else _unknown(directory)
    tokenizer = Tokenizer.load(directory)
    return Source(name, f"model directory {directory}", directory, network, tokenizer, manifest, dtype)


def _of_checkpoint(name: str, path: Path) -> Source:
    found = read_checkpoint(path)
    return Source(
        name,
        f"checkpoint {path}, step {found.manifest['step']}",
        found.directory,
        found.network.eval(),
        Tokenizer.load(found.directory),
        found.manifest,
        next(found.network.parameters()).dtype,
    )


def _of_adapter(name: str, path: Path, base: str | None) -> Source:
    network, base_directory = merged(path, base)
    ours = path if (path / "tokenizer.json").is_file() else base_directory
    manifest = read_manifest(path) if (path / "align.json").is_file() else _unknown(path)
    if manifest["parent"] is None:
        manifest = {**manifest, "parent": {"directory": str(base_directory), "weights": None}}
    return Source(
        name,
        f"adapter {path} merged into {base_directory}",
        ours,
        network.eval(),
        Tokenizer.load(ours),
        manifest,
        _stored_dtype(base_directory),
        Adapter(path, base_directory),
    )


def _load(directory: Path, dtype: torch.dtype) -> GPT | ScalarGPT:
    wide = torch.promote_types(dtype, torch.float32)
    load = load_scalar if is_scalar(read_fields(directory)) else load_network
    return load(directory, dtype=wide).eval()


def _stored_dtype(directory: Path) -> torch.dtype:
    """The widest dtype of the stored weights."""
    codes = {tensor.dtype for tensor in stored_weights(directory).values()}
    return next((kind for code, kind in _TYPES.items() if code in codes), torch.float32)


def _unknown(directory: Path) -> dict[str, Any]:
    """A manifest for what no stage of align wrote."""
    return {
        "stage": "adapter" if (directory / ADAPTER).is_file() else "foreign",
        "recipe": None,
        "parent": None,
        "data": {},
        "libraries": {},
        "metrics": {},
    }
