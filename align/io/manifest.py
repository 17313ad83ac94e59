"""The manifest of a model directory, align.json: which stage made these weights, from which parent and data."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from align.io.json_files import read_object
from align.io.weight_files import read_header, stored_weights, tensor_bytes

MANIFEST = "align.json"

ADAPTER_CONFIG = "adapter_config.json"

ADAPTER_WEIGHTS = "adapter_model.safetensors"

SCHEMA_VERSION = 1

_LIBRARIES = ("lightning-align", "torch", "lightning")

_ADAPTER_FIELDS = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "stage": ((str,), "a string"),
    "recipe": ((str, dict, type(None)), "a string, a mapping or null"),
    "parent": ((dict, type(None)), 'null or {"directory": ..., "weights": ...}'),
    "tokenizer": ((str, type(None)), "the tokenizer's fingerprint or null"),
    "data": ((dict,), "a mapping of file to fingerprint"),
    "libraries": ((dict,), "a mapping of library to version"),
}


def write_manifest(directory: str | Path, manifest: Mapping[str, Any]) -> None:
    """Write align.json.

    Args:
        directory: the model directory.
        manifest: ``stage`` (name), ``recipe`` (path or settings), ``parent`` (``directory`` and ``weights``, its
            ``weights_fingerprint``, or None if unknown), ``tokenizer`` (fingerprint), ``data`` (file to fingerprint),
            ``libraries``, and any further fields with JSON values, such as ``reward_mean``. Only ``stage`` is required;
            ``libraries`` defaults to the versions in use, and ``schema_version`` is filled in.

    Raises:
        ValueError: a field is missing, has the wrong type, or is not a JSON value (NaN is not one).
    """
    path = Path(directory, MANIFEST)
    defaults = {"recipe": None, "parent": None, "tokenizer": None, "data": {}, "libraries": running_versions()}
    whole = {"schema_version": SCHEMA_VERSION, **defaults, **manifest}
    _check(whole, path)
    try:
        text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a field is not a JSON value: {error}") from None
    path.write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Read the manifest of a model directory that a stage wrote.

    Raises:
        FileNotFoundError: there is none, so no stage of align wrote the directory.
        ValueError: it is not JSON, a field is missing or has the wrong type, or a newer version wrote it.
    """
    path = Path(directory, MANIFEST)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; only directories written by a stage of align have one")
    manifest = read_object(path)
    _check(manifest, path)
    return manifest


def stage_of(directory: str | Path) -> str | None:
    """The stage that wrote a model directory; None if no stage of align wrote it.

    Raises:
        ValueError: as for ``read_manifest``.
    """
    return read_manifest(directory)["stage"] if Path(directory, MANIFEST).is_file() else None


def weights_fingerprint(directory: str | Path) -> str:
    """Identify the weights of a model directory, whatever their sharding, or of an adapter directory.

    Returns:
        SHA-256 in hexadecimal over name, dtype, shape and bytes of each tensor, sorted by name. An adapter's also
        covers the settings that scale it, but not its base.

    Raises:
        FileNotFoundError: a weight file is missing.
        ValueError: a weight file is damaged.
    """
    directory, digest = Path(directory), hashlib.sha256()
    tensors = read_header(directory / ADAPTER_WEIGHTS) if is_adapter(directory) else stored_weights(directory)
    if is_adapter(directory):
        config = read_object(directory / ADAPTER_CONFIG)
        digest.update(json.dumps([config.get(field) for field in _ADAPTER_FIELDS], sort_keys=True).encode())
    for name, stored in sorted(tensors.items()):
        digest.update(json.dumps([name, stored.dtype, stored.shape]).encode())
        digest.update(tensor_bytes(stored))
    return digest.hexdigest()


def scores_fingerprint(directory: str | Path) -> str:
    """Identify what the scores of a reward model depend on: its weights, and the normalisation in its manifest.

    Returns:
        ``weights_fingerprint``, followed by the normalisation where the manifest has one.

    Raises:
        FileNotFoundError, ValueError: as for ``weights_fingerprint`` and ``read_manifest``.
    """
    weights = weights_fingerprint(directory)
    normalisation = normalisation_of(directory)
    return f"{weights} {json.dumps(normalisation)}" if normalisation else weights


def normalisation_of(directory: str | Path) -> dict[str, Any]:
    """``reward_mean`` and ``reward_std`` of a model directory's manifest; empty where there are none.

    Raises:
        ValueError: as for ``read_manifest``.
    """
    manifest = read_manifest(directory) if Path(directory, MANIFEST).is_file() else {}
    return {name: manifest[name] for name in ("reward_mean", "reward_std") if name in manifest}


def is_adapter(source: str | Path) -> bool:
    """Whether this is an adapter directory in peft's format rather than a model directory."""
    path = Path(source).expanduser()
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def _check(manifest: Mapping[str, Any], path: Path) -> None:
    schema = manifest.get("schema_version")
    if not isinstance(schema, int) or schema < 1:
        raise ValueError(f"{path}: schema_version is {schema!r}; it must be an integer, at least 1")
    if schema > SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version is {schema}; this version of align reads up to {SCHEMA_VERSION}")
    for name, (kinds, expected) in _TYPES.items():
        if name not in manifest:
            raise ValueError(f"{path}: {name} is missing")
        if not isinstance(manifest[name], kinds):
            raise ValueError(f"{path}: {name} is {manifest[name]!r}; it must be {expected}")
    parent = manifest["parent"]
    if parent is not None and not (
        {"directory", "weights"} <= parent.keys()
        and isinstance(parent["directory"], str)
        and isinstance(parent["weights"], (str, type(None)))
    ):
        raise ValueError(f"{path}: parent is {parent!r}; it must be {_TYPES['parent'][1]}")
    for name in ("data", "libraries"):
        for key, value in manifest[name].items():
            if not isinstance(value, str):
                raise ValueError(f"{path}: {name}.{key} is {value!r}; it must be a string")


def running_versions() -> dict[str, str]:
    """Versions of Python, align and the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions
