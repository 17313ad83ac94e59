"""align's side of the alignment benchmark: stages and data as recipes name them, under Lightning's Trainer."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rows import BOS, END, FIRST, PAD, Clock, Meter, Numbers, Row, make_rows, word, words

from align.algorithms.dpo import DPO
from align.algorithms.module import Stage
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig, UpdateConfig, ValueConfig
from align.algorithms.reward_modeling import Reward
from align.algorithms.sft import SFT
from align.callbacks.health import Health
from align.callbacks.loggers import RunLog
from align.callbacks.throughput import Throughput
from align.data.data_module import TokenData
from align.data.pair_data import PreferenceData, PromptData
from align.data.sampler import BatchLoader
from align.data.text_data import ChatData
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.objectives import GRPO
from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.spec import AddedToken
from align.training.optimization import OptimizerConfig, ScheduleConfig

LEARNING = {"optimizer": OptimizerConfig(lr=1e-6, weight_decay=0.0), "schedule": ScheduleConfig(kind="constant")}


def measure(setting: dict[str, Any], **variant: Any) -> Numbers:
    """CPU and wall seconds of an optimizer step; of an iteration for ppo and grpo.

    Args:
        setting: see ``bench_alignment.settings``.
        variant: arguments of the stage, besides those of the setting.
    """
    rows = make_rows(setting["rows"], setting["lengths"], setting["shape"]["vocab_size"], span=setting["span"])
    clock = Clock(warmup=setting["warmup"], steps=setting["steps"])
    ticks = Ticks(clock, iterations=setting["method"] in ("ppo", "grpo"))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _spelling_tokenizer(setting["shape"]["vocab_size"])
        stage, data = _parts(setting, variant, Path(folder), tokenizer, rows)
        train(setting, stage, data, Path(folder, "run"), ticks)
    precomputed = isinstance(stage, DPO) and stage.precomputed
    return clock.numbers(reference_cpu=ticks.before if precomputed else None)


def train(setting: dict[str, Any], stage: Stage, data: TokenData, run: Path, ticks: "Ticks") -> None:
    """Train as `align fit` does, without checkpoints and the final model directory, which peers don't write."""
    total = ticks.clock.warmup + ticks.clock.steps
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, gradient_clip_val=1.0, log_every_n_steps=10, use_distributed_sampler=False,
        max_steps=-1 if ticks.iterations else total, max_epochs=total if ticks.iterations else -1,
        accumulate_grad_batches=2 if setting["method"] == "ppo" else 1,
        logger=RunLog(run), default_root_dir=run, callbacks=[Health(), Throughput(), ticks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(stage, datamodule=data)


def _parts(
    setting: dict[str, Any], variant: dict[str, Any], folder: Path, tokenizer: Tokenizer, rows: Sequence[Row]
) -> tuple[Stage, TokenData]:
    """The stage and its data, all read from files, as with a recipe."""
    method, network = setting["method"], GPT(GPTConfig(**setting["shape"]))
    start = _save(network, folder / "policy", tokenizer)
    shared: dict[str, Any] = {"context": network.config.context, "batch_size": setting["batch"]}
    shared["cache_dir"] = str(folder / "cache")
    stage: Stage
    if method == "sft":
        file = write(folder, [{"prompt": _asked(row), "completion": words(row.chosen[:-1])} for row in rows])
        stage = SFT(start, **LEARNING, **variant)
        return stage, Chats(start, file, **shared).warmed(setting)
    if method in ("reward", "dpo"):
        answers = [{"chosen": words(row.chosen[:-1]), "rejected": words(row.rejected[:-1])} for row in rows]
        file = write(folder, [{"prompt": _asked(row)} | both for row, both in zip(rows, answers, strict=True)])
        stage = (Reward if method == "reward" else DPO)(start, **LEARNING, **variant)
        return stage, Pairs(start, file, **shared).warmed(setting)
    file = write(folder, [{"prompt": _asked(row)} for row in rows])
    group = setting["group"]
    settings: dict[str, Any] = {
        "rollout": RolloutConfig(setting["batch"] * group, group, max_new_tokens=setting["new"]),
        "scoring": ScoringConfig(missing_eos_penalty=0.0),
        **LEARNING,
        **variant,
    }
    if method == "ppo":
        reward = _save(ScalarGPT(network.config), folder / "reward", tokenizer)
        stage = PPO(start, reward, update=UpdateConfig(epochs=4, minibatches=1, target_kl=None), **settings)
    else:
        update = UpdateConfig(epochs=1, minibatches=1, target_kl=None)
        reward = "ours_alignment:reward_length"
        stage = PPO(start, reward, estimator=GRPO(), update=update, kl=KLConfig(kl_coef=0.0), **settings)
    data = Prompts(start, file, **shared).warmed(setting)
    data.tokenizer.stop_ids = ()  # every response has its full length: random weights would end a few by chance
    return stage, data


def shared_trunk() -> dict[str, Any]:
    """The variant of PPO whose value model is a head on the policy."""
    return {"value": ValueConfig(shared_trunk=True)}


def reward_length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward that takes no time."""
    return [float(len(response) % 17) for response in responses]


class Warmed(TokenData):
    """Starts near the end of a first pass over the rows, so that exactly one whole pass follows the warm-up."""

    warmup = 0

    def warmed(self, setting: dict[str, Any]) -> Any:
        self.warmup = setting["warmup"]
        return self

    def train_dataloader(self) -> BatchLoader[Any]:
        loader: Any = super().train_dataloader()
        loader.delivered = len(loader) - self.warmup % len(loader)
        return loader


class Chats(ChatData, Warmed): ...


class Pairs(PreferenceData, Warmed): ...


class Prompts(PromptData, Warmed): ...


class Ticks(pl.Callback):
    """Ticks the clock after each optimizer step, or after each iteration (an epoch of the Trainer)."""

    def __init__(self, clock: Clock, *, iterations: bool) -> None:
        self.clock, self.iterations, self.before = clock, iterations, 0.0
        self._meter = Meter()

    def on_fit_start(self, *_: object) -> None:
        self._meter.__enter__()

    def on_train_start(self, *_: object) -> None:
        """The time before it is almost entirely the reference's pass."""
        self._meter.__exit__()
        self.before = self._meter.cpu

    def on_train_batch_end(self, *_: object) -> None:
        if not self.iterations:
            self.clock.tick()

    def on_train_epoch_end(self, *_: object) -> None:
        if self.iterations:
            self.clock.tick()


def _spelling_tokenizer(vocab: int) -> Tokenizer:
    """An align tokenizer with a token for each word that ``words`` writes."""
    spec = train_tokenizer(["ab"], vocab_size=FIRST).spec
    added = tuple(AddedToken(number, f" {word(number)}", special=False) for number in range(FIRST, vocab))
    spec.__dict__["added"] = spec.added + added  # frozen
    return Tokenizer(spec)


def _save(network: GPT | ScalarGPT, folder: Path, tokenizer: Tokenizer) -> str:
    save_network(network, folder, bos_id=BOS, eos_ids=[END], pad_id=PAD)
    tokenizer.save(folder)
    return str(folder)


def _asked(row: Row) -> str:
    """The user's message: the prompt without the template's tokens."""
    return words(row.prompt[2:-2])


def write(folder: Path, records: Sequence[dict[str, str]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)
