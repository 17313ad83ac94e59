"""Adapter directories in peft's format: adapter_config.json, adapter_model.safetensors, and our manifest, align.json.

``PeftModel.from_pretrained(base, directory)`` computes the same logits as our network, and adapters that peft wrote can
be trained further here. ``align.export.peft_adapter`` merges those that can't be.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from align.adapters.lora import LAYERS, NAME, LoraConfig, adapter_parameters, adapters, add_adapter, share_base
from align.adapters.merging import lora_layers
from align.adapters.token_rows import row_parameters, trained_rows
from align.io.directory import load_network, load_scalar
from align.io.families import family_of
from align.io.location import locate
from align.io.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, is_adapter, read_manifest, weights_fingerprint
from align.io.weight_files import StoredTensor, read_header, read_tensor, write_tensors
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT

PREFIX = "base_model.model."

HEAD = "score.weight"
"""A reward model's head, which is stored with its adapter"""

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

_UNEVEN = ("rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules", "layer_replication")

Network = TypeVar("Network", GPT, ScalarGPT)

__all__ = [
    "Base",
    "StoredAdapter",
    "base_of",
    "checked_base",
    "is_adapter",
    "load_adapter",
    "read_adapter",
    "read_lora",
    "save_adapter",
    "why_not_written",
]


@dataclass(frozen=True)
class Base:
    """Base weights in memory that several networks share."""

    network: GPT | ScalarGPT
    """A network with these weights, with or without adapters"""
    weights: str
    """``weights_fingerprint`` of the directory they were loaded from"""


def why_not_written(config: GPTConfig) -> str | None:
    """Why an adapter over this network can't be written in peft's format; None if it can."""
    (first,) = family_of(config).layout(["model.layers.0.self_attn.q_proj.weight"], config)
    if not first.transposed and len(first.parts) == 1:
        return None
    return f"files of {family_of(config).architecture} have queries, keys and values in one matrix, {first.name}"


def save_adapter(network: GPT | ScalarGPT, directory: str | Path, *, base: str | None = None, name: str = NAME) -> None:
    """Write an adapter, and the head of a ScalarGPT, which was trained with it.

    Args:
        network: with the adapter.
        directory: created if needed.
        base: directory or Hub id of the base, for ``base_model_name_or_path``; a directory is written as a full path.
        name: of the adapter.

    Raises:
        ValueError: there is no such adapter, or the network's family stores fused matrices.
        OSError: the disk is full.
    """
    import peft

    if name not in adapters(network):
        raise ValueError(f"the network has no adapter named {name!r}; it has {', '.join(adapters(network)) or 'none'}")
    if reason := why_not_written(network.config):
        raise ValueError(f"{reason}: peft could not read this adapter; write the merged model instead")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = adapters(network)[name]
    tensors: dict[str, torch.Tensor] = {**adapter_parameters(network, name)}
    scalar = isinstance(network, ScalarGPT)
    rows: dict[str, list[int]] | None = None
    if isinstance(network, ScalarGPT):
        tensors[HEAD] = network.score.weight
    elif trained_rows(network):
        tensors |= row_parameters(network)
        heads = ["embed_tokens"] if network.lm_head is None else ["embed_tokens", "lm_head"]
        rows = dict.fromkeys(heads, trained_rows(network))
    if base is not None and Path(base).is_dir():
        base = str(Path(base).resolve())
    present = {module.rpartition(".")[2] for module, layer in lora_layers(network) if name in layer.lora_A}
    peft.LoraConfig(
        r=config.rank,
        lora_alpha=int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=[layer for layer in LAYERS if layer in present],
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
    config, stored = read_lora(directory)
    if kind is GPT and HEAD in stored:
        raise ValueError(f"{directory}: a reward model's adapter, which scores text; a language model's is needed here")
    base_directory = base_of(directory, base)
    weights = checked_base(directory, base_directory)
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
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: is a JSON {type(config).__name__}, not an object")
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


def read_lora(directory: Path) -> tuple[LoraConfig, dict[str, StoredTensor]]:
    """Read an adapter that can be trained further: one rank everywhere, and at most a scalar head besides.

    Returns:
        Its settings, and its tensors by their names in our networks.

    Raises:
        FileNotFoundError: the directory has no adapter, or no weights.
        ValueError: it is damaged, or an adapter of another kind.
    """
    adapter = read_adapter(directory)
    for field in _UNEVEN:
        if adapter.config.get(field):
            raise adapter.unsupported(field, "adapters without it (they can still be merged by align export)")
    if adapter.config.get("bias", "none") != "none":
        raise adapter.unsupported("bias", "'none'")
    if set(adapter.config.get("modules_to_save") or ()) - {"score", "classifier"}:
        raise adapter.unsupported("modules_to_save", "a scalar head alone")
    targets = tuple(layer for layer in LAYERS if any(f".{layer}.lora_A." in name for name in adapter.tensors))
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
    return config, adapter.tensors


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
    name = str(base or json.loads(path.read_bytes()).get("base_model_name_or_path") or "")
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
def _fill(network: GPT | ScalarGPT, stored: dict[str, StoredTensor], path: Path, base: str) -> None:
    expected: dict[str, torch.Tensor] = {**adapter_parameters(network)}
    if isinstance(network, ScalarGPT) and HEAD in stored:
        expected[HEAD] = network.score.weight
    for name, parameter in expected.items():
        if name not in stored:
            raise ValueError(f"{path}: {PREFIX}{name} is missing, which {base} needs: another base?")
        if stored[name].shape != tuple(parameter.shape):
            raise ValueError(
                f"{path}: {PREFIX}{name} is {list(stored[name].shape)}; over {base} it is {list(parameter.shape)}: "
                "another base?"
            )
        parameter.copy_(read_tensor(stored[name]))
    if unexpected := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"{path}: {PREFIX}{unexpected[0]} is not part of an adapter over {base}")
