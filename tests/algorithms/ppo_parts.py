"""A tiny world for PPO: 12 tokens, prompts of one or more of them, rewards that count a token."""

from dataclasses import dataclass
from typing import ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import RolloutConfig, UpdateConfig
from align.batches import PromptBatch
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.rewards import Reward
from align.training.optimization import OptimizerConfig

VOCAB, PAD, EOS, WANTED = 12, 0, 1, 5
CONFIG = GPTConfig(vocab_size=VOCAB, layers=2, heads=2, width=16, ff_width=32, context=24)


class Tokens:
    """A tokenizer whose text is the ids, separated by spaces."""

    vocab_size, pad_id, stop_ids, fingerprint = VOCAB, PAD, (EOS,), "tokens"
    missing_ids: tuple[int, ...] = ()

    def decode(self, ids):
        return " ".join(map(str, ids))


class Prompts:
    """A resumable loader of ``batch_size`` prompts a batch, endlessly in order."""

    def __init__(self, lengths, batch_size):
        generator = torch.Generator().manual_seed(1)
        self.prompts = [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]
        self.batch_size, self.delivered = batch_size, 0

    def __len__(self):
        return -(-len(self.prompts) // self.batch_size)

    def __iter__(self):
        # Lightning takes as many batches as the length says, and never asks for the end of a pass.
        first = self.delivered % len(self)
        for start in range(first * self.batch_size, len(self.prompts), self.batch_size):
            self.delivered += 1
            chosen = list(range(start, min(start + self.batch_size, len(self.prompts))))
            longest = max(len(self.prompts[i]) for i in chosen)
            ids = torch.tensor([self.prompts[i] + [PAD] * (longest - len(self.prompts[i])) for i in chosen])
            lengths = torch.tensor([len(self.prompts[i]) for i in chosen])
            yield PromptBatch(
                ids,
                lengths,
                torch.tensor(chosen),
                tuple(f"prompt {i}" for i in chosen),
                tuple({"number": i} for i in chosen),
            )

    def state_dict(self):
        return {"delivered": self.delivered}

    def load_state_dict(self, state):
        self.delivered = state["delivered"]


class PromptModule(pl.LightningDataModule):
    def __init__(self, lengths=(3, 5, 2, 4, 3, 6, 1, 2), batch_size=3):
        super().__init__()
        self.tokenizer, self.context = Tokens(), CONFIG.context
        self.lengths, self.batch_size = lengths, batch_size

    def train_dataloader(self):
        prompts = Prompts(self.lengths, self.batch_size)
        return self.trainer.lightning_module.rollout_loader(prompts)

    def val_dataloader(self):
        return Prompts(self.lengths, self.batch_size)


def share(prompts, responses):
    """Share of the wanted token in a response: the most is 1."""
    words = [response.split() for response in responses]
    return [row.count(str(WANTED)) / max(1, len(row)) for row in words]


@dataclass(frozen=True)
class Recorder(Reward):
    """Keeps the prompts it scores."""

    seen: ClassVar[list] = []

    def score(self, prompts, responses):
        self.seen.extend(prompts)
        return [float(len(response)) for response in responses]


def policy(seed=0, config=CONFIG):
    network = GPT(config)
    network.initialise(seed)
    return network


@torch.no_grad()
def plain_logprobs(network, row, prompt_length):
    """Log-probs of a row's response, one row at a time, from whole logits."""
    logits = network.eval()(row[None])[0].float()
    picked = logits.log_softmax(-1)[:-1].gather(1, row[1:, None])[:, 0]
    return picked[prompt_length - 1 :]


def ppo(**settings):
    rollout = {"episodes": 8, "max_new_tokens": 6} | settings.pop("rollout", {})
    update = {"epochs": 2, "minibatches": 2} | settings.pop("update", {})
    settings = {
        "network": policy(),
        "reward": "ppo_parts:share",
        "optimizer": OptimizerConfig(lr=1e-3, weight_decay=0.0),
        "policy_evaluation": PolicyEvaluationConfig(prompts=0),
    } | settings
    return PPO(rollout=RolloutConfig(**rollout), update=UpdateConfig(**update), **settings)


class Logged(Callback):
    """What was logged at the end of each iteration."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, stage):
        metrics = stage._loader.metrics
        self.rows.append(dict(metrics))


def fit(stage, *, seed=0, ckpt_path=None, data=None, callbacks=(), **settings):
    pl.seed_everything(seed, verbose=False)
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "gradient_clip_val": 1.0,
            "use_distributed_sampler": False,
        }
        | settings,
        callbacks=list(callbacks),
    )
    trainer.fit(stage, data or PromptModule(), ckpt_path=ckpt_path)
    return trainer
