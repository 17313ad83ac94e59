"""Small random models in directories as stages write them."""

import sys
from pathlib import Path

import pytest

from align.model.config import GPTConfig
from align.tokenizer import Tokenizer, train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # for export_models.py

from export_models import SHAPE, TEXTS, random_network, write_model  # noqa: E402


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=400)


@pytest.fixture
def make(tmp_path, tokenizer):
    """A model directory of a random network with these settings."""

    def model(name: str = "model", *, scalar: bool = False, **options: object) -> Path:
        # More rows than ids, as where a vocabulary is padded.
        config = GPTConfig(**{"vocab_size": tokenizer.vocab_size + 5, **SHAPE, **options})
        return write_model(tmp_path / name, random_network(config, scalar=scalar), tokenizer)

    return model
