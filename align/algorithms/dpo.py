"""Direct preference optimization: a policy learns from pairs which answer is better, with no reward model between."""

import copy
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric

from align.adapters.lora import LoraConfig, adapters
from align.algorithms.module import Stage
from align.algorithms.policy_evaluation import Probe, ProbeConfig
from align.algorithms.reference_logprobs import network_fingerprint, pair_logprobs, reference_table
from align.algorithms.starting_points import load_start, reference_view, refuse_dropout, start_fingerprint
from align.batches import PairBatch
from align.model.gpt import GPT
from align.objectives import PairLogprobs, PreferenceLoss, check_preference_settings, needs_reference, preference_loss
from align.training.lightning_internals import batch_index
from align.training.memory import MemoryConfig, without_dropout
from align.training.optimization import OptimizerConfig, ScheduleConfig

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Nats per token by which policy and reference may differ at step 0, by the precision of products: layouts differ"""

_TOLERANCE_16 = 0.05

_NAMES = ("loss", "accuracy", "margin", "logprob_chosen", "logprob_rejected", "reward_chosen", "reward_rejected")


class DPO(Stage):
    """Trains a policy on preference pairs with a loss of the DPO family.

    Args:
        init_from: model directory, Hugging Face directory or Hub id of the policy's start; or an adapter directory,
            whose adapter learns on.
        reference: the same of the reference; None: the policy's start. Beside adapters that is their base, which costs
            no memory, or where init_from brings an adapter the base with a frozen copy of it.
        loss: sigmoid, cdpo, robust, ipo, ipo_sum, hinge, simpo, orpo or length_normalised; see docs/dpo.md.
        beta: how much a nat of log-ratio counts; larger keeps the policy closer to the reference.
        label_smoothing: share of labels taken to be wrong, for cdpo and robust.
        gamma: target margin of simpo.
        sft_coef: weight of the chosen answer's negative log-likelihood per token, added to the loss.
        reference_logprobs: precomputed: once, before training, cached on disk; on_the_fly: in every step.
        shared_prefix: compute each prompt once for both answers; the same numbers to rounding, sooner. Without effect
            under compile, which wants rows of few shapes.
        other_reference: allow a reference that is not the policy's start; without it that is an error.
        probe: samples of the policy's own, at each validation.
        lora: train adapters of these settings, the weights stay frozen; None: train the weights.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: what is given up for memory.
        network: a network made in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given, or a setting is impossible.

    A step in order:
        1. summed log-probs of both answers under the reference: looked up, or computed;
        2. the same under the policy;
        3. the loss of each pair;
        4. in the first step of a fresh run: policy and reference agree, so the loss is what it is at margin 0 (ln 2);
        5. the sum over pairs, divided by the pairs of the whole optimizer step (``Stage.weighted``).
    """

    network: GPT
    reference: GPT | None
    frozen_names = ("reference",)

    def __init__(
        self,
        init_from: str | None = None,
        *,
        reference: str | None = None,
        loss: str = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        gamma: float | None = None,
        sft_coef: float = 0.0,
        reference_logprobs: Literal["precomputed", "on_the_fly"] = "precomputed",
        shared_prefix: bool = True,
        other_reference: bool = False,
        probe: ProbeConfig = ProbeConfig(),  # noqa: B008 (frozen)
        lora: LoraConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Keep the settings."""
        if (init_from is None) == (network is None):
            raise ValueError("DPO needs init_from: a model directory, a Hugging Face directory or a Hub id")
        self._strength: dict[str, Any] = {
            "beta": beta, "label_smoothing": label_smoothing, "gamma": gamma, "sft_coef": sft_coef
        }  # fmt: skip
        check_preference_settings(loss, **self._strength)
        if reference_logprobs not in ("precomputed", "on_the_fly"):
            raise ValueError(f"reference_logprobs is {reference_logprobs!r}: it must be precomputed or on_the_fly")
        refuse_dropout(lora, "DPO")
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        self.init_from, self.reference_source, self._given = init_from, reference, network
        self.loss_name, self.compares = loss, needs_reference(loss)
        self.precomputed, self.shared_prefix = reference_logprobs == "precomputed", shared_prefix and not compile
        self.other_reference, self.probe_config = other_reference, probe
        self.val_pairs, self.test_pairs, self.probe = PairMeans(), PairMeans(), Probe(probe)
        self._tables: dict[str, torch.Tensor] = {}

    def build(self) -> None:
        """Set the policy, and the reference where something asks for more than its cached log-probs."""
        given = self._given
        self.network = without_dropout(given if given is not None else load_start(str(self.init_from), GPT, self.lora))
        only_cached = self.precomputed or not self.compares
        has_source = self.init_from is not None or self.reference_source is not None
        self.reference = None
        if self._adapted and self.reference_source is None:
            self.reference = reference_view(self.network)
            return
        # A network made in Python can't be read again once training has moved it.
        if not only_cached or self.probe_config.prompts or not has_source:
            self.reference = self._make_reference(start=self.network)

    def on_fit_start(self) -> None:
        """Have the reference log-probs of the training pairs."""
        super().on_fit_start()
        self._have_table("train")

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch; see the class for the steps.

        Raises:
            FloatingPointError: the loss is not finite.
            ValueError: at step 0, the reference is not the policy's start.
        """
        pairs, result = self._outcome("train", batch)
        real = batch.numbers >= 0
        if self.compares and batch_index(self.trainer) == 0:
            self._check_start(pairs, result, real)
        loss = result.loss.where(real, 0).sum()
        count = real.sum()
        values = pair_values(pairs, result).where(real, 0).sum(1) / count.clamp(min=1)
        means = self.mean_over_ranks(dict(zip(_NAMES, values, strict=True)), count)
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.refuse_nonfinite(means["loss"])
        return self.weighted(loss, count)

    def on_validation_start(self) -> None:
        """Have the reference log-probs of the validation pairs."""
        self._have_table("validation")

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the validation sums, and sample answers to its prompts."""
        pairs, result = self._outcome("validation", batch)
        self.val_pairs.update(pair_values(pairs, result), batch.numbers >= 0)
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if self.probe_config.prompts and tokenizer is not None and not self.trainer.sanity_checking:
            self.probe.update(self.network, self.reference, prompt_ids(batch), batch.prompts, tokenizer)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*`` and ``policy/*``."""
        self._log_means("val", self.val_pairs)
        if self.probe.update_called:
            self.log_dict({f"policy/{name}": value for name, value in self.probe.compute().items()})
            self.probe.reset()

    def on_test_start(self) -> None:
        """Have the reference log-probs of the test pairs."""
        self._have_table("test")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the test sums."""
        pairs, result = self._outcome("test", batch)
        self.test_pairs.update(pair_values(pairs, result), batch.numbers >= 0)

    def on_test_epoch_end(self) -> None:
        """Log ``test/*``."""
        self._log_means("test", self.test_pairs)

    def _outcome(self, split: str, batch: PairBatch) -> tuple[PairLogprobs, PreferenceLoss]:
        """Steps 1 to 3."""
        # 1. the reference, before activations of the policy lie in memory, and a GPU has work that a look-up waits for
        reference_chosen, reference_rejected = self._reference_logprobs(split, batch)
        # 2. the policy
        chosen, rejected = pair_logprobs(self.network, batch, shared_prefix=self.shared_prefix).chunk(2)
        # 3. the loss
        chosen_tokens, rejected_tokens = batch.mask[:, 1:].sum(1).chunk(2)
        pairs = PairLogprobs(chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens)
        return pairs, preference_loss(self.loss_name, pairs, **self._strength)

    def _reference_logprobs(
        self, split: str, batch: PairBatch
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """``[B]`` each, of chosen and rejected; None where the loss compares with nothing."""
        if not self.compares:
            return None, None
        if not self.precomputed:
            assert self.reference is not None
            with torch.no_grad():
                chosen, rejected = pair_logprobs(self.reference, batch, shared_prefix=self.shared_prefix).chunk(2)
            return chosen, rejected
        values = self._tables[split][batch.numbers.clamp(min=0).cpu()]
        wide = torch.promote_types(self.network.output_weight.dtype, torch.float32)
        chosen, rejected = values.to(batch.ids.device, wide).unbind(1)
        return chosen, rejected

    def _have_table(self, split: str) -> None:
        if self.compares and self.precomputed and split not in self._tables:
            self._tables[split] = reference_table(
                self.trainer,
                lambda: self.reference if self.reference is not None else self._make_reference(start=None),
                split=split,
                weights=self._reference_fingerprint(),
                precision=self._reference_precision(),
                shared_prefix=self.shared_prefix,
            )

    def _make_reference(self, *, start: GPT | None) -> GPT:
        """The reference; ``start`` is the policy before anything moved it, or None once it may have moved."""
        if self.reference_source is None and start is not None:
            reference = copy.deepcopy(start)
        else:
            reference = load_start(str(self.reference_source or self.init_from), GPT, None)
        ours, theirs = self.network.config, reference.config
        if ours.vocab_size != theirs.vocab_size or ours.context > theirs.context:
            raise ValueError(
                f"reference {self.reference_source} has vocab_size {theirs.vocab_size} and context {theirs.context}, "
                f"the policy {ours.vocab_size} and {ours.context}: they must read the same rows"
            )
        self._freeze(without_dropout(reference))
        return reference

    @property
    def _adapted(self) -> bool:
        """Whether adapters learn, not the weights."""
        return self.lora is not None or bool(adapters(self.network))

    def _reference_fingerprint(self) -> str:
        source = self.reference_source or self.init_from
        if source is not None:
            return start_fingerprint(source, None if self.reference_source else self.lora)
        assert self.reference is not None
        return network_fingerprint(self.reference)

    def _reference_precision(self) -> str:
        frozen = self.memory_config.frozen_dtype
        return f"{self.trainer.precision}" if frozen == "float32" else f"{self.trainer.precision}, {frozen} weights"

    def _check_start(self, pairs: PairLogprobs, result: PreferenceLoss, real: torch.Tensor) -> None:
        """Step 4.

        Raises:
            ValueError: they differ, and ``other_reference`` does not say that they may.
        """
        assert pairs.reference_chosen is not None
        assert pairs.reference_rejected is not None
        equal = pairs._replace(chosen=pairs.reference_chosen, rejected=pairs.reference_rejected)
        expected = preference_loss(self.loss_name, equal, **self._strength).loss
        ratios = torch.stack([pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected])
        tokens = torch.stack([pairs.chosen_tokens, pairs.rejected_tokens]).clamp(min=1)
        apart = self.reduce((ratios.abs() / tokens).where(real, 0).max(), "max").item()
        tolerance = start_tolerance(self.network) if self.memory_config.frozen_dtype == "float32" else _TOLERANCE_16
        if not apart > tolerance:
            return
        loss, start = (values[real].mean().item() for values in (result.loss, expected))
        line = (
            f"at step 0 the loss is {loss:.4f}, but {start:.4f} where reference and policy are equal: log-probs of an "
            f"answer differ by up to {ratios.where(real, 0).abs().max().item():.3g} nats, {apart:.3g} per token. The "
            f"reference ({self.reference_source or self.init_from}) is not what the policy starts from "
            f"({self.init_from})"
        )
        if not self.other_reference:
            raise ValueError(f"{line}: leave reference out, or set other_reference if that is meant")
        rank_zero_warn(f"{line}; other_reference allows it")

    def _log_means(self, split: str, metric: "PairMeans") -> None:
        self.log_dict({f"{split}/{name}": value for name, value in metric.compute().items()})
        metric.reset()


class PairMeans(Metric):
    """Means over pairs since the last reset: sums, added over ranks, divided once."""

    full_state_update = False
    sums: torch.Tensor
    pairs: torch.Tensor

    def __init__(self) -> None:
        """Start from nothing."""
        super().__init__()
        self.add_state("sums", torch.zeros(len(_NAMES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: torch.Tensor, real: torch.Tensor) -> None:
        """Add the pairs of ``pair_values`` ``[7, B]`` that are ``real`` ``[B]`` bool."""
        self.sums += values.double().where(real, 0).sum(1)
        self.pairs += real.sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """Mean of each value, by name."""
        return dict(zip(_NAMES, (self.sums / self.pairs).float(), strict=True))


def pair_values(pairs: PairLogprobs, result: PreferenceLoss) -> torch.Tensor:
    """What is logged of each pair, ``[7, B]`` in the order loss, accuracy, margin, log-probs, rewards; detached.

    A pair whose rewards are equal counts half in the accuracy.
    """
    margin = result.reward_chosen - result.reward_rejected
    accuracy = 0.5 * (1 + margin.sign())
    values = (result.loss, accuracy, margin, pairs.chosen, pairs.rejected, result.reward_chosen, result.reward_rejected)
    return torch.stack([value.detach() for value in values])


def prompt_ids(batch: PairBatch) -> list[list[int]]:
    """The prompt of each pair; empty on padding."""
    lengths = batch.prompt_lengths.where(batch.numbers >= 0, 0).tolist()
    rows = batch.ids[: len(lengths)].tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def start_tolerance(network: GPT) -> float:
    """Nats per token by which two computations of the same log-prob may differ."""
    weight = network.output_weight
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _TOLERANCE.get(dtype, _TOLERANCE_16)
