"""The base class of DPO and KTO: a policy learns from given responses, compared with a frozen reference.

Legend: B records (pairs, or responses with feedback), K metrics.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn

from align.adapters.lora import LoraConfig, adapters
from align.algorithms.module import Stage
from align.algorithms.policy_evaluation import PolicyEvaluation, PolicyEvaluationConfig
from align.algorithms.reference_logprobs import network_fingerprint, reference_table
from align.algorithms.response_logprobs import response_logprobs
from align.algorithms.starting_points import (
    initial_network,
    load_start,
    reference_view,
    refuse_dropout,
    start_fingerprint,
)
from align.batches import FeedbackBatch, PairBatch, ResponseRows
from align.model.gpt import GPT
from align.objectives.checks import check_shapes
from align.rewards.functions import columns_read
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


class ComparedLogprobs(Protocol):
    """Log-probs of B records under policy and reference."""

    @property
    def shape(self) -> torch.Size:
        """``[B]``."""
        ...

    def distances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Size of the log-ratio of each response, ``[responses of a record, B]``: nats, and nats per token."""
        ...

    def at_reference(self) -> Any:
        """What they would be if the policy were the reference."""
        ...


class RecordLosses(Protocol):
    """Losses of B records."""

    @property
    def loss(self) -> torch.Tensor:
        """``[B]`` to be differentiated."""
        ...

    def _asdict(self) -> dict[str, torch.Tensor]:
        """All fields."""
        ...


class ReferencedLoss(Protocol):
    """A loss of records."""

    @property
    def needs_reference(self) -> bool:
        """Whether it reads the reference's log-probs."""
        ...


Batch = TypeVar("Batch", PairBatch, FeedbackBatch)
Logprobs = TypeVar("Logprobs", bound=ComparedLogprobs)
Losses = TypeVar("Losses", bound=RecordLosses)


