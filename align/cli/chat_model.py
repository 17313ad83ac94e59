"""Loads chat models."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.cli.device import network_device
from align.cli.sampling import SamplingFlags

if TYPE_CHECKING:
    from align.generation.reply import ChatModel
    from align.model.gpt import GPT
    from align.tokenizer import Tokenizer


def load_chat_model(directory: Path, *, device: str = "auto") -> "tuple[GPT, Tokenizer]":
    """The network, in evaluation mode, and the tokenizer of a model directory; a warning if it never saw a chat.

    Args:
        directory: has a config.json.
        device: where the network is moved, as ``--device`` has it.

    Raises:
        FileNotFoundError: a file is missing.
        UsageError: the device is not there.
        ValueError: a file is damaged, the network or tokenizer is none we know, or it has no chat template.
    """
    from align.io.directory import load_network
    from align.io.manifest import stage_of
    from align.tokenizer import Tokenizer

    place = network_device(device)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.spec.chat_template is None:
        raise ValueError(
            f"{directory}: the tokenizer has no chat template (tokenizer_config.json or chat_template.jinja), so the "
            "model cannot chat; `align generate --raw` continues texts"
        )
    network = load_network(directory).eval().to(place)
    if stage_of(directory) == "pretrain":
        print(
            f"warning: {directory} is a pretrained model that never saw a chat; `align generate --raw` continues texts",
            file=sys.stderr,
        )
    return network, tokenizer


def load_chat_models(
    models: Mapping[str, Sequence[Path]], *, device: str, sampling: SamplingFlags
) -> "list[ChatModel]":
    """The chat models that a command line names, each with its own sampling defaults, which a note on stderr tells.

    Args:
        models: from ``named_models``, one directory each.
        device: as ``--device`` has it.
        sampling: as given.

    Raises:
        FileNotFoundError, UsageError, ValueError: as for ``load_chat_model`` and ``SamplingFlags.resolve``.
    """
    from align.generation.reply import ChatModel

    loaded = []
    for name, (directory,) in models.items():
        network, tokenizer = load_chat_model(directory, device=device)
        config, note = sampling.resolve(directory)
        if note:
            print(f"{name}: {note}" if len(models) > 1 else note, file=sys.stderr, flush=True)
        loaded.append(ChatModel(name, network, tokenizer, config))
    return loaded
