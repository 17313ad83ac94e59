"""Reward modelling: a scalar head on a fine-tuned GPT learns which of two answers people prefer.

Legend: B pairs of a batch, T tokens of a row.
"""

from typing import Any, NamedTuple

import torch
from torchmetrics import Metric

from align.adapters.lora import LoraConfig
from align.algorithms.module import Stage
from align.algorithms.starting_points import load_start
from align.batches import PairBatch
from align.model.gpt import ScalarGPT
from align.model.packing import share_responses
from align.objectives import bradley_terry_loss
from align.rewards.base import Reward as Judge
from align.rewards.functions import load_reward
from align.training.memory import MemoryConfig
from align.training.optimization import OptimizerConfig, ScheduleConfig


class PairScores(Metric):
    """How a reward model orders pairs, and how sure it is, over everything since the last reset."""

    full_state_update = False
    bins = 10
    """Of confidence between 0.5 and 1, for the calibration error"""
    wide = 0.2
    """By how much gold must differ for a pair to count as widely apart"""
    sums: torch.Tensor
    counts: torch.Tensor
    in_bin: torch.Tensor

    def __init__(self) -> None:
        """Start from nothing."""
        super().__init__()
        # loss, correct, margin, score, score squared; then correct by gold, and the same of wide pairs
        self.add_state("sums", torch.zeros(7, dtype=torch.float64), dist_reduce_fx="sum")
        # pairs, pairs untied in gold, pairs wide in gold
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        # pairs, correct, confidence of each bin
        self.add_state("in_bin", torch.zeros(3, self.bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, chosen: torch.Tensor, rejected: torch.Tensor, loss: torch.Tensor, gold: torch.Tensor | None = None
    ) -> None:
        """Add pairs.

        Args:
            chosen: ``[B]`` scores of the preferred responses.
            rejected: ``[B]`` scores of the others.
            loss: ``[B]`` nats.
            gold: ``[B]`` float64, by how much chosen is better in truth; None where nobody knows.
        """
        margin = chosen.double() - rejected.double()
        correct = ordered(margin)
        scores = torch.cat((chosen, rejected)).double()
        parts = [loss.double(), correct, margin, scores, scores.square()]
        # Whoever orders the pairs, the network is sure of its own order with at least 0.5.
        confidence = margin.abs().sigmoid()
        number = ((confidence - 0.5) * 2 * self.bins).long().clamp(max=self.bins - 1)
        self.in_bin.index_add_(1, number, torch.stack((torch.ones_like(correct), correct, confidence)))
        self.counts[0] += len(margin)
        if gold is not None:
            for place, least in enumerate((0.0, self.wide), 1):
                told = gold.abs() > least + 1e-9  # 0.9 - 0.7 is a little above 0.2
                self.counts[place] += told.sum()
                parts.append(ordered(margin * gold.sign())[told])
        self.sums[: len(parts)] += torch.stack([part.sum() for part in parts])

    def compute(self) -> dict[str, torch.Tensor]:
        """Values since the last reset.

        Returns:
            dict: ``loss`` nats per pair; ``accuracy``, share of pairs ordered as labelled, a tie counting half;
            ``margin``, mean lead of chosen; ``ece``, expected calibration error: mean distance of confidence from
            the share of correct pairs, over bins of confidence; ``score_mean`` and ``score_std`` of all responses;
            where gold was given ``gold_agreement``, share of pairs untied in gold that are ordered as it does, and
            ``gold_agreement_wide``, the same where gold differs by more than ``wide``.
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
    """1 where the margin is positive, 0.5 where it is 0, else 0: float64 of ``margin``'s shape."""
    return 0.5 * (1 + margin.double().sign())


class ScoredPairs(NamedTuple):
    """What the network makes of a batch.

    Attributes:
        chosen: ``[B]`` scores of the preferred responses.
        rejected: ``[B]`` scores of the others.
        loss: ``[B]`` nats; 0 on padding.
        real: ``[B]`` bool, False on pairs that only fill up the batch.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    loss: torch.Tensor
    real: torch.Tensor


class Reward(Stage):
    """Bradley-Terry training on preference pairs (Stiennon et al. 2020, section 3.4; Ouyang et al. 2022, section 3.5).

    A step in order:
        1. one forward over the 2 B rows of chosen and rejected responses, each prompt once;
        2. the score of each row at its last real token: only there does the last block run, and the head;
        3. per pair ``-log sigmoid(score chosen - score rejected)``, summed over real pairs;
        4. the loss (with accumulation the gradient) is divided by the pairs of the whole optimizer step, over
           all micro-batches and ranks;
        5. clip, AdamW, schedule: the Trainer's.
    When the model directory is written:
        6. mean and standard deviation of the raw scores over responses of the SFT policy go into its manifest, by
           which ``load_reward`` normalises.

    Args:
        init_from: model directory, Hugging Face directory or Hub id: a language model, whose head is replaced by a
            fresh one, or a reward model to go on from; or an adapter directory, whose adapter learns on.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        margin: by how much the chosen score should lead.
        label_smoothing: probability that a label is the wrong way round, in [0, 0.5).
        centering: coefficient of the penalty (chosen + rejected)^2, which keeps scores around 0; 0 turns it off, 0.01
            is usual.
        gold: what the order of validation pairs is also compared with, without label noise: sandbox, module:function
            or a reward-model directory; None: nothing.
        normalise_on: responses of validation pairs (of training pairs, where there is no validation data) whose scores
            give mean and standard deviation of the manifest; 0 turns it off.
        head_seed: of the fresh head.
        shared_prefix: compute each prompt once for both responses, and no padding; the same numbers to rounding,
            sooner. Without effect under compile, which wants rows of few shapes.
        lora: train adapters of these settings and the head, the trunk stays frozen; None: train all.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: what is given up for memory.
        network: a network made in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given, or a setting is impossible.
    """

    network: ScalarGPT

    def __init__(
        self,
        init_from: str | None = None,
        *,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        margin: float = 0.0,
        label_smoothing: float = 0.0,
        centering: float = 0.0,
        gold: str | None = None,
        normalise_on: int = 512,
        head_seed: int = 0,
        shared_prefix: bool = True,
        lora: LoraConfig | None = None,
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: ScalarGPT | None = None,
    ) -> None:
        """Keep the settings."""
        if (init_from is None) == (network is None):
            raise ValueError("Reward needs init_from: a model directory, a Hugging Face directory or a Hub id")
        for name, value, holds, right in (
            ("margin", margin, margin >= 0, "at least 0"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "in [0, 0.5)"),
            ("centering", centering, centering >= 0, "at least 0"),
            ("normalise_on", normalise_on, normalise_on == 0 or normalise_on >= 2, "0 or at least 2"),
        ):
            if not holds:
                raise ValueError(f"{name} is {value}: it must be {right}")
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        self.margin, self.label_smoothing, self.centering = margin, label_smoothing, centering
        self.gold, self.normalise_on = gold, normalise_on
        self.shared_prefix = shared_prefix and not compile
        # A closure: as an attribute the network would be a second submodule.
        self._make = lambda: (
            network if network is not None else load_start(str(init_from), ScalarGPT, lora, head_seed=head_seed)
        )
        self._judge = None if gold is None else load_reward(gold)
        self._gold_leads: dict[tuple[str, int], float] = {}
        self.val_metric, self.test_metric = PairScores(), PairScores()

    def build(self) -> None:
        """Set the network."""
        self.network = self._make()

    def setup(self, stage: str) -> None:
        """Check that the data has what the settings need, besides what every stage checks.

        Raises:
            ValueError: it has no tokenizer (gold) or no pairs in order (normalise_on), or the network can't read it.
        """
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.gold is not None and getattr(data, "tokenizer", None) is None:
            raise ValueError("gold is set but the data has no tokenizer to decode the responses with")
        if stage == "fit" and self.normalise_on and not hasattr(data, "pair_loader"):
            raise ValueError(
                "normalise_on needs the pair_loader of PreferenceData; set it to 0 to leave scores as they are"
            )
        self._gold_leads.clear()

    def score(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores ``[B]`` of the chosen and of the rejected responses.

        An answer that several pairs of a batch compare is computed once, and so is each prompt. Rows may hold one token
        more than the network reads at once; the score is then taken one token earlier.
        """
        context = self.network.config.context
        ids, lengths = batch.ids[:, :context], batch.lengths.clamp(max=context)
        if not self.shared_prefix:
            chosen, rejected = self.network.last_scores(ids, lengths).chunk(2)  # 1, 2
            return chosen, rejected
        distinct = share_responses(ids, lengths, batch.prompt_lengths.repeat(2))
        scores = self.network.last_scores(distinct.ids, distinct.lengths, distinct.rows)[distinct.row_of]
        chosen, rejected = scores.chunk(2)  # 1, 2
        return chosen, rejected

    def compare(self, batch: PairBatch) -> ScoredPairs:
        """Scores and losses of a batch."""
        chosen, rejected = self.score(batch)
        loss = bradley_terry_loss(  # 3
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
        scored = self.compare(batch)
        loss, pairs = scored.loss.sum(), scored.real.sum()
        share = scored.real / pairs.clamp(min=1)
        lead = (scored.chosen - scored.rejected).detach()
        means = {"loss": loss / pairs.clamp(min=1), "accuracy": (ordered(lead) * share).sum().float()}
        means = self.mean_over_ranks(means | {"margin": (lead * share).sum()}, pairs)
        for name, mean in means.items():
            self.log(f"train/{name}", mean, prog_bar=name != "margin")
        self.refuse_nonfinite(means["loss"])
        return self.weighted(loss, pairs)  # 4

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the validation sums."""
        self._add(batch, self.val_metric, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``, ``val/accuracy`` and the others of ``PairScores``."""
        self._log_metric("val", self.val_metric)

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the test sums."""
        self._add(batch, self.test_metric, "test")

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss``, ``test/accuracy`` and the others of ``PairScores``."""
        self._log_metric("test", self.test_metric)

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, float]]:
        """The raw scores of each pair, ``chosen`` and ``rejected``; pairs of padding are left out."""
        chosen, rejected = self.score(batch)
        rows = zip(chosen.tolist(), rejected.tolist(), batch.numbers.tolist(), strict=True)
        return [{"chosen": one, "rejected": other} for one, other, number in rows if number >= 0]

    @torch.no_grad()
    def manifest_extras(self) -> dict[str, Any]:
        """Step 6: ``reward_mean`` and ``reward_std`` (1 where all scores are equal) of ``reward_samples`` responses.

        ``align preferences`` makes pairs of the SFT model's own samples, so both sides together are the SFT policy.
        """
        if not self.normalise_on:
            return {}
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        try:
            loader = data.pair_loader("validation")
        except ValueError:
            loader = data.pair_loader("train")
        training, found, count = self.network.training, [], 0
        self.network.eval()
        for batch in loader:
            moved = self.trainer.strategy.batch_to_device(batch, self.device)
            found.append(torch.stack(self.score(moved), dim=1)[moved.lengths[: len(batch.numbers)] > 0])
            count += found[-1].numel()
            if count >= self.normalise_on:
                break
        self.network.train(training)
        scores = torch.cat(found).double().flatten()[: self.normalise_on]
        std = scores.std(correction=0).item()
        return {"reward_mean": scores.mean().item(), "reward_std": std or 1.0, "reward_samples": len(scores)}

    def _add(self, batch: PairBatch, metric: PairScores, split: str) -> None:
        scored = self.compare(batch)
        real = scored.real
        leads = None if self._judge is None else self._gold(batch, self._judge, split).to(real.device)
        metric.update(scored.chosen[real], scored.rejected[real], scored.loss[real], leads)

    def _gold(self, batch: PairBatch, judge: Judge, split: str) -> torch.Tensor:
        """By how much chosen is better by gold: ``[real pairs]`` float64; asked once a pair."""
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        pairs = len(batch.numbers)
        numbers = batch.numbers.tolist()
        new = [row for row in range(pairs) if numbers[row] >= 0 and (split, numbers[row]) not in self._gold_leads]
        if new:
            rows = [*new, *(row + pairs for row in new)]
            texts = [tokenizer.decode(batch.ids[row][batch.mask[row]].tolist()) for row in rows]
            scores = judge([batch.prompts[row] for row in new] * 2, texts)
            for row, better, worse in zip(new, scores[: len(new)], scores[len(new) :], strict=True):
                self._gold_leads[split, numbers[row]] = better - worse
        leads = [self._gold_leads[split, number] for number in numbers if number >= 0]
        return torch.tensor(leads, dtype=torch.float64)

    def _log_metric(self, split: str, metric: PairScores) -> None:
        values = metric.compute()
        metric.reset()
        shown = {"loss", "accuracy"}
        self.log_dict({f"{split}/{name}": value for name, value in values.items() if name in shown}, prog_bar=True)
        self.log_dict({f"{split}/{name}": value for name, value in values.items() if name not in shown})
