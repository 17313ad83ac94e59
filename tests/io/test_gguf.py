"""GGUF files as models: written by our export or by the gguf package, read through ``locate``."""

import pytest

from align.tokenizer import train_tokenizer

TEXTS = ["The quick brown fox jumps over 13 lazy dogs; it's asleep.\n", "Größe, café 人工智能 😀 x\u00a0y\n"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, vocab_size=300)


def exported(network, tokenizer, directory, **options):
    """A GGUF file of a network, through a model directory."""
    from align.export.export_settings import ExportSettings
    from align.export.gguf_file import check_gguf, write_gguf
    from align.export.source import open_source
    from align.io.directory import save_network

    tokenizer.save(directory / "model")
    save_network(network, directory / "model", bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=None)
    source, settings = open_source(str(directory / "model")), ExportSettings(format="gguf", **options)
    check_gguf(source, settings)
    write_gguf(source, directory, settings)
    return directory / "model.gguf"
