"""Two ranks that stream files of their own: resumed from a checkpoint, they end with the weights of a whole run."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import on_two_ranks

from align.algorithms.pretrain import Pretrain
from align.data.text_data import TextData
from align.model.config import GPTConfig
from align.tokenizer import train_tokenizer
from align.training.optimization import OptimizerConfig, ScheduleConfig

CONFIG = GPTConfig(vocab_size=263, layers=1, heads=2, width=8, ff_width=8, context=16)


def test_files_by_rank_resume_exactly(tmp_path: Path):
    """5 steps, and the last 3 again from the checkpoint of step 2, where the ranks have different positions."""
    train_tokenizer(["ab ab"], vocab_size=263).save(tmp_path / "tokenizer")
    files = []
    for number, letter in enumerate("abcd"):
        records = [{"text": letter * (3 + (n * (number + 2)) % 11)} for n in range(8)]
        files.append(str(tmp_path / f"{number}.jsonl"))
        Path(files[-1]).write_text("".join(json.dumps(record) + "\n" for record in records))
    # A blank line, which is no record, makes all files equally large.
    most = max(map(len, (Path(file).read_bytes() for file in files)))
    for file in files:
        Path(file).write_bytes(Path(file).read_bytes().ljust(most - 1) + b"\n")

    def run(ckpt_path: str | None = None, **settings) -> torch.Tensor:
        pl.seed_everything(0, verbose=False)
        data = TextData(
            str(tmp_path / "tokenizer"),
            files,
            packing="best_fit",
            streaming=True,
            files_by_rank=True,
            shuffle_buffer=3,
            context=16,
            batch_size=2,
            cache_dir=str(tmp_path / "cache"),
        )
        stage = Pretrain(
            CONFIG,
            init_seed=0,
            optimizer=OptimizerConfig(lr=0.1, weight_decay=0.0),
            schedule=ScheduleConfig(kind="constant"),
        )
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy="ddp",
            devices=2,
            max_steps=5,
            max_epochs=-1,
            use_distributed_sampler=False,
            **quiet,
            **settings,
        )
        trainer.fit(stage, datamodule=data, ckpt_path=ckpt_path)
        return stage.network.output_weight.detach().clone()

    def work() -> None:
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        whole = run(callbacks=[save])
        state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
        (loader,) = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        assert len(loader["by rank"]) == 2
        assert loader["by rank"][0] != loader["by rank"][1]
        resumed = run(str(tmp_path / "step=2.ckpt"), enable_checkpointing=False)
        assert torch.equal(resumed, whole)

    on_two_ranks(work, tmp_path / "log")
