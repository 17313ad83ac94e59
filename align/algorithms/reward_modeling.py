"""Reward modelling: a scalar head on a fine-tuned GPT learns which of two responses is preferred.

To follow a pair to its loss, read ``align/batches.py: PairBatch``, ``Reward.training_step`` here, then
``align/objectives/bradley_terry.py``.

Legend: B pairs of a batch, T tokens of a row.
"""

from typing import Any, NamedTuple

import torch

from align.adapters.lora import LoraConfig
from align.algorithms.module import Stage
from align.algorithms.starting_points import initial_network
from align.batches import PairBatch
from align.model.gpt import ScalarGPT
from align.model.packing import share_responses
from align.objectives import bradley_terry_loss
from align.rewards.functions import columns_read, load_reward
from align.rewards.reward import Reward as Judge
from align.training.defaults import REWARD_MODELING
from align.training.float64 import WideMetric, wide
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class ScoredPairs(NamedTuple):
    """Scores and losses of a batch.

    Attributes:
        chosen: ``[B]`` scores of the chosen responses.
        rejected: ``[B]`` scores of the rejected responses.
        loss: ``[B]`` nats; 0 on padding.
        real: ``[B]`` bool, False on padding.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    loss: torch.Tensor
    real: torch.Tensor


class Reward(Stage):
    """Bradley-Terry training on preference pairs (Stiennon et al. 2020, section 3.4; Ouyang et al. 2022, section 3.5).

    One step:
        1. One forward pass over the 2B rows of chosen and rejected responses, each prompt computed once.
        2. The score of each row at its last token. Only there do the last block and the head run.
        3. ``-log sigmoid(score chosen - score rejected)`` for each pair, summed over the pairs.
        4. Divide by the pairs of the whole optimizer step (``Stage.weighted``).
    When the model directory is written:
        5. Mean and standard deviation of the scores over responses of the SFT policy go into its manifest;
           ``load_reward`` normalises by them.

    Args:
        init_from: model or Hugging Face directory, GGUF file or Hub id of a language model, whose head is replaced by a
            new one, or of a reward model, which continues training; or an adapter directory, whose adapter continues
            training.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        margin: by how much the chosen score should exceed the rejected one.
        label_smoothing: probability that a label is flipped, in [0, 0.5).
        centering: coefficient of the penalty (chosen + rejected)^2, which keeps scores around 0; usually 0 or 0.01.
        gold: the reward whose order of the validation pairs is compared with the model's: sandbox, module:function,
            class path of a reward (its settings are its init_args) or a reward-model directory; None: no comparison.
        normalise_on: number of responses, from the validation pairs if there are any, else from the training pairs,
            whose scores give the manifest's mean and standard deviation; 0: do not normalise.
        head_seed: random seed of a new head.
        shared_prefix: compute each prompt once for both responses, without padding; faster, and equal up to
            floating-point rounding. Ignored with compile, which needs batches of few shapes.
        lora: train the head and adapters with these settings, and freeze the other weights; None: train all weights.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: settings that save memory.
        network: a network built in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given, or a setting is out of range.
    """

    network: ScalarGPT
    rate_rule = REWARD_MODELING

    def __init__(
        self,
        init_from: str | None = None,
        *,
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        margin: float = 0.0,
        label_smoothing: float = 0.0,
        centering: float = 0.0,
        gold: str | Judge | None = None,
        normalise_on: int = 512,
        head_seed: int = 0,
        shared_prefix: bool = True,
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: ScalarGPT | None = None,
    ) -> None:
        """Store the settings; the network is built in ``build``."""
        for name, value, holds, right in (
            ("margin", margin, margin >= 0, "at least 0"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "in [0, 0.5)"),
            ("centering", centering, centering >= 0, "at least 0"),
            ("normalise_on", normalise_on, normalise_on == 0 or normalise_on >= 2, "0 or at least 2"),
        ):
            if not holds:
                raise ValueError(f"{name} is {value}; it must be {right}")
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        self.margin, self.label_smoothing, self.centering = margin, label_smoothing, centering
        self.gold, self.normalise_on = gold, normalise_on
        self.shared_prefix = shared_prefix and not compile
        self._make = initial_network("Reward", init_from, network, ScalarGPT, lora, head_seed=head_seed)
        self._judge = None if gold is None else load_reward(gold)
        self._gold_margins: dict[tuple[str, int], float] = {}
        self.val_metric, self.test_metric = PairScores(), PairScores()

    def build(self) -> None:
        """Set the network."""
        self.network = self._make()

    def reward_columns(self, split: str) -> tuple[str, ...]:
        """Of the gold reward, in validation and test; see ``Stage``."""
        return columns_read([] if split == "train" else [self.gold])

    def setup(self, stage: str) -> None:
        """Check that the data module fits the settings.

        Raises:
            ValueError: it has no tokenizer (for gold) or no ``record_loader`` (for normalise_on), or does not fit the
                network (``Stage.setup``).
        """
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.gold is not None and getattr(data, "tokenizer", None) is None:
            raise ValueError(
                f"gold is {self.gold}, but {type(data).__name__} has no tokenizer to decode responses with"
            )
        if stage == "fit" and self.normalise_on and not hasattr(data, "record_loader"):
            raise ValueError(
                f"normalise_on is {self.normalise_on}, which needs the record_loader of PreferenceData, not "
                f"{type(data).__name__}; set it to 0 to leave scores unnormalised"
            )
        self._gold_margins.clear()

    def score(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Steps 1 and 2: scores ``[B]`` of the chosen and of the rejected responses.

        With ``shared_prefix``, a prompt or response that occurs in several pairs of a batch is computed once. Rows may
        be one token longer than the network's context; they are then scored at their last token but one.
        """
        context = self.network.config.context
        ids, lengths = batch.ids[:, :context], batch.lengths.clamp(max=context)
        if not self.shared_prefix:
            chosen, rejected = self.network.last_scores(ids, lengths).chunk(2)
            return chosen, rejected
        distinct = share_responses(ids, lengths, batch.prompt_lengths.repeat(2))
        scores = self.network.last_scores(distinct.ids, distinct.lengths, distinct.rows)[distinct.row_of]
        chosen, rejected = scores.chunk(2)
        return chosen, rejected

    def compare(self, batch: PairBatch) -> ScoredPairs:
        """Steps 1 to 3: scores and losses of a batch."""
        chosen, rejected = self.score(batch)
        loss = bradley_terry_loss(
            chosen,
            rejected,
            margin=self.margin or None,
            label_smoothing=self.label_smoothing,
            centering=self.centering,
        )
        real = batch.lengths[: len(chosen)] > 0
        return ScoredPairs(chosen, rejected, torch.where(real, loss, 0.0), real)

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch; see the class for the steps.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        scored = self.compare(batch)  # 1, 2, 3
        loss, pairs = scored.loss.sum(), scored.real.sum()
        share = scored.real / pairs.clamp(min=1)
        margin = (scored.chosen - scored.rejected).detach()
        accuracy = (ordered(margin) * wide(share)).sum().to(margin.device, torch.float32)
        means = {"loss": loss / pairs.clamp(min=1), "accuracy": accuracy}
        means = self.mean_over_ranks(means | {"margin": (margin * share).sum()}, pairs)
        for name, mean in means.items():
            self.log(f"train/{name}", mean, prog_bar=name != "margin")
        self.refuse_nonfinite(means["loss"])
        return self.weighted(loss, pairs)  # 4

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._add(batch, self.val_metric, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``, ``val/accuracy`` and the other values of ``PairScores``."""
        self._log_metric("val", self.val_metric)

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._add(batch, self.test_metric, "test")

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss``, ``test/accuracy`` and the other values of ``PairScores``."""
        self._log_metric("test", self.test_metric)

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, float]]:
        """Scores of each pair before normalisation, ``chosen`` and ``rejected``; padding is left out."""
        chosen, rejected = self.score(batch)
        rows = zip(chosen.tolist(), rejected.tolist(), batch.numbers.tolist(), strict=True)
        return [{"chosen": one, "rejected": other} for one, other, number in rows if number >= 0]

    @torch.no_grad()
    def manifest_extras(self) -> dict[str, Any]:
        """Step 5: ``reward_mean`` and ``reward_std`` (1 if all scores are equal) over ``reward_samples`` responses.

        The pairs of ``align preferences`` are samples of the SFT model, so both sides together represent its policy.
        """
        if not self.normalise_on:
            return {}
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        try:
            loader = data.record_loader("validation")
        except ValueError:
            loader = data.record_loader("train")
        training, found, count = self.network.training, [], 0
        self.network.eval()
        for batch in loader:
            moved = self.trainer.strategy.batch_to_device(batch, self.device)
            found.append(torch.stack(self.score(moved), dim=1)[moved.lengths[: len(batch.numbers)] > 0])
            count += found[-1].numel()
            if count >= self.normalise_on:
                break
        self.network.train(training)
        scores = wide(torch.cat(found)).flatten()[: self.normalise_on]
        std = scores.std(correction=0).item()
        return {"reward_mean": scores.mean().item(), "reward_std": std or 1.0, "reward_samples": len(scores)}

    def _add(self, batch: PairBatch, metric: "PairScores", split: str) -> None:
        scored = self.compare(batch)
        real = scored.real
        margins = None if self._judge is None else self._gold_margins_of(batch, self._judge, split)
        metric.update(scored.chosen[real], scored.rejected[real], scored.loss[real], margins)

    def _gold_margins_of(self, batch: PairBatch, judge: Judge, split: str) -> torch.Tensor:
        """Gold reward of chosen minus that of rejected, computed once per pair: ``[pairs without padding]`` float64."""
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        pairs = len(batch.numbers)
        numbers = batch.numbers.tolist()
        new = [row for row in range(pairs) if numbers[row] >= 0 and (split, numbers[row]) not in self._gold_margins]
        if new:
            rows = [*new, *(row + pairs for row in new)]
            texts = [tokenizer.decode(batch.ids[row][batch.mask[row]].tolist()) for row in rows]
            scores = judge([batch.prompts[row] for row in new] * 2, texts, [batch.columns[row] for row in new] * 2)
            for row, better, worse in zip(new, scores[: len(new)], scores[len(new) :], strict=True):
                self._gold_margins[split, numbers[row]] = better - worse
        margins = [self._gold_margins[split, number] for number in numbers if number >= 0]
        return torch.tensor(margins, dtype=torch.float64)

    def _log_metric(self, split: str, metric: "PairScores") -> None:
        values = metric.compute()
        metric.reset()
        shown = {"loss", "accuracy"}
        self.log_dict({f"{split}/{name}": value for name, value in values.items() if name in shown}, prog_bar=True)
        self.log_dict({f"{split}/{name}": value for name, value in values.items() if name not in shown})


