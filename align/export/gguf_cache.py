"""GGUF files of model directories, each written once."""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

from align.export.gguf_file import FILE, VERSION, check_gguf, write_gguf
from align.export.settings import ExportSettings, GgufQuantization
from align.export.source import open_source
from align.io.location import read_config
from align.io.manifest import weights_fingerprint
from align.tokenizer import Tokenizer


def cached_gguf(directory: Path, cache: Path, *, quantize: GgufQuantization = "none") -> Path:
    """The GGUF file of a model directory, written unless the cache has it.

    Args:
        directory: holds a language model.
        cache: folder of the files; made if missing.
        quantize: as in ``ExportSettings``.

    Returns:
        A whole file: it is renamed into the cache once it is written.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        ValueError: GGUF cannot express the model; the line says why.
        OSError: the disk is full.
    """
    target = cache / f"{_key(directory, quantize)}.gguf"
    if target.is_file():
        return target
    source = open_source(str(directory))
    settings = ExportSettings(format="gguf", quantize=quantize)
    check_gguf(source, settings)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=cache) as folder:
        write_gguf(source, Path(folder), settings)
        written = Path(folder) / FILE
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(target)
    return target


def _key(directory: Path, quantize: str) -> str:
    """What decides the bytes of the file, as 32 hexadecimal digits."""
    tokenizer = Tokenizer.load(directory)
    parts = [
        VERSION,
        quantize,
        weights_fingerprint(directory),
        dataclasses.asdict(read_config(directory)),
        tokenizer.fingerprint,
        list(tokenizer.stop_ids),
        [tokenizer.bos_id, tokenizer.pad_id, list(tokenizer.opening_ids)],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
