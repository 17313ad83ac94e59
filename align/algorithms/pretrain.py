"""Pretraining: a new or an existing GPT learns the next tokens of raw text."""

from collections.abc import Sequence

import torch

from align.adapters.lora import LoraConfig
from align.algorithms.language_modeling import LanguageModelStage
from align.algorithms.starting_points import load_start
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.training.defaults import FINE_TUNING, PRETRAINING
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class Pretrain(LanguageModelStage):
    """Next-token training on documents.

    Args:
        gpt: configuration of a new network.
        init_from: model or Hugging Face directory, GGUF file or Hub id of a network that continues training, or an
            adapter directory, whose adapter does; instead of gpt.
        init_seed: random seed of new weights; None: the run's (seed_everything).
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        z_loss: coefficient of the squared log-partition, which is added to the loss; usually 0 or 1e-4.
        add_tokens: names of special tokens to add to the tokenizer and the network, such as those of a chat template.
            Their rows start as the mean of all others and are trained, with lora too.
        lora: train adapters with these settings on init_from and freeze its weights; None: train the weights.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: settings that save memory.
        network: a network built in Python, instead of gpt or init_from.

    Raises:
        ValueError: not exactly one of gpt, init_from and network is given, or lora is set with gpt.
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
        add_tokens: Sequence[str] = (),
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Store the settings; the network is built in ``build``."""
        if (gpt is not None) + (init_from is not None) + (network is not None) != 1:
            raise ValueError(
                "Pretrain needs exactly one of gpt (a new network) and init_from (one that continues training)"
            )
        if gpt is not None and lora is not None:
            raise ValueError(
                "lora is set, but gpt makes new weights, which would stay random: set init_from, or remove lora"
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
            add_tokens=add_tokens,
        )
        self.rate_rule = PRETRAINING if init_from is None else FINE_TUNING