class ReferenceStage(Stage, Generic[Batch, Logprobs, Losses]):
    """Trains a policy on the responses of records, with a loss that compares it with a frozen reference.

    One step:
        1. Log-probs of the responses under the reference: looked up, or computed.
        2. Log-probs of the responses under the policy.
        3. The loss of each record.
        4. In the first step of a new run, check that policy and reference agree.
        5. Sum over the records, divide by the records of the whole optimizer step (``Stage.weighted``).

    Args:
        init_from: model or Hugging Face directory, GGUF file or Hub id of the initial policy; or an adapter directory,
            whose adapter continues training.
        loss: of the records.
        reference: the same for the reference; None: the initial policy. With adapters the reference is then the base
            model, which takes no further memory, or, where init_from is an adapter directory, the base model with a
            frozen copy of that adapter.
        reference_logprobs: precomputed: once, before training, cached on disk; on_the_fly: in every step.
        shared_prefix: compute each prompt once for all its responses in a batch, without padding; faster, and equal up
            to floating-point rounding. Ignored with compile, which needs batches of few shapes.
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
    metric_names: ClassVar[tuple[str, ...]] = (
        "loss",
        "accuracy",
        "logprob_chosen",
        "logprob_rejected",
        "reward_chosen",
        "reward_rejected",
    )
    """Of ``values``; a subclass adds its own"""
    loss: Any
    """Log-probs of B records -> losses, a tuple of ``[B]``"""

    def __init__(
        self,
        init_from: str | None = None,
        *,
        loss: ReferencedLoss,
        reference: str | None = None,
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
        name = type(self).__name__
        load_policy = initial_network(name, init_from, network, GPT, lora)
        if reference_logprobs not in ("precomputed", "on_the_fly"):
            raise ValueError(f"reference_logprobs is {reference_logprobs!r}; it must be precomputed or on_the_fly")
        refuse_dropout(lora, name)
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        self.init_from, self.reference_source, self._load_policy = init_from, reference, load_policy
        self.loss = loss
        self.needs_reference, self.precomputed = loss.needs_reference, reference_logprobs == "precomputed"
        self.shared_prefix, self.other_reference = shared_prefix and not compile, other_reference
        self.val_means, self.test_means = Means(self.metric_names), Means(self.metric_names)
        self.policy_evaluation = PolicyEvaluation(policy_evaluation)
        self._tables: dict[str, torch.Tensor] = {}

    # To be implemented by subclasses.

    def policy_and_reference(self, split: str, batch: Batch) -> Logprobs:
        """Steps 1 and 2: log-probs of the responses under policy and reference."""
        raise NotImplementedError

    def values(self, logprobs: Logprobs, losses: Losses) -> dict[str, torch.Tensor]:
        """What is logged for each record, ``[B]`` for each of ``metric_names``."""
        raise NotImplementedError

    def records_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Records that a metric is a mean over, ``[B]`` bool; of metrics without an entry all but padding."""
        return {}

    # Built on these.

    def losses(self, logprobs: Logprobs) -> Losses:
        """Step 3: the loss of each record.

        Raises:
            ValueError: the loss returned tensors of the wrong shape.
        """
        losses: Losses = self.loss(logprobs)
        check_shapes(type(self.loss).__name__, losses._asdict(), logprobs.shape)
        return losses

    def logged_values(self, logprobs: Logprobs, losses: Losses) -> torch.Tensor:
        """``values``, ``[K, B]`` in the order of ``metric_names``, detached."""
        values = self.values(logprobs, losses)
        return torch.stack([values[name].detach() for name in self.metric_names])

    def counted(self, batch: Batch) -> torch.Tensor:
        """Which records each metric is a mean over, ``[K, B]`` bool."""
        real, own = batch.numbers >= 0, self.records_of(batch)
        return torch.stack([own.get(name, real) & real for name in self.metric_names])

    def log_means(self, split: str, means: dict[str, torch.Tensor]) -> None:
        """Log means over records; a metric that no record counts in is missing."""
        self.log_dict({f"{split}/{name}": mean for name, mean in means.items()})

    # Building.

    def build(self) -> None:
        """Set the policy, and the reference if more than its cached log-probs is needed."""
        self.network = without_dropout(self._load_policy())
        only_cached = self.precomputed or not self.needs_reference
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
        """Load or compute the reference log-probs of the training records."""
        super().on_fit_start()
        self._have_table("train")

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch; see the class for the steps.

        Raises:
            FloatingPointError: the loss is not finite.
            ValueError: at step 0, the reference differs from the policy.
        """
        counted = self.counted(batch)
        counts = self.reduce(counted.sum(1), "sum")
        # Read here: after the forward passes it would wait for a GPU to finish them.
        logged = [count > 0 for count in counts.tolist()]
        logprobs = self.policy_and_reference("train", batch)  # 1, 2
        losses = self.losses(logprobs)  # 3
        real = batch.numbers >= 0
        if self.needs_reference and batch_index(self.trainer) == 0:
            self._check_start(logprobs, losses, real)  # 4
        sums = self.reduce(self.logged_values(logprobs, losses).where(counted, 0).sum(1), "sum")
        means = sums / counts.clamp(min=1)
        named = zip(self.metric_names, means, logged, strict=True)
        self.log_means("train", {name: mean for name, mean, exists in named if exists})
        self.refuse_nonfinite(means[self.metric_names.index("loss")])
        return self.weighted(losses.loss.where(real, 0).sum(), real.sum())  # 5

    def _check_start(self, logprobs: Logprobs, losses: Losses, real: torch.Tensor) -> None:
        """Step 4.

        Raises:
            ValueError: policy and reference differ, and ``other_reference`` does not allow it.
        """
        distances, per_token = logprobs.distances()
        apart = self.reduce(per_token.where(real, 0).max(), "max").item()
        tolerance = start_tolerance(self.network) if self.memory_config.frozen_dtype == "float32" else _TOLERANCE_16
        if not apart > tolerance:
            return
        expected = self.losses(logprobs.at_reference())
        loss, start = (values.loss[real].mean().item() for values in (losses, expected))
        line = (
            f"at step 0 the loss is {loss:.4f}, but it is {start:.4f} if reference and policy are equal: log-probs of "
            f"a response differ by up to {distances.where(real, 0).max().item():.3g} nats, {apart:.3g} per token. "
            f"The reference ({self.reference_source or self.init_from}) is not the initial policy ({self.init_from})"
        )
        if not self.other_reference:
            raise ValueError(f"{line}: remove reference, or set other_reference if the difference is intended")
        rank_zero_warn(f"{line}; other_reference allows it")

    # Validation and test.

    def reward_columns(self, split: str) -> tuple[str, ...]:
        """Of the judge of policy evaluation, in validation; see ``Stage``."""
        return columns_read([self.policy_evaluation.config.judge] if split == "validation" else [])

    def on_validation_start(self) -> None:
        """Load or compute the reference log-probs of the validation records."""
        self._have_table("validation")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation metrics, and sample responses to its prompts."""
        self._add("validation", batch, self.val_means)
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if self.policy_evaluation.wanted and tokenizer is not None and not self.trainer.sanity_checking:
            if batch_idx == 0:
                self._bound_evaluation(batch)
            self.policy_evaluation.update(
                self.network, self.reference, prompt_ids(batch), batch.prompts, tokenizer, columns=batch.columns
            )

    def _bound_evaluation(self, batch: Batch) -> None:
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
        self._log_split("val", self.val_means)
        if self.policy_evaluation.update_called:
            self.log_dict({f"policy/{name}": value for name, value in self.policy_evaluation.compute().items()})
            self.policy_evaluation.reset()

    def on_test_start(self) -> None:
        """Load or compute the reference log-probs of the test records."""
        self._have_table("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._add("test", batch, self.test_means)

    def on_test_epoch_end(self) -> None:
        """Log ``test/*``."""
        self._log_split("test", self.test_means)

    def _add(self, split: str, batch: Batch, metric: "Means") -> None:
        logprobs = self.policy_and_reference(split, batch)
        metric.update(self.logged_values(logprobs, self.losses(logprobs)), self.counted(batch))

    def _log_split(self, split: str, metric: "Means") -> None:
        self.log_means(split, metric.compute())
        metric.reset()

    # The reference.

    def response_logprobs(self, network: GPT, rows: ResponseRows) -> torch.Tensor:
        """Log-prob of each response under a network, summed over its tokens: ``[R]`` nats."""
        return response_logprobs(network, rows, shared_prefix=self.shared_prefix)

    def _reference_logprobs(self, split: str, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Log-probs of both halves of a batch under the reference, ``[B]`` each; None if the loss needs none."""
        if not self.needs_reference:
            return None, None
        if not self.precomputed:
            assert self.reference is not None
            with torch.no_grad():
                first, second = self.response_logprobs(self.reference, batch.rows).chunk(2)
            return first, second
        values = self._tables[split][batch.numbers.clamp(min=0).cpu()]
        dtype = torch.promote_types(self.network.output_weight.dtype, torch.float32)
        first, second = values.to(batch.ids.device, dtype).unbind(1)
        return first, second

    def _have_table(self, split: str) -> None:
        if self.needs_reference and self.precomputed and split not in self._tables:
            self._tables[split] = reference_table(
                self.trainer,
                lambda: self.reference if self.reference is not None else self._make_reference(start=None),
                lambda network, batch: self.response_logprobs(network, batch.rows),
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


class Means(WideMetric):
    """Means over all records since the last reset, on all ranks."""

    full_state_update = False
    sums: torch.Tensor
    records: torch.Tensor

    def __init__(self, names: Sequence[str]) -> None:
        """Start with no records.

        Args:
            names: of the K metrics.
        """
        super().__init__()
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("records", torch.zeros(len(names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: torch.Tensor, counted: torch.Tensor) -> None:
        """Add records.

        Args:
            values: ``[K, B]``.
            counted: ``[K, B]`` bool, which records each mean is over.
        """
        counted = counted.to(self.device)
        self.sums += wide(values).where(counted, 0).sum(1)
        self.records += counted.sum(1)

    def compute(self) -> dict[str, torch.Tensor]:
        """Mean of each metric by name; a metric that no record counts in is missing."""
        rows = zip(self.names, self.sums, self.records.tolist(), strict=True)
        return {name: (total / count).float() for name, total, count in rows if count}


def prompt_ids(batch: PairBatch | FeedbackBatch) -> list[list[int]]:
    """Token ids of each record's prompt; empty on padding."""
    lengths = batch.prompt_lengths.where(batch.numbers >= 0, 0).tolist()
    rows = batch.ids[: len(lengths)].tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def start_tolerance(network: GPT) -> float:
    """By how much two computations of the same log-prob may differ, nats per token."""
    weight = network.output_weight
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _TOLERANCE.get(dtype, _TOLERANCE_16)
