"""Tiny random models that take part in an arena."""

from collections.abc import Callable
from pathlib import Path

import pytest

from align.arena.rounds import Arena, ArenaModel
from align.arena.votes import VoteFiles
from align.generation.reply import ChatModel
from align.generation.sampling_config import SamplingConfig
from align.io.directory import load_network, save_network
from align.io.manifest import weights_fingerprint
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer, train_tokenizer

NAMES = ("aardvark", "zebra", "quagga")
CONFIG = GPTConfig(
    vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=96, init_std=0.3, embedding_std=0.5
)


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model directories by name; a token is a byte."""
    folder, tokenizer, found = tmp_path_factory.mktemp("models"), train_tokenizer(["ab ab"], vocab_size=256 + 7), {}
    for seed, name in enumerate(NAMES):
        network = GPT(CONFIG)
        network.initialise(seed)
        found[name] = folder / name
        found[name].mkdir()
        tokenizer.save(found[name])
        ids = {"bos_id": tokenizer.bos_id, "eos_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
        save_network(network, found[name], **ids)
    return found


@pytest.fixture(scope="session")
def members(directories: dict[str, Path]) -> list[ArenaModel]:
    """The models, loaded."""
    sampling = SamplingConfig(max_new_tokens=6)
    return [
        ArenaModel(
            ChatModel(name, load_network(path).eval(), Tokenizer.load(path), sampling), weights_fingerprint(path)
        )
        for name, path in directories.items()
    ]


@pytest.fixture
def make_arena(members: list[ArenaModel], tmp_path: Path) -> Callable[..., Arena]:
    """An arena of the first models whose files are in a fresh folder, the same one in each call of a test."""

    def make(count: int = 2, *, seed: int = 0, **settings: object) -> Arena:
        return Arena(members[:count], VoteFiles(tmp_path / "out"), seed=seed, **settings)

    return make
