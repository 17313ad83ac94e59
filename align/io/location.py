"""Find a model directory, on disk or on the Hub, and read its config.json. Does not need torch."""

import re
from pathlib import Path

from align.io.atomic import recover
from align.io.families import config_from
from align.io.families.family import ConfigJson
from align.io.gguf.container import gguf_in
from align.io.gguf.conversion import converted
from align.io.hub import explained, gguf_from_hub
from align.io.json_files import read_object
from align.io.manifest import is_adapter
from align.model.config import GPTConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")

_HUB_FILES = [
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "align.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
]


def locate(source: str | Path) -> Path:
    """Find the local directory of a model.

    Args:
        source: a directory, a GGUF file or a directory that has one and no config.json (see ``gguf.conversion``), or
            the id of a model on the Hub, such as ``openai-community/gpt2``, whose configuration, weights (safetensors
            only) and tokenizer are downloaded into the Hub's cache. Of a repository that has only GGUF files, one is
            named as ``owner/name/FILE.gguf``, unless there is but one.

    Returns:
        A directory that has a config.json.

    Raises:
        FileNotFoundError: it is none of them.
        ModuleNotFoundError: it is a GGUF file, and gguf is not installed.
        ValueError: it is a GGUF file that can't be converted.
    """
    path = Path(source).expanduser()
    if not path.exists():
        recover(path)
    if not path.exists() and path.suffix == ".gguf":
        path = gguf_from_hub(str(source)) or path
    elif not path.exists() and _HUB_ID.fullmatch(str(source)):
        path = _from_hub(str(source))
        if not (path / "config.json").is_file() and gguf_in(path) is None:
            path = gguf_from_hub(str(source)) or path
    if (file := gguf_in(path)) is not None:
        return converted(file)
    if not path.is_dir():
        missing = "no such file" if path.suffix == ".gguf" else "no such model directory"
        state = "is a file, not a model directory" if path.is_file() else missing
        raise FileNotFoundError(f"{source}: {state}")
    if not (path / "config.json").is_file():
        if is_adapter(path):
            raise FileNotFoundError(adapter_hint(path, str(source)))
        inner = path / "model"
        hint = f"; did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise FileNotFoundError(f"{path}: not a model directory, it has no config.json{hint}")
    return path


def adapter_hint(path: Path, name: str) -> str:
    """What to do with an adapter where whole weights are needed.

    Args:
        path: directory of the adapter.
        name: directory or Hub id, as the user wrote it.
    """
    merged = path.resolve().with_name("model")
    beside = f"its stage wrote them to {merged}; else " if (merged / "config.json").is_file() else ""
    return (
        f"{name} is an adapter, and whole weights are needed here: {beside}merge it with "
        f"`align export {name} --out DIR` and give DIR"
    )


def as_directory(source: str) -> str:
    """The source of a model as others can open it: a GGUF file's converted directory; anything else as it is."""
    path = Path(source).expanduser()
    return str(locate(source)) if path.suffix == ".gguf" or gguf_in(path) is not None else source


def read_config(source: str | Path) -> GPTConfig:
    """Read the configuration of a model directory's network, but no weights.

    Args:
        source: as for ``locate``.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: config.json asks for something our network does not support; the message names file and field.
    """
    return config_from(read_fields(locate(source)))


def read_fields(directory: Path) -> ConfigJson:
    """The fields of a model directory's config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    path = directory / "config.json"
    return ConfigJson(read_object(path), path)


def _from_hub(name: str) -> Path:
    import huggingface_hub

    with explained(name):
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