class PairScores(WideMetric):
    """Accuracy, calibration and scores of a reward model over all pairs since the last reset."""

    full_state_update = False
    bins = 10
    """Bins of confidence between 0.5 and 1, for the calibration error."""
    wide = 0.2
    """Least gold margin of a pair that counts in ``gold_agreement_wide``, exclusive."""
    sums: torch.Tensor
    counts: torch.Tensor
    in_bin: torch.Tensor

    def __init__(self) -> None:
        """Start with no pairs."""
        super().__init__()
        # sums of loss, correct, margin, score, score squared; correct by gold, the same over wide pairs
        self.add_state("sums", torch.zeros(7, dtype=torch.float64), dist_reduce_fx="sum")
        # all pairs, pairs not tied in gold, pairs wide in gold
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        # pairs, correct and confidence by bin
        self.add_state("in_bin", torch.zeros(3, self.bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, chosen: torch.Tensor, rejected: torch.Tensor, loss: torch.Tensor, gold: torch.Tensor | None = None
    ) -> None:
        """Add pairs.

        Args:
            chosen: ``[B]`` scores of the chosen responses.
            rejected: ``[B]`` scores of the rejected responses.
            loss: ``[B]`` nats.
            gold: ``[B]`` float64, gold reward of chosen minus that of rejected; None: no gold reward.
        """
        margin = wide(chosen) - wide(rejected)
        correct = ordered(margin)
        scores = wide(torch.cat((chosen, rejected)))
        parts = [wide(loss), correct, margin, scores, scores.square()]
        # Confidence is in the order that the model predicts, not in the label: at least 0.5.
        confidence = margin.abs().sigmoid()
        number = ((confidence - 0.5) * 2 * self.bins).long().clamp(max=self.bins - 1)
        self.in_bin.index_add_(1, number, torch.stack((torch.ones_like(correct), correct, confidence)))
        self.counts[0] += len(margin)
        if gold is not None:
            gold = gold.to(self.device)
            for column, least in enumerate((0.0, self.wide), 1):
                decided = gold.abs() > least + 1e-9  # 0.9 - 0.7 is slightly above 0.2
                self.counts[column] += decided.sum()
                parts.append(ordered(margin * gold.sign())[decided])
        self.sums[: len(parts)] += torch.stack([part.sum() for part in parts])

    def compute(self) -> dict[str, torch.Tensor]:
        """Values since the last reset.

        Returns:
            dict: ``loss``, nats per pair; ``accuracy``, share of pairs ordered as labelled, ties counting half;
            ``margin``, mean of chosen - rejected; ``ece``, expected calibration error: mean distance between confidence
            and accuracy over bins of confidence; ``score_mean`` and ``score_std`` over all responses; with gold,
            ``gold_agreement``, share of pairs not tied in gold that are ordered as gold orders them, and
            ``gold_agreement_wide``, the same over pairs whose gold margin exceeds ``wide``.
        """
        pairs, untied, apart = self.counts
        loss, correct, margin, score, squared, agreed, agreed_wide = self.sums
        mean = score / (2 * pairs)
        values = {
            "loss": loss / pairs,
            "accuracy": correct / pairs,
            "margin": margin / pairs,
            "ece": (self.in_bin[1] - self.in_bin[2]).abs().sum() / pairs,
            "score_mean": mean,
            "score_std": (squared / (2 * pairs) - mean.square()).clamp(min=0).sqrt(),
        }
        if untied:
            values["gold_agreement"] = agreed / untied
        if apart:
            values["gold_agreement_wide"] = agreed_wide / apart
        return {name: value.float() for name, value in values.items()}


def ordered(margin: torch.Tensor) -> torch.Tensor:
    """1 if the margin is positive, 0.5 if it is 0, else 0: float64, in ``margin``'s shape."""
    return 0.5 * (1 + wide(margin).sign())
