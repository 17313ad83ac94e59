"""What a stage passes on from the model that it starts from: the sampling defaults of generation_config.json."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from naming import naming
from torch.utils.data import DataLoader

from align.adapters.lora import LoraConfig
from align.algorithms.sft import SFT
from align.batches import TokenBatch
from align.callbacks.model_directory import ModelDirectory
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT

CONFIG = GPTConfig(vocab_size=11, layers=1, heads=2, width=8, context=8)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model directory that names a temperature, how its file was written, and ids of its own."""
    directory = tmp_path / "base"
    torch.manual_seed(0)
    save_network(GPT(CONFIG), directory, bos_id=1, eos_ids=[2], pad_id=3)
    named = {"do_sample": True, "temperature": 0.6, "transformers_version": "4.40.0", "eos_token_id": 2}
    (directory / "generation_config.json").write_text(json.dumps(named))
    return directory


def train(source: Path, run: Path, lora: LoraConfig | None = None) -> Path:
    row = torch.arange(8)[None]
    batch = TokenBatch(row, torch.ones(1, 8, dtype=torch.bool), None, None, torch.ones(1, dtype=torch.long))
    trainer = pl.Trainer(
        default_root_dir=run,
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[ModelDirectory(which="last")],
    )
    trainer.fit(SFT(str(source), lora=lora), DataLoader([batch], batch_size=None))
    return run / "model"


def generation_config(directory: Path) -> dict:
    return json.loads((directory / "generation_config.json").read_text())


def test_sampling_defaults_pass_from_stage_to_stage_and_ids_do_not(base: Path, tmp_path: Path):
    """The loaders have no tokenizer, so the stages know no special id."""
    expected = {
        "do_sample": True,
        "temperature": 0.6,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    first = train(base, tmp_path / "whole")
    assert generation_config(first) == expected
    adapted = train(first, tmp_path / "adapted", LoraConfig(rank=2, alpha=4))
    assert generation_config(adapted) == expected
    adapter = adapted.with_name("adapter")
    assert generation_config(adapter) == expected
    assert generation_config(train(adapter, tmp_path / "from_adapter")) == expected


def test_a_damaged_file_stops_the_run_before_training(base: Path, tmp_path: Path):
    (base / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=naming("generation_config.json")):
        train(base, tmp_path / "run")
    assert not (tmp_path / "run/model").exists()
