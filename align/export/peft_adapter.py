"""LoRA adapters as peft writes them, merged into their base.

W + scale * B A, with scale = alpha / r, or alpha / sqrt(r) for rank-stabilised ones (Hu et al. 2021, equation 3;
Kalajdzievski 2023); DoRA then gives each row the length it learned (Liu et al. 2024, equation 5). peft itself
wants transformers, which an export does not; what stages train is in ``align.adapters.lora``.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from align.io.directory import is_scalar, load_network, load_scalar
from align.io.families import family_of
from align.io.location import locate, read_fields
from align.io.manifest import ADAPTER_CONFIG as ADAPTER
from align.io.manifest import ADAPTER_WEIGHTS as WEIGHTS
from align.io.weight_files import StoredTensor, read_header, read_tensor
from align.model.gpt import GPT, ScalarGPT

_PREFIX = "base_model.model."

_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")

_LENGTHS = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default(?:\.weight)?)?")


def merged(adapter: Path, base: str | None) -> tuple[GPT | ScalarGPT, Path]:
    """The base with an adapter's weights added.

    Args:
        adapter: a directory that peft wrote.
        base: the model it belongs to; None: the one that its configuration names.

    Returns:
        The network, float32, and the base's directory.

    Raises:
        FileNotFoundError: the adapter's weights or its base are missing.
        ValueError: it is another kind of adapter than LoRA, or does not fit its base.
    """
    config = _config(adapter / ADAPTER)
    directory = _base(adapter, base or config.get("base_model_name_or_path"))
    stored = _stored(adapter / WEIGHTS)
    scalar = is_scalar(read_fields(directory)) or "score.weight" in stored
    network = load_scalar(directory) if scalar else load_network(directory)
    state = network.state_dict()
    parts_of = {tensor.name: tensor for tensor in family_of(network.config).layout(state)}
    with torch.no_grad():
        for name, delta in _deltas(stored, config, adapter / WEIGHTS):
            target = f"{name}.weight"
            if target not in parts_of:
                raise ValueError(f"{adapter / WEIGHTS}: {name} is no part of {directory}")
            # Fused matrices of a file are ours joined along their outputs.
            for ours, part in zip(parts_of[target].parts, delta.chunk(len(parts_of[target].parts)), strict=True):
                if state[ours].shape != part.shape:
                    raise ValueError(
                        f"{adapter / WEIGHTS}: {name} changes {list(part.shape)}, {directory} has "
                        f"{list(state[ours].shape)}: another base?"
                    )
                state[ours] += part
        for name, tensor in stored.items():
            if match := _LENGTHS.fullmatch(name):
                _lengthen([state[ours] for ours in parts_of[f"{match[1]}.weight"].parts], tensor)
            elif not _LORA.fullmatch(name):
                _replace(state, parts_of, name, tensor)
    return network, directory


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {config.get('peft_type')!r}; supported: 'LORA'")
    for field in ("use_qalora", "alora_invocation_tokens", "trainable_token_indices", "target_parameters"):
        if config.get(field):
            raise ValueError(f"{path}: {field} is {config[field]!r}; supported: LoRA without it")
    return dict(config)


def _base(adapter: Path, name: str | None) -> Path:
    if not name:
        raise ValueError(f"{adapter / ADAPTER}: base_model_name_or_path is {name!r}; name the base with --base")
    # A relative path is meant from where the training ran, or from beside the adapter.
    for candidate in (Path(name), adapter / name):
        if (candidate / "config.json").is_file():
            return candidate
    try:
        return locate(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{adapter / ADAPTER}: base_model_name_or_path: {error}; name the base with --base"
        ) from None


def _stored(path: Path) -> dict[str, StoredTensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an adapter's weights are read from safetensors only")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in read_header(path).items()}


def _deltas(stored: dict[str, StoredTensor], config: dict[str, Any], path: Path) -> list[tuple[str, torch.Tensor]]:
    """What is added to each matrix, ``[out, in]`` float32."""
    found = []
    for name, tensor in stored.items():
        match = _LORA.fullmatch(name)
        if not match or match[2] != "A":
            continue
        pair = name.replace(".lora_A", ".lora_B")
        if pair not in stored:
            raise ValueError(f"{path}: {pair} is missing beside {name}")
        a, b = read_tensor(tensor).float(), read_tensor(stored[pair]).float()
        found.append((match[1], (b @ a) * _scale(match[1], config, path)))
    return found


def _scale(module: str, config: dict[str, Any], path: Path) -> float:
    rank = _by_pattern(module, config.get("rank_pattern")) or config.get("r")
    alpha = _by_pattern(module, config.get("alpha_pattern")) or config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise ValueError(f"{path.with_name(ADAPTER)}: r is {rank!r} and lora_alpha {alpha!r}; they must be numbers")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(module: str, patterns: dict[str, Any] | None) -> Any:
    """A module's own value where one is set, by peft's rule: the pattern is the end of the name."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), None)


def _lengthen(matrices: list[torch.Tensor], stored: StoredTensor) -> None:
    """Give the rows of matrices ``[out, in]``, one under the other, the lengths that DoRA learned."""
    lengths = read_tensor(stored).float().flatten()
    rows = sum(len(matrix) for matrix in matrices)
    if len(lengths) != rows:
        raise ValueError(f"{stored.path}: {stored.name} has {len(lengths)} numbers; the base has {rows} rows there")
    for matrix, part in zip(matrices, lengths.split([len(matrix) for matrix in matrices]), strict=True):
        matrix *= (part / torch.linalg.vector_norm(matrix, dim=1))[:, None]


def _replace(state: dict[str, torch.Tensor], parts_of: dict[str, Any], name: str, tensor: StoredTensor) -> None:
    """Put a tensor that was trained whole (modules_to_save, biases) in its place."""
    plain = name.replace(".base_layer.", ".")
    if plain not in parts_of:
        raise ValueError(f"{tensor.path}: {tensor.name} is neither a LoRA matrix nor a tensor of the base")
    target = parts_of[plain]
    values = read_tensor(tensor).float()
    values = values.T if target.transposed else values
    for ours, part in zip(target.parts, values.chunk(len(target.parts)), strict=True):
        if state[ours].shape != part.shape:
            raise ValueError(
                f"{tensor.path}: {tensor.name} is {list(part.shape)}; the base has {list(state[ours].shape)}"
            )
        state[ours].copy_(part)
