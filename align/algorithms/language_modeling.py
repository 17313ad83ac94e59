"""Next-token training, which pretraining and supervised fine-tuning share.

To follow a row of tokens to its loss, read ``align/batches.py: TokenBatch``, ``LanguageModelStage.training_step`` here,
then ``align/objectives/cross_entropy.py``.

Legend: B rows, T tokens, D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from align.adapters.lora import LoraConfig
from align.adapters.token_rows import train_rows
from align.algorithms.module import Stage
from align.batches import TokenBatch
from align.io.location import locate
from align.io.manifest import is_adapter
from align.model.gpt import GPT
from align.model.vocabulary import extend_vocabulary
from align.objectives import NextTokenLoss, next_token_loss, row_nll
from align.tokenizer import Tokenizer
from align.training.float64 import WideMetric, wide
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class LanguageModelStage(Stage):
    """Trains a GPT on next tokens; Pretrain and SFT provide the network.

    One step:
        1. Seed torch with (seed, batch number, rank), so that a resumed run draws the same dropout masks
           (``Stage.on_train_batch_start``).
        2. Hidden states of ``ids[:, :-1]``.
        3. Cross-entropy, summed over the tokens that count.
        4. Divide by the counted tokens of the whole optimizer step (``Stage.weighted``).
    """

    network: GPT

    def __init__(
        self,
        make: Callable[[], GPT],
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        z_loss: float,
        compile: bool,
        parent: str | None,
        memory: MemoryConfig,
        lora: LoraConfig | None = None,
        add_tokens: Sequence[str] = (),
    ) -> None:
        """Store the settings; ``make`` returns the network, and is called under the Trainer's strategy.

        Raises:
            ValueError: ``add_tokens`` is set, but ``parent`` has no vocabulary to add to, or is an adapter.
        """
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=parent, lora=lora, memory=memory, compile=compile
        )
        if add_tokens and (parent is None or is_adapter(parent)):
            raise ValueError(
                f"add_tokens is {list(add_tokens)}, which needs init_from with a whole model and its tokenizer; it is "
                f"{parent}"
            )
        self._make, self.add_tokens, self._new_ids = make, tuple(add_tokens), list[int]()
        self.z_loss = z_loss
        self.val_metric, self.test_metric = TokenLoss(), TokenLoss()

    def build(self) -> None:
        """Set the network, with rows for ``add_tokens``."""
        self.network = self._make()
        if self.add_tokens:
            before = Tokenizer.load(locate(str(self.parent)))
            after = before.with_added_tokens(self.add_tokens)
            known, every = (tokenizer.real_ids.nonzero()[0].tolist() for tokenizer in (before, after))
            self._new_ids = sorted(set(every) - set(known))
            extend_vocabulary(self.network, known=known, added=self._new_ids)

    def add_adapters(self) -> None:
        """Adapters, beside which the rows of new tokens are trained too; see ``Stage.add_adapters``.

        Raises:
            ValueError: the other rows would not stay as they are.
        """
        super().add_adapters()
        if self.adapter_record is None or not self._new_ids:
            return
        if self.optimizer_config.weight_decay:
            raise ValueError(
                f"optimizer.weight_decay is {self.optimizer_config.weight_decay}, which would decay the rows of all "
                "tokens; set it to 0, as add_tokens is set with lora"
            )
        if self.device_mesh is not None:
            raise ValueError("add_tokens is set with lora, which can't be sharded: use ddp, or train all weights")
        train_rows(self.network, self._new_ids)

    def setup(self, stage: str) -> None:
        """Check that the data is tokenized with ``add_tokens``; see ``Stage.setup``.

        Raises:
            ValueError: it is not.
        """
        super().setup(stage)
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        if self.add_tokens and tokenizer is not None:
            have = {token.content for token in tokenizer.spec.added}
            if missing := [name for name in self.add_tokens if name not in have]:
                raise ValueError(
                    f"add_tokens has {missing[0]!r}, which the data's tokenizer lacks: set the data module's tokenizer "
                    "to tokenizer.with_added_tokens(add_tokens) before the Trainer starts"
                )

    def hidden(self, batch: TokenBatch, network: GPT | None = None) -> torch.Tensor:
        """Step 2: hidden states ``[B, T-1, D]`` of ``ids[:, :-1]``, by default of the network that trains."""
        documents, positions = batch.documents, batch.positions
        return (network or self.network).hidden(
            batch.ids[:, :-1],
            positions=None if positions is None else positions[:, :-1],
            documents=None if documents is None else documents[:, :-1],
        )

    def loss(self, batch: TokenBatch) -> NextTokenLoss:
        """Steps 2 and 3: next-token loss of a batch, summed."""
        network = self.network
        return next_token_loss(
            self.hidden(batch),
            network.output_weight,
            batch.ids,
            batch.mask,
            softcap=network.softcap,
            z_loss=self.z_loss,
        )

    def training_loss(self, batch: TokenBatch) -> NextTokenLoss:
        """Steps 2 and 3 of training."""
        return self.loss(batch)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch; see the class for the steps.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        result = self.training_loss(batch)  # 2, 3
        mean = result.nll / result.tokens.clamp(min=1)
        mean = self.mean_over_ranks({"loss": mean}, result.tokens)["loss"]
        self.log("train/loss", mean, prog_bar=True)
        self.refuse_nonfinite(mean)
        return self.weighted(result.loss, result.tokens)  # 4

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        result = self.loss(batch)
        self.val_metric.update(result.nll, result.tokens, batch.num_bytes)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``, ``val/perplexity`` and ``val/bits_per_byte``."""
        self._log_metric("val", self.val_metric)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        result = self.loss(batch)
        self.test_metric.update(result.nll, result.tokens, batch.num_bytes)

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss``, ``test/perplexity`` and ``test/bits_per_byte``."""
        self._log_metric("test", self.test_metric)

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> list[dict[str, float]]:
        """``nll`` (nats), counted ``tokens`` and ``bytes`` of text of each row; padding is left out."""
        network = self.network
        nll, tokens = row_nll(self.hidden(batch), network.output_weight, batch.ids, batch.mask, softcap=network.softcap)
        rows = zip(nll.tolist(), tokens.tolist(), batch.num_bytes.tolist(), strict=True)
        return [{"nll": cost, "tokens": count, "bytes": size} for cost, count, size in rows if count]

    def _log_metric(self, split: str, metric: "TokenLoss") -> None:
        values: dict[str, Any] = metric.compute()
        metric.reset()
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, prog_bar=True)


class TokenLoss(WideMetric):
    """Loss per token, perplexity and bits per byte over all batches since the last reset.

    A ratio of sums over batches and ranks, not a mean of means, so every token has the same weight.
    """

    full_state_update = False
    nll: torch.Tensor
    tokens: torch.Tensor
    bytes: torch.Tensor

    def __init__(self) -> None:
        """Start with no tokens."""
        super().__init__()
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: torch.Tensor, tokens: torch.Tensor, num_bytes: torch.Tensor) -> None:
        """Add a batch.

        Args:
            nll: ``[]`` summed negative log-likelihood, nats.
            tokens: ``[]`` int64, number of counted targets.
            num_bytes: ``[B]`` int64, UTF-8 bytes of those targets in each row.
        """
        self.nll += wide(nll)
        self.tokens += tokens.to(self.device)
        self.bytes += num_bytes.sum().to(self.device)

    def compute(self) -> dict[str, torch.Tensor]:
        """Values since the last reset.

        Returns:
            dict: ``loss``, nats per token; ``perplexity``, exp(loss); ``bits_per_byte``, nats / (ln 2 x bytes).
        """
        loss = self.nll / self.tokens
        bits_per_byte = self.nll / (math.log(2) * self.bytes)
        return {"loss": loss.float(), "perplexity": loss.exp().float(), "bits_per_byte": bits_per_byte.float()}
