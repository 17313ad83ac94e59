"""Pretraining: a fresh GPT, or one to go on with, learns next tokens of raw text."""

import torch

from align.adapters.lora import LoraConfig
from align.algorithms.language_modeling import LanguageModelStage
from align.algorithms.starting_points import load_start
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class Pretrain(LanguageModelStage):
    """Next-token training on documents.

    Args:
        gpt: shape of a fresh network.
        init_from: model directory, Hugging Face directory or Hub id to go on from, or an adapter directory,
            whose adapter learns on; then gpt must be left out.
        init_seed: seed of the fresh weights; None: the run's (seed_everything).
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        z_loss: coefficient of the squared log-partition added to the loss, 0 turns it off; 1e-4 is usual.
        lora: train adapters of these settings on init_from, whose weights stay frozen; None: train the weights.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: what is given up for memory.
        network: a network made in Python, instead of gpt and init_from.

    Raises:
        ValueError: not exactly one of gpt, init_from and network is given, or adapters are asked for on gpt.
    """

    def __init__(
        self,
        gpt: GPTConfig | None = None,
        init_from: str | None = None,
        *,
        init_seed: int | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        z_loss: float = 0.0,
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Keep the settings."""
        if (gpt is not None) + (init_from is not None) + (network is not None) != 1:
            raise ValueError(
                "Pretrain takes exactly one of gpt (a fresh network) and init_from (a model to go on from)"
            )
        if gpt is not None and lora is not None:
            raise ValueError(
                "lora learns beside trained weights, and gpt makes fresh ones: set init_from, or leave it out"
            )

        def build() -> GPT:
            if network is not None:
                return network
            if init_from is not None:
                return load_start(init_from, GPT, lora)
            assert gpt is not None
            fresh = GPT(gpt)
            fresh.initialise(torch.initial_seed() if init_seed is None else init_seed)
            return fresh

        super().__init__(
            build,
            optimizer=optimizer,
            schedule=schedule,
            z_loss=z_loss,
            compile=compile,
            parent=init_from,
            lora=lora,
            memory=memory,
        )
