"""Direct preference optimization: the policy learns from preference pairs, without a reward model.

To follow a pair to its loss, read ``align/batches.py: PairBatch``; ``DPO.training_step``,
``DPO._policy_and_reference`` and ``response_logprobs`` here; then ``align/objectives/preference.py``.

Legend: B pairs, T tokens of a row.
"""

import copy
import math
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from align.adapters.lora import LoraConfig, adapters
from align.algorithms.module import Stage
from align.algorithms.policy_evaluation import PolicyEvaluation, PolicyEvaluationConfig
from align.algorithms.reference_logprobs import network_fingerprint, reference_table
from align.algorithms.starting_points import (
    initial_network,
    load_start,
    reference_view,
    refuse_dropout,
    start_fingerprint,
)
from align.batches import PairBatch
from align.model.gpt import GPT
from align.model.packing import share_responses
from align.objectives import PairLogprobs, PairLosses, PreferenceLoss, preference, sequence_logprobs, token_logprobs
from align.training.defaults import PREFERENCES
from align.training.float64 import WideMetric, wide
from align.training.lightning_internals import batch_index
from align.training.memory import MemoryConfig, without_dropout
from align.training.optimization import OptimizerConfig, ScheduleConfig

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Nats per token by which policy and reference may differ at step 0, by dtype of the matrix products.

