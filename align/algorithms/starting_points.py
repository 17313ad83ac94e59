"""Where a stage starts from: initial networks, adapters and references, and the record of the base in checkpoints."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from align.adapters.lora import LoraConfig, adapters, add_adapter, convert_base, copy_adapter, share_base
from align.io.adapter_directory import Base, base_of, base_source, load_adapter
from align.io.code import code_hash
from align.io.directory import load_network, load_scalar
from align.io.location import locate
from align.io.manifest import is_adapter, scores_fingerprint
from align.io.manifest import weights_fingerprint as fingerprint_of
from align.model.gpt import GPT, ScalarGPT
from align.rewards.functions import FILES, code_fingerprint

Network = TypeVar("Network", GPT, ScalarGPT)


def load_start(
    source: str, kind: type[Network], lora: LoraConfig | None, *, head_seed: int = 0, onto: Base | None = None
) -> Network:
    """Load the network that a stage starts from.

    Args:
        source: a model directory, a Hub id, or an adapter directory, which is loaded with its base and stays trainable.
        kind: GPT, or ScalarGPT, which gets a new head if the source has none.
        lora: the stage's adapter settings, which determine the base's dtype; None: float32.
        head_seed: random seed of a new head.
        onto: weights in memory to apply an adapter to, if they are its base.

    Raises:
        FileNotFoundError: the directory, its weights or its base do not exist.
        ValueError: it is damaged, or holds another kind of network.
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


def initial_network(
    stage: str,
    source: str | None,
    network: Network | None,
    kind: type[Network],
    lora: LoraConfig | None,
    *,
    head_seed: int = 0,
) -> Callable[[], Network]:
    """A function that returns the network of a stage, loaded from ``source`` when it is called.

    A function, since a network stored as an attribute of a stage would become a submodule.

    Args:
        stage: name of the stage, for errors.
        source: the stage's ``init_from``.
        network: a network built in Python, instead of ``source``.
        kind: see ``load_start``.
        lora: see ``load_start``.
        head_seed: see ``load_start``.

    Raises:
        ValueError: not exactly one of source and network is given.
    """
    if (source is None) == (network is None):
        raise ValueError(f"{stage} needs init_from: a model or Hugging Face directory, a GGUF file or a Hub id")
    return lambda: network if network is not None else load_start(str(source), kind, lora, head_seed=head_seed)


def adapt(network: GPT | ScalarGPT, lora: LoraConfig | None, *, source: str | None, seed: int) -> None:
    """Add the recipe's adapter to a network; an adapter that it was loaded with continues training.

    Args:
        network: changed in place; unchanged if it has no adapters and ``lora`` is None.
        lora: the recipe's adapter settings.
        source: where the network came from, for errors.
        seed: random seed of a new adapter.

    Raises:
        ValueError: the network was loaded with an adapter of other settings, or lacks a target.
    """
    brought = next(iter(adapters(network).values()), None)
    if brought is None:
        if lora is not None:
            convert_base(network, lora.dtype)  # of a network built in Python
            add_adapter(network, lora, seed=seed)
        return
    if lora is not None and not lora.same_weights(brought):
        here, there = _words(lora), _words(brought)
        raise ValueError(
            f"lora has {here}, but the adapter of init_from ({source}) has {there}; set the same values, remove lora, "
            "or start from the merged model to add a new adapter"
        )


def reference_view(network: GPT) -> GPT:
    """The initial policy, sharing the policy's base weights.

    That is the base alone if the policy has no adapter yet, or the base with a frozen copy of the adapter it was loaded
    with.
    """
    reference = share_base(network, GPT)
    if adapters(network):
        copy_adapter(network, reference)
    return reference


def start_fingerprint(source: str, lora: LoraConfig | None) -> str:
    """Hash of the weights that a stage starts from, as a key for what is computed from them and cached."""
    if is_adapter(source):
        found = f"{fingerprint_of(Path(source))}+{fingerprint_of(base_of(Path(source)))}"
    else:
        found = fingerprint_of(locate(source))
    return found if lora is None or lora.base_dtype == "float32" else f"{found}+{lora.base_dtype}"


