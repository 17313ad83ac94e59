"""A working directory with two toy models and prompts, as a user's; examples are copied into it."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def copy_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that copies an example into the working directory, from which alone it can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    copied = []

    def copy(name: str) -> None:
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
        copied.append(name)

    yield copy
    for name in copied:
        sys.modules.pop(name, None)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """The working directory with the models ``one`` and ``other``, and ``prompts.jsonl``."""
    tokenizer = train_tokenizer(["ab ab"], vocab_size=256 + 7)
    for seed, name in enumerate(("one", "other")):
        network = GPT(GPTConfig(vocab_size=263, layers=1, heads=2, width=16, ff_width=16, context=48))
        network.initialise(seed)
        tokenizer.save(tmp_path / name)
        save_network(
            network,
            tmp_path / name,
            bos_id=tokenizer.bos_id,
            eos_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
        )
        write_manifest(tmp_path / name, {"stage": "sft"})
    lines = [json.dumps({"prompt": letter}) for letter in "abcd"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path