Cached log-probs were computed in batches of other shapes, which round differently.
"""

_TOLERANCE_16 = 0.05

_NAMES = ("loss", "accuracy", "margin", "logprob_chosen", "logprob_rejected", "reward_chosen", "reward_rejected")


class DPO(Stage):
    """Trains a policy on preference pairs, with DPO's loss or a relative of it.

    One step:
        1. Log-probs of both responses under the reference: looked up, or computed.
        2. Log-probs of both responses under the policy.
        3. The loss of each pair.
        4. In the first step of a new run, check that policy and reference agree (DPO's loss is then ln 2).
        5. Sum over the pairs, divide by the pairs of the whole optimizer step (``Stage.weighted``).

    Args:
        init_from: model or Hugging Face directory, GGUF file or Hub id of the initial policy; or an adapter directory,
            whose adapter continues training.
        reference: the same for the reference; None: the initial policy. With adapters the reference is then the base
            model, which takes no further memory, or, where init_from is an adapter directory, the base model with a
            frozen copy of that adapter.
        loss: class name of a loss in ``align/objectives/preference.py`` (docs/dpo.md compares them), or class path of
            your own; its settings are its init_args.
        sft_coef: weight of the chosen response's negative log-likelihood per token, which is added to the loss.
        reference_logprobs: precomputed: once, before training, cached on disk; on_the_fly: in every step.
        shared_prefix: compute each prompt once for both responses, without padding; faster, and equal up to
            floating-point rounding. Ignored with compile, which needs batches of few shapes.
        other_reference: allow a reference that differs from the initial policy, which is an error otherwise.
        policy_evaluation: samples from the policy at each validation.
        lora: train adapters with these settings and freeze the weights; None: train the weights.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        compile: torch.compile the network; the first step then takes about a minute.
        memory: settings that save memory.
        network: a network built in Python, instead of init_from.

    Raises:
        ValueError: not exactly one of init_from and network is given, or a setting is out of range.
    """

    network: GPT
    reference: GPT | None
    frozen_names = ("reference",)
    rate_rule = PREFERENCES

    def __init__(
        self,
        init_from: str | None = None,
        *,
        reference: str | None = None,
        loss: PreferenceLoss = preference.DPO(),  # noqa: B008 (frozen)
        sft_coef: float = 0.0,
        reference_logprobs: Literal["precomputed", "on_the_fly"] = "precomputed",
        shared_prefix: bool = True,
        other_reference: bool = False,
        policy_evaluation: PolicyEvaluationConfig = PolicyEvaluationConfig(),  # noqa: B008 (frozen)
        lora: LoraConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Store the settings; networks are built in ``build``."""
        load_policy = initial_network("DPO", init_from, network, GPT, lora)
        if not 0 <= sft_coef < float("inf"):
            raise ValueError(f"sft_coef is {sft_coef}; it must be at least 0")
        if reference_logprobs not in ("precomputed", "on_the_fly"):
            raise ValueError(f"reference_logprobs is {reference_logprobs!r}; it must be precomputed or on_the_fly")
        refuse_dropout(lora, "DPO")
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        self.init_from, self.reference_source, self._load_policy = init_from, reference, load_policy
        self.loss, self.sft_coef = loss, sft_coef
        self.precomputed, self.shared_prefix = reference_logprobs == "precomputed", shared_prefix and not compile
        self.other_reference = other_reference
        self.val_pairs, self.test_pairs, self.policy_evaluation = (
            PairMeans(),
            PairMeans(),
            PolicyEvaluation(policy_evaluation),
        )
        self._tables: dict[str, torch.Tensor] = {}

    def build(self) -> None:
        """Set the policy, and the reference if more than its cached log-probs is needed."""
        self.network = without_dropout(self._load_policy())
        only_cached = self.precomputed or not self.loss.needs_reference
        has_source = self.init_from is not None or self.reference_source is not None
        self.reference = None
        adapted = self.lora is not None or bool(adapters(self.network))
        if adapted and self.reference_source is None:
            self.reference = reference_view(self.network)
            return
        # A network built in Python cannot be loaded again once training has changed it.
        if not only_cached or self.policy_evaluation.wanted or not has_source:
            self.reference = self._make_reference(start=self.network)

    def sources(self) -> dict[str, object]:
        """See ``Stage.sources``."""
        return {**super().sources(), "reference": self.reference_source}

    # Training.

    def on_fit_start(self) -> None:
        """Load or compute the reference log-probs of the training pairs."""
        super().on_fit_start()
        self._have_table("train")

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch; see the class for the steps.

        Raises:
            FloatingPointError: the loss is not finite.
            ValueError: at step 0, the reference differs from the policy.
        """
        pairs = self._policy_and_reference("train", batch)  # 1, 2
        losses = self._pair_losses(pairs)  # 3
        real = batch.numbers >= 0
        if self.loss.needs_reference and batch_index(self.trainer) == 0:
            self._check_start(pairs, losses, real)  # 4
        loss = losses.loss.where(real, 0).sum()
        count = real.sum()
        values = pair_values(pairs, losses).where(real, 0).sum(1) / count.clamp(min=1)
        means = self.mean_over_ranks(dict(zip(_NAMES, values, strict=True)), count)
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.refuse_nonfinite(means["loss"])
        return self.weighted(loss, count)  # 5

    def _policy_and_reference(self, split: str, batch: PairBatch) -> PairLogprobs:
        """Steps 1 and 2: log-probs of both responses under policy and reference."""
        # The reference comes first: the policy's activations are not in memory yet, and a look-up, which waits for a
        # GPU to finish, does not wait for the policy.
        reference_chosen, reference_rejected = self._reference_logprobs(split, batch)  # 1
        chosen, rejected = self._response_logprobs(self.network, batch).chunk(2)  # 2
        chosen_tokens, rejected_tokens = batch.mask[:, 1:].sum(1).chunk(2)
        return PairLogprobs(chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens)

    def _pair_losses(self, pairs: PairLogprobs) -> PairLosses:
        """Step 3: ``loss``, plus ``sft_coef`` times the chosen response's NLL per token (RPO, Pang et al. 2024).

        Raises:
            ValueError: the loss returned tensors of the wrong shape.
        """
        losses = self.loss(pairs)
        losses.check(type(self.loss).__name__, pairs)
        if not self.sft_coef:
            return losses
        return losses._replace(loss=losses.loss - self.sft_coef * pairs.mean_logprobs()[0])

    def _check_start(self, pairs: PairLogprobs, losses: PairLosses, real: torch.Tensor) -> None:
        """Step 4.

        Raises:
            ValueError: policy and reference differ, and ``other_reference`` does not allow it.
        """
        assert pairs.reference_chosen is not None
        assert pairs.reference_rejected is not None
        equal = pairs._replace(chosen=pairs.reference_chosen, rejected=pairs.reference_rejected)
        expected = self._pair_losses(equal).loss
        ratios = torch.stack([pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected])
        tokens = torch.stack([pairs.chosen_tokens, pairs.rejected_tokens]).clamp(min=1)
        apart = self.reduce((ratios.abs() / tokens).where(real, 0).max(), "max").item()
        tolerance = start_tolerance(self.network) if self.memory_config.frozen_dtype == "float32" else _TOLERANCE_16
        if not apart > tolerance:
            return
        loss, start = (values[real].mean().item() for values in (losses.loss, expected))
        line = (
            f"at step 0 the loss is {loss:.4f}, but it is {start:.4f} if reference and policy are equal: log-probs of "
            f"a response differ by up to {ratios.where(real, 0).abs().max().item():.3g} nats, {apart:.3g} per token. "
            f"The reference ({self.reference_source or self.init_from}) is not the initial policy ({self.init_from})"
        )
        if not self.other_reference:
            raise ValueError(f"{line}: remove reference, or set other_reference if the difference is intended")
        rank_zero_warn(f"{line}; other_reference allows it")

    # Validation and test.

    def on_validation_start(self) -> None:
        """Load or compute the reference log-probs of the validation pairs."""
        self._have_table("validation")

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the validation metrics, and sample responses to its prompts."""
        self._add("validation", batch, self.val_pairs)
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if self.policy_evaluation.wanted and tokenizer is not None and not self.trainer.sanity_checking:
            if batch_idx == 0:
                self._bound_evaluation(batch)
            self.policy_evaluation.update(self.network, self.reference, prompt_ids(batch), batch.prompts, tokenizer)

    def _bound_evaluation(self, batch: PairBatch) -> None:
        """Limit policy evaluation to a share of the training between validations, as if its batches were like this."""
        trainer: Any = self.trainer
        between = getattr(trainer, "val_check_batch", None) or 1
        if trainer.check_val_every_n_epoch is not None:
            between = min(between, trainer.num_training_batches)
        tokens = int(batch.lengths.sum()) * self.sharing.ranks
        prompts = int((batch.numbers >= 0).sum())
        if math.isfinite(between) and prompts:
            self.policy_evaluation.bound_cost(int(between * tokens), int(batch.prompt_lengths.sum()) / prompts)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*`` and ``policy/*``."""
        self._log_means("val", self.val_pairs)
        if self.policy_evaluation.update_called:
            self.log_dict({f"policy/{name}": value for name, value in self.policy_evaluation.compute().items()})
            self.policy_evaluation.reset()

    def on_test_start(self) -> None:
        """Load or compute the reference log-probs of the test pairs."""
        self._have_table("test")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._add("test", batch, self.test_pairs)

    def on_test_epoch_end(self) -> None:
        """Log ``test/*``."""
        self._log_means("test", self.test_pairs)

    def _add(self, split: str, batch: PairBatch, metric: "PairMeans") -> None:
        pairs = self._policy_and_reference(split, batch)
        metric.update(pair_values(pairs, self._pair_losses(pairs)), batch.numbers >= 0)

    def _log_means(self, split: str, metric: "PairMeans") -> None:
        self.log_dict({f"{split}/{name}": value for name, value in metric.compute().items()})
        metric.reset()

    # The reference.

    def _reference_logprobs(
        self, split: str, batch: PairBatch
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Of chosen and rejected responses, ``[B]`` each; None if the loss needs none."""
        if not self.loss.needs_reference:
            return None, None
        if not self.precomputed:
            assert self.reference is not None
            with torch.no_grad():
                chosen, rejected = self._response_logprobs(self.reference, batch).chunk(2)
            return chosen, rejected
        values = self._tables[split][batch.numbers.clamp(min=0).cpu()]
        dtype = torch.promote_types(self.network.output_weight.dtype, torch.float32)
        chosen, rejected = values.to(batch.ids.device, dtype).unbind(1)
        return chosen, rejected

    def _response_logprobs(self, network: GPT, batch: PairBatch) -> torch.Tensor:
        return response_logprobs(network, batch, shared_prefix=self.shared_prefix)

    def _have_table(self, split: str) -> None:
        if self.loss.needs_reference and self.precomputed and split not in self._tables:
            self._tables[split] = reference_table(
                self.trainer,
                lambda: self.reference if self.reference is not None else self._make_reference(start=None),
                self._response_logprobs,
                split=split,
                weights=self._reference_fingerprint(),
                precision=self._reference_precision(),
            )

    def _make_reference(self, *, start: GPT | None) -> GPT:
        """The reference; ``start`` is the initial policy, or None once training may have changed it."""
        if self.reference_source is None and start is not None:
            reference = copy.deepcopy(start)
        else:
            reference = load_start(str(self.reference_source or self.init_from), GPT, None)
        ours, theirs = self.network.config, reference.config
        if ours.vocab_size != theirs.vocab_size or ours.context > theirs.context:
            raise ValueError(
                f"reference {self.reference_source} has vocab_size {theirs.vocab_size} and context {theirs.context}, "
                f"but the policy has {ours.vocab_size} and {ours.context}; both must be able to read the same rows"
            )
        self._freeze(without_dropout(reference))
        return reference

    def _reference_fingerprint(self) -> str:
        source = self.reference_source or self.init_from
        if source is not None:
            return start_fingerprint(source, None if self.reference_source else self.lora)
        assert self.reference is not None
        return network_fingerprint(self.reference)

    def _reference_precision(self) -> str:
        frozen = self.memory_config.frozen_dtype
        return f"{self.trainer.precision}" if frozen == "float32" else f"{self.trainer.precision}, {frozen} weights"


class PairMeans(WideMetric):
    """Means over all pairs since the last reset, on all ranks."""

    full_state_update = False
    sums: torch.Tensor
    pairs: torch.Tensor

    def __init__(self) -> None:
        """Start with no pairs."""
        super().__init__()
        self.add_state("sums", torch.zeros(len(_NAMES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: torch.Tensor, real: torch.Tensor) -> None:
        """Add the pairs that are not padding.

        Args:
            values: ``[7, B]`` from ``pair_values``.
            real: ``[B]`` bool, False on padding.
        """
        real = real.to(self.device)
        self.sums += wide(values).where(real, 0).sum(1)
        self.pairs += real.sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """Mean of each value by name."""
        return dict(zip(_NAMES, (self.sums / self.pairs).float(), strict=True))


def response_logprobs(network: GPT, batch: PairBatch, *, shared_prefix: bool) -> torch.Tensor:
    """Log-prob of each response under one network, summed over its tokens.

    No other position reaches the output matrix.

    Args:
        network: policy or reference.
        batch: pairs.
        shared_prefix: compute each distinct prompt and response once, without padding; equal up to floating-point
            rounding.

    Returns:
        ``[2B]`` nats, at least float32: B chosen, then B rejected; 0 on rows of padding.
    """
    ids, mask = batch.ids, batch.mask
    if not shared_prefix:
        hidden = network.hidden(ids[:, :-1])
        return sequence_logprobs(hidden, network.output_weight, ids, mask, softcap=network.softcap)
    # The last token of a row predicts nothing.
    distinct = share_responses(ids, (batch.lengths - 1).clamp(min=0), batch.prompt_lengths.repeat(2))
    mask = mask.new_zeros(len(distinct.ids), ids.shape[1]).index_copy_(0, distinct.row_of, mask)[:, 1:]
    # The state at position t predicts the token at t + 1.
    row, column = mask.nonzero(as_tuple=True)
    line, indices = distinct.rows.line(distinct.ids), distinct.rows.tokens_at(row, column)
    states = network.hidden(line, rows=distinct.rows, indices=indices)
    targets = distinct.ids[row, column + 1]
    logprobs = token_logprobs(states, network.output_weight, targets, softcap=network.softcap)
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs).sum(1)[distinct.row_of]


def pair_values(pairs: PairLogprobs, losses: PairLosses) -> torch.Tensor:
    """What is logged for each pair, ``[7, B]`` in the order of ``_NAMES``, detached.

    A pair with equal rewards counts half in the accuracy.
    """
    margin = losses.reward_chosen - losses.reward_rejected
    accuracy = 0.5 * (1 + margin.sign())
    values = (losses.loss, accuracy, margin, pairs.chosen, pairs.rejected, losses.reward_chosen, losses.reward_rejected)
    return torch.stack([value.detach() for value in values])


def prompt_ids(batch: PairBatch) -> list[list[int]]:
    """Token ids of each pair's prompt; empty on padding."""
    lengths = batch.prompt_lengths.where(batch.numbers >= 0, 0).tolist()
    rows = batch.ids[: len(lengths)].tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def start_tolerance(network: GPT) -> float:
    """By how much two computations of the same log-prob may differ, nats per token."""
    weight = network.output_weight
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _TOLERANCE.get(dtype, _TOLERANCE_16)
