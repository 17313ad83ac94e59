"""Text samples during training."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from align.generation.responses import Responses, sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.tokenizer.prompts import encode_prompt
from align.training.sharding import gathered, is_sharded
from align.training.trainer_state import validating_in_fit


class TextSamples(pl.Callback):
    """Appends responses to fixed prompts to ``samples.jsonl`` after each validation.

    Args:
        prompts: user messages (chat) or texts to continue; an empty list turns the callback off.
        chat: the prompts are user messages of a chat.
        sampling: temperature, truncation and length.
        seed: of the samples, the same at each validation, so that only the network changes.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        *,
        chat: bool = False,
        sampling: SamplingConfig = SamplingConfig(max_new_tokens=64),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        """Store the settings."""
        self.prompts = list(prompts or [])
        self.chat = chat
        self.sampling = sampling
        self.seed = seed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sample and write."""
        tokenizer = getattr(trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if not validating_in_fit(trainer) or trainer.fast_dev_run or not self.prompts or tokenizer is None:  # type: ignore[attr-defined]
            return
        network: Any = pl_module.network
        if not trainer.is_global_zero and not is_sharded(network):
            return
        with gathered(network) as network:
            ids = [encode_prompt(tokenizer, prompt, chat=self.chat) for prompt in self.prompts]
            seeds = [response_seed(self.seed, number) for number in range(len(ids))]
            sampled = sample_responses(network, tokenizer, ids, self.sampling, seeds=seeds)
        if trainer.is_global_zero:
            self._write(trainer, sampled)

    def _write(self, trainer: pl.Trainer, sampled: Responses) -> None:
        step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for i, (prompt, text) in enumerate(zip(self.prompts, sampled.texts, strict=True)):
                    logger.experiment.add_text(f"samples/{i}", f"{prompt}\n\n---\n\n{text}", step)
        path = Path(trainer.default_root_dir) / "samples.jsonl"
        earlier = (
            [line for line in path.read_text().splitlines() if json.loads(line)["step"] < step]
            if path.is_file()
            else []
        )
        fresh = [
            json.dumps({"step": step, "prompt": prompt, **record, "sampling": asdict(self.sampling)})
            for prompt, record in zip(self.prompts, sampled.records(), strict=True)
        ]
        path.write_text("\n".join(earlier + fresh) + "\n")
