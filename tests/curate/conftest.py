"""The context of a stage that trains on small files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from curate_data import KINDS, STAGES, VOCABULARY, clean

from align.curate.context import Context, Network, Run
from align.curate.reading import kind_of, read_splits
from align.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer without merges: one token for each byte, and the special tokens."""
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["ab ab"], vocab_size=VOCABULARY).save(path)
    return str(path)


@pytest.fixture
def changed_tokenizer(tokenizer_dir: str, tmp_path: Path):
    """``changed_tokenizer(chat_template=..., pad_token=...)``: the tokenizer with another tokenizer_config.json."""

    def change(**config: object) -> str:
        path = tmp_path / "changed"
        shutil.copytree(tokenizer_dir, path)
        (path / "chat_template.jinja").unlink(missing_ok=True)
        file = path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return str(path)

    return change


@pytest.fixture
def context_of(tokenizer_dir: str, tmp_path: Path):
    """``context_of(kind, train, validation, ...)``: what the checks see of files and settings."""

    def build(
        kind: str,
        train: list[dict] | bytes,
        validation: list[dict] | None = None,
        *,
        tokenizer: str = "",
        run: dict | None = None,
        networks: tuple[Network, ...] = (),
        suffix: str = "jsonl",
        **settings: object,
    ) -> Context:
        files = {"train": train, "validation": clean(kind, 40, 1) if validation is None else validation}
        for name, content in files.items():
            path = tmp_path / f"{name}.{suffix if name == 'train' else 'jsonl'}"
            lines = (
                content if isinstance(content, bytes) else "".join(json.dumps(one) + "\n" for one in content).encode()
            )
            path.write_bytes(lines)
            files[name] = str(path)
        data = KINDS[kind](
            tokenizer or tokenizer_dir, files.pop("train"), **files, cache_dir=str(tmp_path / "cache"), **settings
        )
        facts = {"context": data.context, "batch_size": data.batch_size, "on_bad_record": data.on_bad_record}
        facts |= {"max_epochs": 2, "default_lr": 1e-4}
        if kind == "prompts":
            facts |= {"rollout_tokens": 32, "rollout_prompts": 16, "rollout_steps": 8, "rollout_episodes": 16}
            facts |= {"max_new_tokens": {"rollout.max_new_tokens": 32}, "max_epochs": 5}
        policy = Network("policy", "model", VOCABULARY, 256, 10_000, Tokenizer.load(tokenizer_dir))
        return Context(
            stage=STAGES[kind],
            kind=kind_of(data),
            splits=read_splits(data, limit=1000),
            tokenizer=data.tokenizer,
            run=Run(**facts | (run or {})),
            networks=networks or (replace(policy, tokenizer=None),),
        )

    return build
