"""Distillation on data: a student learns a teacher's distribution of each next token.

To follow a row to its loss, read ``Distill.divergence_loss``, then ``align/objectives/divergence.py``.
"""

import torch

from align.adapters.lora import LoraConfig
from align.algorithms.language_modeling import LanguageModelStage
from align.algorithms.starting_points import initial_network, load_start
from align.algorithms.teacher import check_networks, check_settings, data_tokenizer, divergence_at
from align.batches import TokenBatch
from align.model.gpt import GPT
from align.objectives import Divergence, ForwardKL, NextTokenLoss
from align.objectives.chunks import counted_positions
from align.training.float64 import WideMetric, wide
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class Distill(LanguageModelStage):
    """Trains a student on the teacher's distribution of each token of the data (Hinton et al. 2015, Kim and Rush 2016).

    The data is that of ``SFT`` or ``Pretrain``; the tokens that count are those that would count there.

    One step:
        1. hidden states of student and teacher before the tokens that count;
        2. divergence of their distributions, summed;
        3. divide by the counted tokens of the whole optimizer step (``Stage.weighted``).

    Args:
        init_from: the student: model or Hugging Face directory, GGUF file or Hub id; or an adapter directory, whose
            adapter continues training.
        teacher: as ``init_from``, of the same tokenizer.
        divergence: ForwardKL, ReverseKL, JensenShannon, or the class path of your own.
        temperature: divides the logits of both.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        lora: train adapters with these settings and freeze the student's weights; None: train the weights.
        compile: torch.compile the student; the first step then takes about a minute.
        memory: settings that save memory.
        network: a student built in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given, or the temperature is not above 0.
    """

    frozen_names = ("teacher",)

    def __init__(
        self,
        init_from: str | None = None,
        teacher: str = "",
        *,
        divergence: Divergence = ForwardKL(),  # noqa: B008 (frozen)
        temperature: float = 1.0,
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Store the settings; the networks are loaded in ``build``."""
        super().__init__(
            initial_network("Distill", init_from, network, GPT, lora),
            optimizer=optimizer,
            schedule=schedule,
            z_loss=0.0,
            compile=compile,
            parent=init_from,
            lora=lora,
            memory=memory,
        )
        check_settings("Distill", teacher, temperature)
        self.teacher_source, self.divergence, self.temperature = teacher, divergence, temperature
        self.work = {"flops": 0.0}
        self.val_divergence, self.test_divergence = MeanDivergence(), MeanDivergence()

    def build(self) -> None:
        """Load student and teacher."""
        super().build()
        self.teacher = load_start(self.teacher_source, GPT, None)

    def sources(self) -> dict[str, object]:
        """See ``Stage.sources``."""
        return {**super().sources(), "teacher": self.teacher_source}

    def setup(self, stage: str) -> None:
        """Check that data, student and teacher fit together; see ``Stage.setup``.

        Raises:
            ValueError: they don't, or the teacher's context is shorter than the rows.
        """
        super().setup(stage)
        check_networks(self, self.teacher_source, self.teacher)

    def divergence_loss(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Steps 1 and 2: the divergence ``[]`` of a batch, summed, and ``[]`` int64, the tokens that count."""
        states, _, counted = counted_positions(self.hidden(batch), batch.ids, batch.mask)
        with torch.no_grad():
            theirs = self.hidden(batch, self.teacher)[counted]
        loss = divergence_at(
            self.network,
            self.teacher,
            states,
            theirs,
            self.divergence,
            temperature=self.temperature,
            tokenizer=data_tokenizer(self),
        )
        return loss, counted.sum()

    def training_loss(self, batch: TokenBatch) -> NextTokenLoss:
        """Steps 1 and 2; what is logged as the loss is the divergence."""
        loss, tokens = self.divergence_loss(batch)
        rows, width = batch.ids.shape
        flops = self.teacher.flops_per_token(width, forward_only=True)
        self.work["flops"] += flops * rows * width * self.sharing.ranks
        return NextTokenLoss(loss, loss.detach(), tokens)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        super().validation_step(batch, batch_idx)
        self.val_divergence.update(*self.divergence_loss(batch))

    def on_validation_epoch_end(self) -> None:
        """Log ``val/divergence``, nats per token, and what other language models log."""
        super().on_validation_epoch_end()
        self.log("val/divergence", self.val_divergence.compute())
        self.val_divergence.reset()

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        super().test_step(batch, batch_idx)
        self.test_divergence.update(*self.divergence_loss(batch))

    def on_test_epoch_end(self) -> None:
        """Log ``test/divergence``, nats per token, and what other language models log."""
        super().on_test_epoch_end()
        self.log("test/divergence", self.test_divergence.compute())
        self.test_divergence.reset()


class MeanDivergence(WideMetric):
    """Divergence per token over all batches since the last reset, nats."""

    full_state_update = False
    total: torch.Tensor
    tokens: torch.Tensor

    def __init__(self) -> None:
        """Start with no tokens."""
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add a batch: its divergence, summed, and its tokens."""
        self.total += wide(total.detach())
        self.tokens += tokens.to(self.device)

    def compute(self) -> torch.Tensor:
        """Nats per token."""
        return (self.total / self.tokens).float()
