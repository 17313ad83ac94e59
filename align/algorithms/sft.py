"""Supervised fine-tuning: a pretrained GPT learns to answer, from the tokens of the assistant's turns only."""

from align.adapters.lora import LoraConfig
from align.algorithms.language_modeling import LanguageModelStage
from align.algorithms.starting_points import load_start
from align.model.gpt import GPT
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class SFT(LanguageModelStage):
    """Next-token training on the assistant's turns of chats.

    Args:
        init_from: model directory, Hugging Face directory or Hub id to start from; or an adapter directory, whose
            adapter learns on.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        z_loss: coefficient of the squared log-partition added to the loss, 0 turns it off.
        lora: train adapters of these settings, the weights stay frozen; None: train the weights.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: what is given up for memory.
        network: a network made in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given.
    """

    def __init__(
        self,
        init_from: str | None = None,
        *,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        z_loss: float = 0.0,
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Keep the settings."""
        if (init_from is None) == (network is None):
            raise ValueError("SFT needs init_from: a model directory, a Hugging Face directory or a Hub id")

        def build() -> GPT:
            return network if network is not None else load_start(str(init_from), GPT, lora)

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
