"""Adapters in training: where a stage starts from, what its reference is, and what its checkpoints say of the base."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from align.adapters.lora import LoraConfig, adapters, add_adapter, convert_base, copy_adapter, share_base
from align.io.adapter_directory import Base, base_of, load_adapter
from align.io.directory import load_network, load_scalar
from align.io.location import locate
from align.io.manifest import is_adapter
from align.io.manifest import weights_fingerprint as fingerprint_of
from align.model.gpt import GPT, ScalarGPT

Network = TypeVar("Network", GPT, ScalarGPT)


def load_start(
    source: str, kind: type[Network], lora: LoraConfig | None, *, head_seed: int = 0, onto: Base | None = None
) -> Network:
    """The network that a stage starts from.

    Args:
        source: a model directory, a Hub id, or an adapter directory, whose adapter then is on its base and learns on.
        kind: GPT, or ScalarGPT, with a fresh head where the source has none.
        lora: the stage's adapters, which decide the type of the base; None: float32.
        head_seed: of a fresh head.
        onto: weights in memory on which an adapter may stand if they are its base.

    Raises:
        FileNotFoundError: there is no such directory, or its weights or its base are missing.
        ValueError: it is damaged or of another kind.
    """
    network: Any
    if is_adapter(source):
        network = load_adapter(source, kind, onto=onto, head_seed=head_seed, trained=True)
    elif kind is ScalarGPT:
        network = load_scalar(source, head_seed=head_seed)
    else:
        network = load_network(source)
    if lora is not None:
        convert_base(network, lora.dtype)
    result: Network = network
    return result


def adapt(network: GPT | ScalarGPT, lora: LoraConfig | None, *, source: str | None, seed: int) -> None:
    """Give a network that is to learn the adapter that the recipe asks for; one that it brings learns on.

    Args:
        network: changed in place. Without adapters, and without ``lora``, it is left alone.
        lora: the recipe's.
        source: where the network came from, for errors.
        seed: of a fresh adapter.

    Raises:
        ValueError: the network brings another adapter than the recipe asks for, or lacks a target.
    """
    brought = next(iter(adapters(network).values()), None)
    if brought is None:
        if lora is not None:
            convert_base(network, lora.dtype)  # of a network made in Python
            add_adapter(network, lora, seed=seed)
        return
    if lora is not None and not lora.same_weights(brought):
        here, there = _told(lora), _told(brought)
        raise ValueError(
            f"lora asks for {here}, but the adapter that init_from ({source}) brings has {there}: write the "
            "same, leave lora out, or start from the merged model to add a fresh one"
        )


def reference_view(network: GPT) -> GPT:
    """What a policy is before it learns, on the policy's own base weights.

    Without an adapter yet, or with a fresh one to come: the base. With an adapter to learn on: the base and a frozen
    copy of that adapter.
    """
    reference = share_base(network, GPT)
    if adapters(network):
        copy_adapter(network, reference)
    return reference


def start_fingerprint(source: str, lora: LoraConfig | None) -> str:
    """What weights a stage starts from, for what is computed from them once and kept."""
    if is_adapter(source):
        found = f"{fingerprint_of(Path(source))}+{fingerprint_of(base_of(Path(source)))}"
    else:
        found = fingerprint_of(locate(source))
    return found if lora is None or lora.base_dtype == "float32" else f"{found}+{lora.base_dtype}"


def base_source(source: str | None) -> str | None:
    """The directory or Hub id of the base weights under a stage's adapters."""
    return str(base_of(Path(source))) if source is not None and is_adapter(source) else source


def base_in_memory(network: GPT | ScalarGPT, source: str | None) -> Base | None:
    """The base of a network just loaded, for adapters that stand on the same one; None for one made in Python."""
    base = base_source(source)
    return None if base is None else Base(network, fingerprint_of(locate(base)))


def adapter_record(network: GPT | ScalarGPT, base: str | None, four_bit: str | None) -> dict[str, Any] | None:
    """What a checkpoint that holds no base weights says of them; None for a network without adapters.

    Args:
        network: what the stage trains.
        base: from ``base_source``.
        four_bit: how the matrices are kept, if in 4 bits.
    """
    config = next(iter(adapters(network).values()), None)
    if config is None:
        return None
    # An adapter that was brought does not say what its base was converted to here.
    wide = network.model.embed_tokens.weight.dtype != torch.bfloat16
    config = replace(config, base_dtype="float32" if wide else "bfloat16")
    directory = None if base is None else locate(base)
    return {
        "lora": asdict(config),
        "base": base if directory is None or not Path(str(base)).is_dir() else str(directory.resolve()),
        "weights": None if directory is None else fingerprint_of(directory),
        "four_bit": four_bit,
    }


def check_record(found: dict[str, Any] | None, ours: dict[str, Any] | None) -> None:
    """Refuse a checkpoint of another kind of training, or over other base weights.

    Args:
        found: in the checkpoint.
        ours: of the stage that is to go on from it.

    Raises:
        ValueError: they differ.
    """
    if found is None and ours is None:
        return
    if found is None or ours is None:
        there, here = ("an adapter", "no lora") if found else ("whole networks", "lora")
        raise ValueError(f"the checkpoint holds {there}, but the recipe has {here}: it is of another run")
    mine, theirs = LoraConfig(**ours["lora"]), LoraConfig(**found["lora"])
    if not mine.same_weights(theirs):
        raise ValueError(f"the checkpoint's adapter has {_told(theirs)}, the recipe's {_told(mine)}")
    if found.get("four_bit") != ours["four_bit"]:
        kept, keep = (each.get("four_bit") or "they are" for each in (found, ours))
        raise ValueError(
            f"the checkpoint's adapter learned over weights kept as {kept}, the recipe's are kept as {keep}: go on "
            "with the same trainer.plugins"
        )
    if found["weights"] != ours["weights"]:
        raise ValueError(
            f"the checkpoint's adapter stands on base weights {str(found['weights'])[:12]} ({found['base']}), but "
            f"{ours['base']} holds {str(ours['weights'])[:12]}: the base was trained again since; start afresh"
        )


def refuse_dropout(lora: LoraConfig | None, stage: str) -> None:
    """Refuse dropout where the log-probs of training have to be those of sampling.

    Raises:
        ValueError: there is some.
    """
    if lora is not None and lora.dropout:
        raise ValueError(f"lora.dropout is {lora.dropout}: {stage} compares log-probs, which needs 0")


def _told(config: LoraConfig) -> str:
    words = [f"rank {config.rank}", f"alpha {config.alpha:g}"]
    words += [word for word, on in (("rslora", config.rslora), ("dora", config.dora)) if on]
    return ", ".join([*words, f"targets {' '.join(config.targets) if config.targets else 'all'}"])
