"""Tokenizers in Hugging Face's files: tokenizer.json, tokenizer_config.json and chat_template.jinja."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.io.gguf.container import gguf_in, open_container
from align.io.hub import explained, gguf_from_hub
from align.tokenizer.byte_level import OtherKindError, parse_byte_level
from align.tokenizer.gguf_metadata import spec_from_gguf
from align.tokenizer.library import parse_library
from align.tokenizer.spec import OPENING, TokenizerSpec, begins_with, token_text

PLAIN_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
"""tokenizer_config.json of any tokenizer that its tokenizer.json describes completely"""

GENERATION = "generation_config.json"
"""How a model is sampled; its ``eos_token_id`` is one id or a list of ids that end a response"""

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", GENERATION)
# Settings of the class that loaded the files, of the machine that wrote them, and what the post-processor says.
_NOT_WRITTEN = frozenset(
    (
        *("add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "auto_map", "backend"),
        *("from_slow", "is_local", "legacy", "local_files_only", "merges_file", "name_or_path", "processor_class"),
        *("sp_model_kwargs", "spaces_between_special_tokens", "special_tokens_map_file", "tokenizer_file"),
        *("use_default_system_prompt", "vocab_file"),
    )
)


def read_spec(source: str | Path) -> TokenizerSpec:
    """See `Tokenizer.load`."""
    path = Path(source)
    if not path.exists() and path.suffix == ".gguf":
        path = gguf_from_hub(str(source)) or path
        if not path.exists():
            raise FileNotFoundError(f"{source}: no such file")
    elif not path.exists():
        path = _from_hub(str(source))
        if not (path / "tokenizer.json").is_file() and gguf_in(path) is None:
            path = gguf_from_hub(str(source)) or path
    if (file := gguf_in(path)) is not None:
        return gguf_spec(file, open_container(file).values)
    directory = path if path.is_dir() else path.parent
    file = directory / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{directory} has no tokenizer.json")
    spec = _parse(_read_object(file), file)
    config = _read_object(directory / "tokenizer_config.json", missing_ok=True)
    for name, value in _read_object(directory / "special_tokens_map.json", missing_ok=True).items():
        config.setdefault(name, value)
    # Objects that describe tokens say nothing that tokenizer.json does not.
    for name, value in config.items():
        if isinstance(value, dict) and "content" in value:
            config[name] = token_text(value)
    template = config.pop("chat_template", None)
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    if (directory / "chat_template.jinja").is_file():
        template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    return replace(spec, config=config, chat_template=template, stops=_stops(directory / GENERATION))


def _stops(file: Path) -> tuple[int, ...]:
    """The ids of a generation_config.json that end a response.

    Raises:
        ValueError: the file is not a JSON object, or eos_token_id is neither an integer nor a list of them.
    """
    named = _read_object(file, missing_ok=True).get("eos_token_id")
    ids = [] if named is None else named if isinstance(named, list) else [named]
    if any(type(number) is not int for number in ids):
        raise ValueError(f"{file}: eos_token_id is {named!r}; it must be an integer or a list of integers")
    return tuple(ids)


def gguf_spec(file: Path, values: Mapping[str, Any]) -> TokenizerSpec:
    """The tokenizer of a GGUF file with this metadata.

    Raises:
        ValueError: it is none that align can read; the message names the file.
    """
    try:
        return spec_from_gguf(values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def write_spec(spec: TokenizerSpec, directory: Path, *, stops: Sequence[int]) -> None:
    """See `Tokenizer.save`.

    Args:
        spec: what is written.
        directory: created if needed.
        stops: for generation_config.json, which is not written if there are none, or if the directory has one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in spec.config.items() if name not in _NOT_WRITTEN}
    # transformers 5 lists further special tokens under a name for which transformers 4 expects an object.
    further = config.pop("extra_special_tokens", None) or config.pop("additional_special_tokens", None)
    if isinstance(further, list):
        config["additional_special_tokens"] = [token_text(token) for token in further]
    config = PLAIN_CONFIG | config | {"tokenizer_class": PLAIN_CONFIG["tokenizer_class"]}
    if spec.chat_template is not None:
        config["chat_template"] = spec.chat_template
    _write_object(directory / "tokenizer.json", spec.tokenizer_json() | {"post_processor": _post_processor(spec)})
    _write_object(directory / "tokenizer_config.json", config)
    if stops and not (directory / GENERATION).exists():
        _write_object(directory / GENERATION, {"eos_token_id": list(stops)})


def _post_processor(spec: TokenizerSpec) -> dict[str, Any] | None:
    """The post-processor that adds what `TokenizerSpec.opening` says, whatever the configuration adds to it."""
    if OPENING in spec.config or replace(spec, config={}).opening == spec.opening:
        return spec.post_processor
    if not spec.opening:
        return None
    (bos,) = spec.opening
    number = spec.id_of(bos)
    return None if number is None else begins_with(bos, number)


def _parse(data: dict[str, Any], file: Path) -> TokenizerSpec:
    """Read a tokenizer.json as byte-level BPE, or else through the ``tokenizers`` library."""
    try:
        try:
            return parse_byte_level(data)
        except OtherKindError as error:
            return parse_library(data, str(error))
    except ValueError as error:
        raise ValueError(f"{file}: not a tokenizer that align can read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged: {type(error).__name__}: {error}") from None


def _read_object(file: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: contains {type(data).__name__}; it must contain a JSON object")
    return data


def _write_object(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def _from_hub(name: str) -> Path:
    """Directory of the tokenizer files of ``owner/name``, downloaded unless they are in the local cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name}: no such file or directory")
    from huggingface_hub import snapshot_download

    with explained(name):
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
