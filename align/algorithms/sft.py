"""Supervised fine-tuning: a pretrained GPT learns to respond, from the tokens of the assistant's turns only."""

from collections.abc import Sequence

from align.adapters.lora import LoraConfig
from align.algorithms.language_modeling import LanguageModelStage
from align.algorithms.starting_points import initial_network
from align.model.gpt import GPT
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class SFT(LanguageModelStage):
    """Next-token training on the assistant's turns of chats.

    Args:
        init_from: model or Hugging Face directory, GGUF file or Hub id to start from; or an adapter directory, whose
            adapter continues training.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        z_loss: coefficient of the squared log-partition, which is added to the loss; 0: none.
        add_tokens: names of special tokens to add to the tokenizer and the network, such as those of a chat template.
            Their rows start as the mean of all others and are trained, with lora too.
        lora: train adapters with these settings and freeze the weights; None: train the weights.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: settings that save memory.
        network: a network built in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given.
    """

    def __init__(
        self,
        init_from: str | None = None,
        *,
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        z_loss: float = 0.0,
        add_tokens: Sequence[str] = (),
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Store the settings; the network is loaded in ``build``."""
        super().__init__(
            initial_network("SFT", init_from, network, GPT, lora),
            optimizer=optimizer,
            schedule=schedule,
            z_loss=z_loss,
            compile=compile,
            parent=init_from,
            lora=lora,
            memory=memory,
            add_tokens=add_tokens,
        )
