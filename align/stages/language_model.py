"""What pretraining and supervised fine-tuning share: one network, next-token loss weighted by tokens."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from align.batches import TokenBatch
from align.model import GPT
from align.objectives import NextTokenLoss, next_token_loss, row_nll
from align.stages.metrics import TokenLoss
from align.stages.optimization import OptimizerConfig, ScheduleConfig, build_optimizer, build_schedule


class LanguageModelStage(pl.LightningModule):
    """Trains a GPT on next tokens; Pretrain and SFT say where its weights come from.

    A step in order:
        1. seed torch from (seed, batch number, rank), so that a resumed run draws the same dropout;
        2. hidden states of ``ids[:, :-1]``;
        3. summed cross-entropy of the counted targets;
        4. the gradient is divided by the tokens of the whole optimizer step, over all micro-batches and ranks, so
           that accumulation and data parallelism give the gradient of one big batch;
        5. clip, AdamW, schedule: the Trainer's.
    """

    network: GPT

    def __init__(
        self,
        build: Callable[[], GPT],
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        z_loss: float,
        compile: bool,
        parent: str | None,
    ) -> None:
        """Keep the settings; the network is built in ``configure_model``, under the Trainer's strategy."""
        super().__init__()
        self._build = build
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.z_loss = z_loss
        self.compile_network = compile
        self.parent = parent
        self.val_metric, self.test_metric = TokenLoss(), TokenLoss()
        self._step_tokens: torch.Tensor | None = None

    def configure_model(self) -> None:
        """Build the network once."""
        if hasattr(self, "network"):
            return
        self.network = self._build()
        if self.compile_network:
            self.network.model.compile()

    def setup(self, stage: str) -> None:
        """Check that the network can read what the data writes.

        Raises:
            ValueError: the tokenizer has more ids than the network, or rows are longer than its context.
        """
        self.configure_model()
        data: Any = getattr(self.trainer, "datamodule", None)
        config, tokenizer = self.network.config, getattr(data, "tokenizer", None)
        rank_zero_info(
            f"network: {self.network.num_parameters():,} parameters, {config.layers} layers of width {config.width}, "
            f"context {config.context}, {self.network.flops_per_token(config.context) / 1e6:.1f} MFLOP a training token"
        )
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids but the network's vocab_size is {config.vocab_size}: "
                f"set vocab_size to at least {tokenizer.vocab_size}"
            )
        if getattr(data, "context", 0) > config.context:
            raise ValueError(
                f"data.context is {data.context} tokens but the network's context is {config.context}: "
                f"set data.context to at most {config.context}"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, stepped per optimizer step."""
        optimizer = build_optimizer(self.network.parameters(), self.optimizer_config)
        schedule = build_schedule(optimizer, self.schedule_config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Hidden states ``[B, T-1, D]`` of ``ids[:, :-1]``."""
        documents, positions = batch.documents, batch.positions
        return self.network.hidden(
            batch.ids[:, :-1],
            positions=None if positions is None else positions[:, :-1],
            documents=None if documents is None else documents[:, :-1],
        )

    def loss(self, batch: TokenBatch) -> NextTokenLoss:
        """Summed next-token loss of a batch."""
        return next_token_loss(
            self.hidden(batch), self.network.output_weight, batch.ids, batch.mask, z_loss=self.z_loss
        )

    def on_fit_start(self) -> None:
        """Remember the run's seed (``seed_everything``)."""
        self._seed = torch.initial_seed() % 2**31

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        """Make a batch's random draws a function of its number, so that nothing has to be saved to resume."""
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed((self._seed * 1_000_003 + number) * 4_099 + self.global_rank)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch; see the class for the steps.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        result = self.loss(batch)
        mean = result.nll / result.tokens.clamp(min=1)
        self.log("train/loss", mean, prog_bar=True)
        self._refuse_nonfinite(mean)
        self._step_tokens = result.tokens if self._step_tokens is None else self._step_tokens + result.tokens
        # One process and no accumulation: the tokens of the step are known now, and the gradient needs no second pass.
        return result.loss / result.tokens.clamp(min=1) if self._micro_batches == 1 else result.loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient by the tokens of the whole optimizer step."""
        assert self._step_tokens is not None
        tokens, self._step_tokens = self._step_tokens, None
        if self._micro_batches > 1:
            # Lightning divided by the accumulation and the ranks, as if every micro-batch had as many tokens.
            tokens = self.trainer.strategy.reduce(tokens, reduce_op="sum")
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, self._micro_batches / tokens.clamp(min=1))

    def _refuse_nonfinite(self, loss: torch.Tensor) -> None:
        """Stop on NaN or infinity; a GPU is asked only when its numbers are fetched for the log anyway."""
        step = self.trainer.global_step
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if loss.device.type != "cpu" and step % every:
            return
        if not torch.isfinite(loss):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise FloatingPointError(
                f"the training loss is {loss.item()} at optimizer step {step} (learning rate {lr:.3g}): the last "
                "checkpoint is from before it; lower optimizer.lr, lengthen schedule.warmup_steps or look at the data"
            )

    @property
    def _micro_batches(self) -> int:
        """Micro-batches of an optimizer step, over all ranks."""
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the validation sums."""
        result = self.loss(batch)
        self.val_metric.update(result.nll, result.tokens, batch.num_bytes)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``, ``val/perplexity`` and ``val/bits_per_byte``."""
        self._log_metric("val", self.val_metric)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the test sums."""
        result = self.loss(batch)
        self.test_metric.update(result.nll, result.tokens, batch.num_bytes)

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss``, ``test/perplexity`` and ``test/bits_per_byte``."""
        self._log_metric("test", self.test_metric)

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> list[dict[str, float]]:
        """What each row costs: ``nll`` nats, ``tokens`` counted and ``bytes`` of text; rows of padding are left out."""
        nll, tokens = row_nll(self.hidden(batch), self.network.output_weight, batch.ids, batch.mask)
        rows = zip(nll.tolist(), tokens.tolist(), batch.num_bytes.tolist(), strict=True)
        return [{"nll": cost, "tokens": count, "bytes": size} for cost, count, size in rows if count]

    def _log_metric(self, split: str, metric: TokenLoss) -> None:
        values: dict[str, Any] = metric.compute()
        metric.reset()
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, prog_bar=True)