def content_of(source: object) -> str:
    """What a setting that names a model or a reward stands for, as a resumed run compares it.

    Args:
        source: model or adapter directory, GGUF file, Hub id, module:function, YAML file of a reward, or an object.

    Returns:
        str: hash of weights and normalisation, or of the YAML file; of anything else its name; with the hash of a
        user's code.
    """
    if not isinstance(source, str):
        return _with_code(f"{type(source).__module__}.{type(source).__qualname__}", code_hash(source))
    if (file := Path(source.rpartition("#")[0] or source)).name.endswith(FILES):
        return _with_code(hashlib.sha256(file.read_bytes()).hexdigest(), _code_of(source))
    if is_adapter(source):
        return f"{scores_fingerprint(source)}+{fingerprint_of(base_of(Path(source)))}"
    # A word without a slash that is no path is a reward's short name, or a module:function.
    known = "/" in source or Path(source).expanduser().exists()
    return scores_fingerprint(locate(source)) if known else _with_code(source, _code_of(source))


def _code_of(name: str) -> str | None:
    """Hash of the code of the reward that has a name; None of any other name, which stands for itself."""
    with suppress(ValueError):
        return code_fingerprint(name)
    return None


def _with_code(name: str, code: str | None) -> str:
    return name if code is None else f"{name} with code {code}"


def base_in_memory(network: GPT | ScalarGPT, source: str | None) -> Base | None:
    """The base of a network just loaded, for other adapters of the same base; None if it was built in Python."""
    return None if source is None else Base(network, fingerprint_of(locate(base_source(source))))


def adapter_record(network: GPT | ScalarGPT, base: str | None, four_bit: str | None) -> dict[str, Any] | None:
    """What a checkpoint without base weights records about them; None for a network without adapters.

    Args:
        network: the trained network.
        base: directory or Hub id of the base weights; None: the network was built in Python.
        four_bit: format of the matrices, if they are quantized to 4 bits.
    """
    config = next(iter(adapters(network).values()), None)
    if config is None:
        return None
    # A loaded adapter does not know which dtype its base was converted to here.
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
    """Refuse a checkpoint of another kind of training, or of other base weights.

    Args:
        found: record in the checkpoint.
        ours: record of the stage that resumes from it.

    Raises:
        ValueError: they differ.
    """
    if found is None and ours is None:
        return
    if found is None or ours is None:
        there, here = ("an adapter", "no lora") if found else ("whole networks", "lora")
        raise ValueError(f"the checkpoint holds {there}, but the recipe has {here}; resume with the recipe of its run")
    mine, theirs = LoraConfig(**ours["lora"]), LoraConfig(**found["lora"])
    if not mine.same_weights(theirs):
        raise ValueError(
            f"the checkpoint's adapter has {_words(theirs)}, but lora has {_words(mine)}; set the same values"
        )
    if found.get("four_bit") != ours["four_bit"]:
        theirs_kept, ours_kept = (each.get("four_bit") or "unquantized" for each in (found, ours))
        raise ValueError(
            f"the checkpoint's adapter was trained on {theirs_kept} weights, but the recipe's are {ours_kept}; resume "
            "with the same trainer.plugins"
        )
    if found["weights"] != ours["weights"]:
        raise ValueError(
            f"the checkpoint's adapter needs base weights {str(found['weights'])[:12]} ({found['base']}), but "
            f"{ours['base']} holds {str(ours['weights'])[:12]}: the base has changed; train the adapter again"
        )


def refuse_dropout(lora: LoraConfig | None, stage: str) -> None:
    """Refuse adapter dropout in stages whose log-probs in training must equal those in sampling.

    Raises:
        ValueError: ``lora`` has dropout.
    """
    if lora is not None and lora.dropout:
        raise ValueError(f"lora.dropout is {lora.dropout}; {stage} compares log-probs, which needs 0")


def _words(config: LoraConfig) -> str:
    words = [f"rank {config.rank}", f"alpha {config.alpha:g}"]
    words += [word for word, on in (("rslora", config.rslora), ("dora", config.dora)) if on]
    return ", ".join([*words, f"targets {' '.join(config.targets) if config.targets else 'all'}"])
