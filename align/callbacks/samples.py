"""Text samples while a network trains: numbers hide what a sentence shows."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from align.model import GPT, SamplingConfig, generate
from align.model.parallel import gathered, is_sharded
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Prompt, encode_prompt


class TextSample(NamedTuple):
    """A response as text.

    Attributes:
        text: the decoded response, special tokens left out.
        tokens: how many tokens were sampled, a stop token included.
        finished: ended by a stop token, not by the length.
    """

    text: str
    tokens: int
    finished: bool


def sample_texts(
    network: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    *,
    seed: int | Sequence[int],
    chat: bool | None = None,
) -> list[TextSample]:
    """One response to each prompt, all in one batch.

    Args:
        network: samples in eval mode.
        tokenizer: the network's own.
        prompts: what to answer or continue.
        sampling: temperature, truncation and length.
        seed: response i draws from seed + i, or from the i-th of as many seeds.
        chat: as in ``encode_prompt``.

    Returns:
        list[TextSample]: as many as prompts, in order.
    """
    ids = [encode_prompt(tokenizer, prompt, chat=chat) for prompt in prompts]
    return sample_continuations(network, tokenizer, ids, sampling, seed=seed)


def sample_continuations(
    network: GPT,
    tokenizer: Tokenizer,
    ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seed: int | Sequence[int],
) -> list[TextSample]:
    """As ``sample_texts``, of prompts that are already ids."""
    seeds = list(range(seed, seed + len(ids))) if isinstance(seed, int) else seed
    stop = tokenizer.stop_ids
    samples = generate(network, ids, sampling, stop_ids=stop, seeds=seeds, pad_id=tokenizer.pad_id or 0)
    out = []
    for row, mask, finished in zip(
        samples.ids.tolist(), samples.mask.sum(1).tolist(), samples.finished.tolist(), strict=True
    ):
        out.append(TextSample(tokenizer.decode(row[:mask]), mask, finished))
    return out


def validating_in_fit(trainer: pl.Trainer) -> bool:
    """Whether a validation is one of training's, and not the sanity check or ``align validate``."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


class TextSamples(pl.Callback):
    """Appends responses to fixed prompts to ``samples.jsonl`` after each validation.

    Args:
        prompts: what to answer (chat) or continue (not chat); an empty list turns the callback off.
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
        """Keep the settings."""
        self.prompts = list(prompts or [])
        self.chat = chat
        self.sampling = sampling
        self.seed = seed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sample and write."""
        tokenizer = getattr(trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if not validating_in_fit(trainer) or not self.prompts or tokenizer is None:
            return
        network: Any = pl_module.network
        if not trainer.is_global_zero and not is_sharded(network):
            return
        with gathered(network) as network:
            texts = sample_texts(network, tokenizer, self.prompts, self.sampling, seed=self.seed, chat=self.chat)
        if trainer.is_global_zero:
            self._write(trainer, texts)

    def _write(self, trainer: pl.Trainer, texts: list[TextSample]) -> None:
        step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for i, (prompt, sample) in enumerate(zip(self.prompts, texts, strict=True)):
                    logger.experiment.add_text(f"samples/{i}", f"{prompt}\n\n---\n\n{sample.text}", step)
        path = Path(trainer.default_root_dir) / "samples.jsonl"
        earlier = (
            [line for line in path.read_text().splitlines() if json.loads(line)["step"] < step]
            if path.is_file()
            else []
        )
        fresh = [
            json.dumps({"step": step, "prompt": prompt, **sample._asdict(), "sampling": asdict(self.sampling)})
            for prompt, sample in zip(self.prompts, texts, strict=True)
        ]
        path.write_text("\n".join(earlier + fresh) + "\n")
