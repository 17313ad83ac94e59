"""Small preference data, networks and training runs for the tests of DPO."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch

from align.algorithms.dpo import DPO
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.batches import PairBatch
from align.data.pair_data import PreferenceData
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import train_tokenizer
from align.training.optimization import OptimizerConfig, ScheduleConfig

CONFIG = GPTConfig(vocab_size=263, layers=2, heads=2, width=16, ff_width=16, context=40)
WORDS = ("ab", "cab", "abc", "bad", "dab", "a cab", "bad cab", "dad")


def write_pairs(path: Path, count: int, *, better: str = "yes", worse: str = "no way") -> str:
    """Pairs of mixed length; chosen responses begin with one word, rejected ones with another."""
    records = [
        {
            "prompt": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 2)) + str(i),
            "chosen": f"{better} {WORDS[i % 8]}",
            "rejected": worse if i % 3 else f"{worse} {WORDS[(i + 3) % 8]}",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def policy(seed: int = 1) -> GPT:
    """A network whose log-probs are far from uniform."""
    network = GPT(CONFIG)
    network.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


class World:
    """A folder with a tokenizer, records to train and to validate on, and model directories."""

    data_module, algorithm, write = PreferenceData, DPO, staticmethod(write_pairs)

    def __init__(self, folder: Path, *, pairs: int = 12) -> None:
        self.folder = folder
        train_tokenizer(["ab ab"], vocab_size=263).save(folder / "tokenizer")
        self.train = self.write(folder / "train.jsonl", pairs)
        self.validation = self.write(folder / "val.jsonl", 5)
        self.start = self.save(policy(), "start")

    def save(self, network: GPT, name: str) -> str:
        save_network(network, self.folder / name, bos_id=None, eos_ids=[262], pad_id=256)
        return str(self.folder / name)

    def data(self, **settings):
        defaults = {"validation": self.validation, "context": 40, "batch_size": 4, "cache_dir": self.folder / "cache"}
        return self.data_module(str(self.folder / "tokenizer"), self.train, **defaults | settings)

    def stage(self, **settings):
        defaults = {
            "optimizer": OptimizerConfig(lr=3e-3, weight_decay=0.0),
            "schedule": ScheduleConfig(kind="constant"),
            "policy_evaluation": PolicyEvaluationConfig(prompts=0),
        }
        if "network" not in settings:
            defaults["init_from"] = self.start
        return self.algorithm(**defaults | settings)


def fit(stage, data, *, ckpt_path: str | None = None, **settings) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        }
        | settings
    )
    torch.manual_seed(0)
    trainer.fit(stage, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Log(pl.Callback):
    """Every training step's metrics."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, *_):
        metrics = trainer.callback_metrics.items()
        self.steps.append({name: float(value) for name, value in metrics if name.startswith("train/")})


def several_pairs(pad: int = 0) -> PairBatch:
    """Prompts P (3 tokens), Q (2); responses a, b, c to P and d, e to Q: pairs ab, ac, cb, de, one of padding, ba."""
    texts = {
        "a": [1, 2, 3, 7],
        "b": [1, 2, 3, 8, 9],
        "c": [1, 2, 3, 4, 5, 6],
        "d": [1, 9, 4, 4],
        "e": [1, 9, 5, 6, 7, 8],
    }
    pairs = ["ab", "ac", "cb", "de", "", "ba"]
    rows = [texts.get(pair[side : side + 1], []) for side in (0, 1) for pair in pairs]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [pad] * (6 - len(row)) for row in rows])
    prompt_lengths = torch.tensor([3, 3, 3, 2, 0, 3])
    column = torch.arange(6)
    mask = (column >= prompt_lengths.repeat(2)[:, None]) & (column < lengths[:, None])
    return PairBatch(ids, mask, lengths, prompt_lengths, torch.tensor([0, 1, 2, 3, -1, 4]), ("",) * 6, ({},) * 6)
