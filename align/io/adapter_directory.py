"""Adapter directories in peft's format: adapter_config.json, adapter_model.safetensors, and what ours add (align.json).

``PeftModel.from_pretrained(base, directory)`` gives the logits of our network; what peft wrote can be trained on here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from align.adapters.lora import LAYERS, NAME, LoraConfig, adapter_parameters, adapters, add_adapter, share_base
from align.adapters.merging import lora_layers
from align.io.directory import load_network, load_scalar
from align.io.families import family_of
from align.io.location import locate
from align.io.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, is_adapter, read_manifest, weights_fingerprint
from align.io.weight_files import PlannedTensor, StoredTensor, read_header, read_tensor, write_tensors
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT

PREFIX = "base_model.model."

HEAD = "score.weight"
"""A reward model's head, which an adapter brings with it"""

_VARIANTS = ("use_qalora", "alora_invocation_tokens", "trainable_token_indices", "target_parameters", "lora_bias")

_UNEVEN = ("rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules", "layer_replication")

Network = TypeVar("Network", GPT, ScalarGPT)

__all__ = ["Base", "base_of", "is_adapter", "load_adapter", "read_lora", "save_adapter", "why_not_written"]


@dataclass(frozen=True)
class Base:
    """Base weights in memory that further networks may stand on."""

    network: GPT | ScalarGPT
    """Has them, with or without adapters"""
    weights: str
    """``weights_fingerprint`` of the directory that they were read from"""


def why_not_written(config: GPTConfig) -> str | None:
    """Why an adapter of a network of this shape can't be written in peft's format; None where it can."""
    (first,) = family_of(config).layout(["model.layers.0.self_attn.q_proj.weight"])
    if not first.transposed and len(first.parts) == 1:
        return None
    return f"the files of {family_of(config).architecture} hold queries, keys and values in one matrix, {first.name}"


