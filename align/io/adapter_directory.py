"""Adapter directories in peft's format: adapter_config.json, adapter_model.safetensors, and our manifest, align.json.

``PeftModel.from_pretrained(base, directory)`` computes the same logits as our network, and adapters that peft wrote can
be trained further here. ``align.export.peft_adapter`` merges those that can't be.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from align.adapters.lora import LAYERS, NAME, LoraConfig, adapter_parameters, adapters, add_adapter, share_base
from align.adapters.token_rows import row_parameters, trained_rows
from align.io.adapter_tensors import NORMS, A, B, is_block_diagonal, matrices, module_of, split_adapter, to_peft
from align.io.directory import load_network, load_scalar
from align.io.families import family_of
from align.io.families.family import FileTensor
from align.io.json_files import read_object
from align.io.location import as_directory, locate, read_config
from align.io.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, is_adapter, read_manifest, weights_fingerprint
from align.io.state_files import shape_in_file
from align.io.weight_files import StoredTensor, read_header, read_tensor, write_tensors
from align.model.gpt import GPT, ScalarGPT
from align.model.meta import built_without_memory

PREFIX = "base_model.model."

HEAD = "score.weight"
"""A reward model's head, which is stored with its adapter"""

EMBEDDING = "model.embed_tokens.weight"

_READ = {
    *(
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "modules_to_save",
    ),
    *("peft_type", "r", "rank_pattern", "use_dora", "use_rslora"),
}
"""Fields of adapter_config.json that decide what an adapter computes, all supported here"""

_INERT = {
    *("auto_mapping", "corda_config", "eva_config", "exclude_modules", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
}
"""Fields that change nothing once the tensors exist"""

_UNCHANGED_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""``init_lora_weights`` under which training starts from the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ,
LoRA-GA) move a part of the base's weights into the adapter, which then fits a base that no file contains."""

_UNEVEN = ("layers_to_transform", "exclude_modules", "layer_replication")

Network = TypeVar("Network", GPT, ScalarGPT)

__all__ = [
    "Base",
    "StoredAdapter",
    "base_of",
    "base_source",
    "checked_base",
    "is_adapter",
    "load_adapter",
    "read_adapter",
    "read_lora",
    "save_adapter",
]


@dataclass(frozen=True)
class Base:
    """Base weights in memory that several networks share."""

    network: GPT | ScalarGPT
    """A network with these weights, with or without adapters"""
    weights: str
    """``weights_fingerprint`` of the directory they were loaded from"""


def save_adapter(network: GPT | ScalarGPT, directory: str | Path, *, base: str | None = None, name: str = NAME) -> None:
    """Write an adapter, and the head of a ScalarGPT, which was trained with it.

    Args:
        network: with the adapter.
        directory: created if needed.
        base: directory or Hub id of the base, for ``base_model_name_or_path``; a directory is written as a full path.
        name: of the adapter.

    Raises:
        ValueError: there is no such adapter.
        OSError: the disk is full.
    """
    import peft

    if name not in adapters(network):
        raise ValueError(f"the network has no adapter named {name!r}; it has {', '.join(adapters(network)) or 'none'}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = adapters(network)[name]
    theirs = to_peft(network, name)
    tensors = theirs.tensors
    scalar = isinstance(network, ScalarGPT)
    rows: dict[str, list[int]] | None = None
    if isinstance(network, ScalarGPT):
        tensors[HEAD] = network.score.weight
    elif trained_rows(network):
        (embedding,) = family_of(network.config).layout([EMBEDDING], network.config)
        ours, module = module_of(EMBEDDING), module_of(embedding.name)
        tensors |= {part.replace(ours, module): tensor for part, tensor in row_parameters(network).items()}
        modules = [module] if network.lm_head is None else [module, "lm_head"]
        rows = {module.rpartition(".")[2]: trained_rows(network) for module in modules}
    if base is not None and Path(base).is_dir():
        base = str(Path(base).resolve())
    peft.LoraConfig(
        r=config.rank,
        lora_alpha=int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=theirs.targets,
        rank_pattern={target: count * config.rank for target, count in theirs.parts.items()},
        # The same scale, alpha / rank or alpha / sqrt(rank).
        alpha_pattern={
            target: config.alpha * (math.sqrt(count) if config.rslora else count)
            for target, count in theirs.parts.items()
        },
        fan_in_fan_out=theirs.transposed,
        use_rslora=config.rslora,
        use_dora=config.dora,
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
        modules_to_save=["score"] if scalar else None,
        trainable_token_indices=rows,
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(str(directory))
    write_tensors(directory / ADAPTER_WEIGHTS, {PREFIX + name: tensor for name, tensor in tensors.items()})


def load_adapter(
    source: str | Path,
    kind: type[Network],
    *,
    onto: Base | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    head_seed: int = 0,
    trained: bool = False,
) -> Network:
    """Load an adapter and its base, with the adapter active and not merged; on the CPU, in training mode.

    Args:
        source: a directory that we or peft wrote: LoRA of one rank everywhere, with or without a scalar head.
        kind: GPT, or ScalarGPT, which gets a fresh head if the directory has none.
        onto: weights in memory; if they are the adapter's base, the network shares them and only the adapter takes
            memory.
        base: directory or Hub id of the base; None: the one that the adapter's configuration names.
        dtype: of the base weights, if they are loaded.
        head_seed: seeds a fresh head.
        trained: whether adapter and head are trainable.

    Raises:
        FileNotFoundError: the directory, its weights or its base are missing.
        ValueError: it is damaged, of another kind, or belongs to another base; the message names file and field.
    """
    directory = Path(source).expanduser()
    adapter = read_adapter(directory)
    if kind is GPT and HEAD in adapter.tensors:
        raise ValueError(f"{directory}: a reward model's adapter, which scores text; a language model's is needed here")
    base_directory = base_of(directory, base)
    weights = checked_base(directory, base_directory)
    config, stored = read_lora(adapter, base_directory)
    network: Any
    if onto is not None and onto.weights == weights:
        network = share_base(onto.network, kind)
    elif kind is ScalarGPT:
        network = load_scalar(base_directory, dtype=dtype, head_seed=head_seed)
    else:
        network = load_network(base_directory, dtype=dtype)
    if isinstance(network, ScalarGPT):
        network.score.float()
    add_adapter(network, config, trained=trained)
    _fill(network, stored, directory / ADAPTER_WEIGHTS, str(base_directory))
    result: Network = network
    return result


class StoredAdapter(NamedTuple):
    """A LoRA adapter on disk.

    Attributes:
        directory: of the adapter.
        config: the fields of adapter_config.json.
        tensors: by name, without peft's prefix.
    """

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def unsupported(self, field: str, supported: str) -> ValueError:
        """The error for a field of the configuration that is not supported."""
        return ValueError(
            f"{self.directory / ADAPTER_CONFIG}: {field} is {self.config.get(field)!r}; supported: {supported}"
        )


def read_adapter(directory: Path) -> StoredAdapter:
    """Read a LoRA adapter's configuration and the names of its tensors.

    Raises:
        FileNotFoundError: the directory has no adapter, or no weights.
        ValueError: it is damaged, or not LoRA.
    """
    path, weights = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: not an adapter directory, it has no {ADAPTER_CONFIG}")
    config = read_object(path)
    adapter = StoredAdapter(directory, config, {})
    if config.get("peft_type") != "LORA":
        raise adapter.unsupported("peft_type", "'LORA'")
    for field in sorted(config.keys() - _READ - _INERT):
        if config[field]:  # another kind of adapter, or a field of a later peft
            raise adapter.unsupported(field, "LoRA without it")
    if config.get("init_lora_weights", True) not in _UNCHANGED_BASE:
        raise adapter.unsupported(
            "init_lora_weights",
            "true, false, gaussian, eva and orthogonal. Training changed the base's weights first: save the adapter "
            "for the original base, by path_initial_model_for_weight_conversion of peft's save_pretrained",
        )
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; adapter weights are read from safetensors only")
    stored = read_header(weights).items()
    return adapter._replace(tensors={name.removeprefix(PREFIX): tensor for name, tensor in stored})


def read_lora(adapter: StoredAdapter, base: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Read an adapter that can be trained further: one rank everywhere, and at most a scalar head besides.

    Args:
        adapter: on disk.
        base: directory of its base.

    Returns:
        Its settings, and its tensors by their names in our networks.

    Raises:
        ValueError: it is damaged, an adapter of another kind, or of another base.
    """
    directory = adapter.directory
    for field in _UNEVEN:
        if adapter.config.get(field):
            raise adapter.unsupported(field, "adapters without it (they can still be merged by align export)")
    if adapter.config.get("bias", "none") != "none":
        raise adapter.unsupported("bias", "'none'")
    if set(adapter.config.get("modules_to_save") or ()) - {"score", "classifier"}:
        raise adapter.unsupported("modules_to_save", "a scalar head alone")
    tensors = _ours(adapter, base)
    targets = tuple(layer for layer in LAYERS if any(f".{layer}.lora_A." in name for name in tensors))
    if not targets:
        first = ", ".join(sorted(adapter.tensors)[:1]) or "nothing"
        raise ValueError(f"{directory / ADAPTER_WEIGHTS}: has {first}, but no lora_A of any of {', '.join(LAYERS)}")
    try:
        config = LoraConfig(
            rank=adapter.config["r"],
            alpha=float(adapter.config["lora_alpha"]),
            dropout=float(adapter.config.get("lora_dropout", 0.0)),
            targets=targets,
            rslora=bool(adapter.config.get("use_rslora", False)),
            dora=bool(adapter.config.get("use_dora", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{directory / ADAPTER_CONFIG}: r, lora_alpha or lora_dropout: {error}") from None
    return config, tensors


def _ours(adapter: StoredAdapter, base: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter by their names in our networks; those of no block under their own."""
    with built_without_memory():
        network = GPT(read_config(base))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    rest = dict(adapter.tensors)
    for module, matrix in matrices(network.config).items():
        names = [name for name in rest if name.startswith(f"{module}.")]
        stored = {name.removeprefix(f"{module}."): read_tensor(rest.pop(name)) for name in names}
        if not stored:
            continue
        if len(matrix.parts) > 1:
            _check_fused(adapter, module, stored, shape_in_file(matrix._replace(transposed=False), shapes), base)
        rank = _common_rank(adapter, module, matrix, stored)
        found |= split_adapter(matrix, stored, rank)
    return found | {name: read_tensor(tensor) for name, tensor in rest.items()}


def _common_rank(adapter: StoredAdapter, module: str, matrix: FileTensor, stored: dict[str, torch.Tensor]) -> int:
    """The rank of the adapter on each part of a matrix, which is that of every matrix, as is its scale."""
    own, common = scale_of(module, adapter), scale_of("", adapter)
    parts = len(matrix.parts) if len(matrix.parts) > 1 and is_block_diagonal(matrix, stored, common.rank) else 1
    supported = "one rank and scale everywhere (other adapters can still be merged by align export)"
    if own.rank != parts * common.rank:
        raise adapter.unsupported("rank_pattern", supported)
    if not math.isclose(own.scale, common.scale):
        raise adapter.unsupported("alpha_pattern", supported)
    return common.rank


def _check_fused(
    adapter: StoredAdapter, module: str, stored: dict[str, torch.Tensor], shape: tuple[int, ...], base: Path
) -> None:
    """Check an adapter on a matrix of several parts, ``[out, in]``, before it is split."""
    path, (rows, width) = adapter.directory / ADAPTER_WEIGHTS, shape
    for kind in (A, B):
        if kind not in stored:
            raise ValueError(f"{path}: {PREFIX}{module}.{kind} is missing")
    rank = len(stored[A])
    for kind, right in ((A, [rank, width]), (B, [rows, rank]), (NORMS, [rows])):
        if kind in stored and list(stored[kind].shape) != right:
            found = list(stored[kind].shape)
            raise ValueError(f"{path}: {PREFIX}{module}.{kind} is {found}; over {base} it is {right}: another base?")


class Scale(NamedTuple):
    """How an adapter changes a matrix: by ``scale`` B A, of so much ``rank``."""

    rank: int
    scale: float


def scale_of(module: str, adapter: StoredAdapter) -> Scale:
    """Rank and scale of an adapter on a module, which may have its own; those of most modules for "".

    Raises:
        ValueError: the rank or lora_alpha is not a number.
    """
    rank = _by_pattern(module, adapter.config.get("rank_pattern")) or adapter.config.get("r")
    alpha = _by_pattern(module, adapter.config.get("alpha_pattern")) or adapter.config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1:
        raise adapter.unsupported("r", "an integer, at least 1")
    if not isinstance(alpha, int | float):
        raise adapter.unsupported("lora_alpha", "a number")
    return Scale(rank, alpha / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank))


def _by_pattern(module: str, patterns: dict[str, Any] | None) -> Any:
    """A module's own value, if one is set; by peft's rule a pattern matches the end of the name."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), None)


def base_of(directory: Path, base: str | Path | None = None) -> Path:
    """Find the directory of an adapter's base.

    Args:
        directory: of the adapter.
        base: directory or Hub id; None: the one in adapter_config.json, where a relative path starts at the working
            directory or at the adapter's.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: adapter_config.json names none.
    """
    path = directory / ADAPTER_CONFIG
    name = str(base or read_object(path).get("base_model_name_or_path") or "")
    if not name:
        raise ValueError(f"{path}: base_model_name_or_path is {name!r}; it must name the base, or pass --base")
    for candidate in (Path(name), directory / name):
        if (candidate / "config.json").is_file():
            return candidate
    try:
        return locate(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: base_model_name_or_path: {error}") from None


def checked_base(directory: Path, base: Path) -> str:
    """The fingerprint of a base's weights, which must be those that an adapter was trained on.

    Args:
        directory: of the adapter; one that peft wrote records no weights, and fits any base.
        base: directory of the base.

    Raises:
        ValueError: the base has other weights; the message names both fingerprints.
    """
    weights, recorded = weights_fingerprint(base), _recorded_base(directory)
    if recorded is not None and recorded != weights:
        raise ValueError(
            f"{directory}: the adapter belongs to base weights {recorded[:12]}, but {base} has {weights[:12]}: it was "
            "trained again, or is another model"
        )
    return weights


def _recorded_base(directory: Path) -> str | None:
    """Fingerprint of the base weights that the adapter was trained on; None if peft wrote the adapter."""
    if not (directory / MANIFEST).is_file():
        return None
    parent = read_manifest(directory)["parent"]
    return None if parent is None else parent["weights"]


@torch.no_grad()
def _fill(network: GPT | ScalarGPT, stored: dict[str, torch.Tensor], path: Path, base: str) -> None:
    expected: dict[str, torch.Tensor] = {**adapter_parameters(network)}
    if isinstance(network, ScalarGPT) and HEAD in stored:
        expected[HEAD] = network.score.weight
    for name, parameter in expected.items():
        if name not in stored:
            raise ValueError(f"{path}: {PREFIX}{name} is missing, which {base} needs: another base?")
        if stored[name].shape != parameter.shape:
            raise ValueError(
                f"{path}: {PREFIX}{name} is {list(stored[name].shape)}; over {base} it is {list(parameter.shape)}: "
                "another base?"
            )
        parameter.copy_(stored[name])
    if unexpected := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"{path}: {PREFIX}{unexpected[0]} is not part of an adapter over {base}")


def base_source(source: str) -> str:
    """Directory or Hub id of the whole weights of a model, which for an adapter are its base's.

    Raises:
        FileNotFoundError: an adapter's base does not exist, or a GGUF file can't be found.
        ValueError: an adapter names no base, or a GGUF file can't be converted.
    """
    return str(base_of(Path(source))) if is_adapter(source) else as_directory(source)