def save_adapter(network: GPT | ScalarGPT, directory: str | Path, *, base: str | None = None, name: str = NAME) -> None:
    """Write an adapter, and a ScalarGPT's head, which learned with it.

    Args:
        network: has the adapter.
        directory: made where it does not exist.
        base: directory or Hub id of the base, for ``base_model_name_or_path``; a directory is written in full.
        name: of the adapter.

    Raises:
        ValueError: there is no such adapter, or the network's family keeps its matrices in another form than ours.
        OSError: the disk is full.
    """
    import peft

    if name not in adapters(network):
        raise ValueError(f"the network has no adapter named {name!r}; it has {', '.join(adapters(network)) or 'none'}")
    if reason := why_not_written(network.config):
        raise ValueError(f"{reason}: this adapter can't be written as peft reads it; write the merged model instead")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = adapters(network)[name]
    tensors: dict[str, torch.Tensor] = {**adapter_parameters(network, name)}
    scalar = isinstance(network, ScalarGPT)
    if isinstance(network, ScalarGPT):
        tensors[HEAD] = network.score.weight
    if base is not None and Path(base).is_dir():
        base = str(Path(base).resolve())
    present = {place.rpartition(".")[2] for place, layer in lora_layers(network) if name in layer.lora_A}
    peft.LoraConfig(
        r=config.rank,
        lora_alpha=int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=[layer for layer in LAYERS if layer in present],
        use_rslora=config.rslora,
        use_dora=config.dora,
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
        modules_to_save=["score"] if scalar else None,
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(str(directory))
    plan = [PlannedTensor(PREFIX + place, tuple(tensor.shape), tensor.dtype) for place, tensor in tensors.items()]
    write_tensors(directory / ADAPTER_WEIGHTS, plan, lambda place: tensors[place.removeprefix(PREFIX)])


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
    """The base of an adapter directory with its adapter on, not merged; on the CPU, in training mode.

    Args:
        source: a directory that we or peft wrote: LoRA of one rank everywhere, with or without a head of one score.
        kind: GPT, or ScalarGPT, which gets a fresh head where the directory has none.
        onto: weights in memory; if they are the adapter's base the network stands on them and costs no memory but the
            adapter's.
        base: directory or Hub id of the base; None: the one that the adapter's configuration names.
        dtype: of the base weights, if they are read.
        head_seed: decides a fresh head.
        trained: whether adapter and head are to learn on.

    Raises:
        FileNotFoundError: the directory, its weights or its base are missing.
        ValueError: it is damaged, of another kind, or belongs to another base; the line names file and field.
    """
    directory = Path(source).expanduser()
    config, stored = read_lora(directory)
    if kind is GPT and HEAD in stored:
        raise ValueError(
            f"{directory}: a reward model's adapter, which gives a score and no text; a language model's is needed here"
        )
    place = base_of(directory, base)
    weights = weights_fingerprint(place)
    recorded = _recorded_base(directory)
    if recorded is not None and recorded != weights:
        raise ValueError(
            f"{directory}: the adapter belongs to base weights {recorded[:12]}, but {place} holds {weights[:12]}: it "
            "was trained again since, or is another model"
        )
    network: Any
    if onto is not None and onto.weights == weights:
        network = share_base(onto.network, kind)
    elif kind is ScalarGPT:
        network = load_scalar(place, dtype=dtype, head_seed=head_seed)
    else:
        network = load_network(place, dtype=dtype)
    if isinstance(network, ScalarGPT):
        network.score.float()
    add_adapter(network, config, trained=trained)
    _fill(network, stored, directory / ADAPTER_WEIGHTS, str(place))
    result: Network = network
    return result


def read_lora(directory: Path) -> tuple[LoraConfig, dict[str, StoredTensor]]:
    """What an adapter is, and its tensors by their names in our networks.

    Raises:
        FileNotFoundError: there is no such directory, or it lacks its weights.
        ValueError: it is damaged, or an adapter of a kind that can't be trained on here.
    """
    path, weights = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no adapter directory, it has no {ADAPTER_CONFIG}")
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        kind = fields.get("peft_type") if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"{path}: peft_type is {kind!r}; supported: 'LORA'")
    for field in (*_VARIANTS, *_UNEVEN):
        if fields.get(field):
            raise ValueError(f"{path}: {field} is {fields[field]!r}; to train on, an adapter must be without it")
    if fields.get("bias", "none") != "none" or set(fields.get("modules_to_save") or ()) - {"score", "classifier"}:
        field = "bias" if fields.get("bias", "none") != "none" else "modules_to_save"
        raise ValueError(f"{path}: {field} is {fields[field]!r}; only a head of one score may learn beside adapters")
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; an adapter's weights are read from safetensors only")
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in read_header(weights).items()}
    targets = tuple(layer for layer in LAYERS if any(f".{layer}.lora_A." in name for name in stored))
    if not targets:
        names = ", ".join(sorted(stored)[:1]) or "nothing"
        raise ValueError(f"{weights}: holds {names}, but no lora_A of {', '.join(LAYERS)}")
    try:
        config = LoraConfig(
            rank=fields["r"],
            alpha=float(fields["lora_alpha"]),
            dropout=float(fields.get("lora_dropout", 0.0)),
            targets=targets,
            rslora=bool(fields.get("use_rslora", False)),
            dora=bool(fields.get("use_dora", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: r, lora_alpha or lora_dropout can't be: {error}") from None
    return config, stored


def base_of(directory: Path, base: str | Path | None = None) -> Path:
    """The directory of an adapter's base.

    Args:
        directory: of the adapter.
        base: directory or Hub id; None: what adapter_config.json names, a relative path being meant from where the
            training ran or from beside the adapter.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: none is named.
    """
    path = directory / ADAPTER_CONFIG
    name = str(base or json.loads(path.read_bytes()).get("base_model_name_or_path") or "")
    if not name:
        raise ValueError(f"{path}: base_model_name_or_path is {name!r}; it must name the base")
    for candidate in (Path(name), directory / name):
        if (candidate / "config.json").is_file():
            return candidate
    try:
        return locate(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: base_model_name_or_path: {error}") from None


def _recorded_base(directory: Path) -> str | None:
    """The fingerprint of the base's weights when we wrote the adapter; None where peft wrote it."""
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
            raise ValueError(f"{path}: {PREFIX}{name} is missing, which {base} calls for: another base?")
        if stored[name].shape != tuple(parameter.shape):
            raise ValueError(
                f"{path}: {PREFIX}{name} is {list(stored[name].shape)}; over {base} it is {list(parameter.shape)}: "
                "another base?"
            )
        parameter.copy_(read_tensor(stored[name]))
    if surplus := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"{path}: {PREFIX}{surplus[0]} is no part of an adapter over {base}")
